"""The words on the line between a supervisor and a worker. Pure.

The supervisor sends single bytes; the worker answers in lines of JSON: an object is a snapshot of its counts, a string says
where the worker is in its life. The end of the line stops a worker.
"""

from __future__ import annotations

from typing import Final

SNAPSHOT: Final = b"s"
"""Say what you have counted."""
RELOAD: Final = b"r"
"""Read the route table and the certificates again."""

SERVING: Final = b'"serving"'
"""From here on the worker accepts connections."""
DRAINING: Final = b'"draining"'
"""From here on it accepts none, and ends when what is under way has ended."""
