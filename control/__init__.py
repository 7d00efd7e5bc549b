"""The control plane: everything that people, CI and operators do, and the work in the background.

Where to look:

- ``domain/`` the rules and their SQL, one noun a file. No HTTP, no HTML.
- ``api/`` REST: parse, call the domain, answer JSON. ``console/`` HTML: parse, call the domain, fill a
  template.
  Neither imports the other.
- ``jobs/`` publish, drain, expire, reconcile and the like: each an ``async def run_once``.
- ``delivery/`` how alerts reach people: webhooks, e-mail, Slack. ``sealing.py`` secrets at rest.
- ``migrations/`` the schema, as SQL files in order.
- ``embedded/`` real Postgres and Valkey servers out of wheels, for the one-command start and for tests.
- ``settings.py`` the environment; ``app.py`` the composition root; ``cli`` the ``tollkeeper`` command.

Postgres is the truth; Redis is a projection of it that can be rebuilt, so only the jobs and the call that
makes a key write there. Of the data plane this package imports ``gateway.contract`` and nothing else.
"""
