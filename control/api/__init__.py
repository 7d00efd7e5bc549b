"""The REST API: parse, call the domain, answer JSON. Nothing is decided here.

- ``routes`` every path and who answers it; ``organizations``, ``service_accounts``, ``keys``, ``usage`` the calls, one
  noun a file; ``health`` /livez, /readyz, /metrics
- ``bodies``, ``queries`` what a request may say, and a 400 that names the field if it says something else
- ``shapes`` what an answer says; ``problems`` every "no" as problem+json (RFC 9457)
- ``middleware``, ``authentication`` what surrounds each call: request id, log line, time limit, caller; ``metrics``
- ``services`` what the calls work with; made once, by ``control.app``
"""
