"""The rules of the control plane and their SQL, one noun a file. No HTTP, no HTML; `api` and `jobs` call it.

- ``organizations``, ``service_accounts``, ``keys`` the nouns: create, get, list, amend, and what else befalls them
- ``operator`` who may do all that, until there are members; ``usage`` what was used, out of the ledger
- ``alerts`` thresholds that were reached, ``destinations`` where they are told, ``deliveries`` how far that is
- ``changes`` one change: its transaction, and putting it in force before it is answered
- ``outbox``, ``rules`` what is still to be published, and the rules as Redis is to have them
- ``budgets``, ``names``, ``pages`` pure: amounts and windows, slugs and advice, cursors
- ``redaction`` pure: tokens in what callers write
- ``hashing`` argon2id in a bounded pool of threads; ``refusals`` what the domain says no with
"""
