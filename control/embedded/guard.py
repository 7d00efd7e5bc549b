"""The guard of one server: starts it, and ends it when whoever asked for it is gone. Run as a program, never
imported.

Why a program of its own: a process that is killed with SIGKILL cannot end its children, and Linux's
parent-death signal counts the *thread* that forked, which for our callers may be a short-lived one. The guard
has one thread and reads its standard input, a pipe whose other end only the caller holds. The end of that
pipe means stop, whether the caller closed it or died. Being in a session of its own, the guard and its server
do not see the terminal's Ctrl-C: the caller drains first.

What it does not promise: if the guard itself is killed with SIGKILL, Linux takes the server down with it;
elsewhere it stays.

Called with one argument, a JSON object: ``command`` (list), ``user`` and ``group`` (numbers or null),
``keep_fds`` (the server inherits them: a lock held through them is free only when the server is really gone),
``stop`` (a list of [signal number, seconds to wait], tried in order). Writes the server's process id to
standard output; what the server prints goes to standard error. Ends with the server's own status.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1


def _dies_with_guard(stop_signal: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None)

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, stop_signal)

    return in_child


def _stop(server: "subprocess.Popen[bytes]", steps: list[tuple[int, float]]) -> int:
    for stop_signal, wait_s in steps:
        server.send_signal(stop_signal)
        try:
            return server.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
    server.kill()
    return server.wait()


def main(argument: str) -> int:
    order: dict[str, Any] = json.loads(argument)
    steps = [(int(number), float(wait_s)) for number, wait_s in order["stop"]]
    os.umask(0o077)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    terminated = False

    def on_terminate(_number: int, _frame: object) -> None:
        nonlocal terminated
        terminated = True

    signal.signal(signal.SIGTERM, on_terminate)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = subprocess.Popen(
        order["command"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        pass_fds=order["keep_fds"],
        user=order["user"],
        group=order["group"],
        extra_groups=None if order["user"] is None else [],
        # Safe here: this process has one thread.
        preexec_fn=_dies_with_guard(steps[0][0]) if sys.platform == "linux" else None,  # noqa: PLW1509
    )
    os.write(sys.stdout.fileno(), b"%d\n" % server.pid)
    while server.poll() is None:
        ready, _, _ = select.select([sys.stdin.fileno(), woken], [], [])
        if terminated or sys.stdin.fileno() in ready:
            return _stop(server, steps)
        os.read(woken, 512)
    return server.returncode


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.exit(status if status >= 0 else 128 - status)
