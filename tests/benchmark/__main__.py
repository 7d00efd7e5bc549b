"""`python -m tests.benchmark`: starts everything, measures, prints, stops everything.

Exit status: 0 when the figures can be trusted, whether or not every goal is met; 1 when something failed or a count did
not add up; 2 for wrong options.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from control.embedded import EmbeddedServerFailed
from tests.benchmark import drain, idle, load, report, rounds
from tests.benchmark.contender import Contender
from tests.benchmark.lua import NginxLua
from tests.benchmark.peers import Aiohttp, Envoy, HAProxy, Nginx
from tests.benchmark.processes import BenchmarkFailed
from tests.benchmark.rig import Rig, rig
from tests.benchmark.whole_job import WholeJob, WholeJobLogged

CONTENDERS: tuple[type[Contender], ...] = (Envoy, Nginx, HAProxy, Aiohttp, NginxLua, WholeJob, WholeJobLogged)
DRAIN, IDLE = "drain", "idle"
PARTS = (*(contender.name for contender in CONTENDERS), DRAIN, IDLE)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark",
        description="The gateway beside its peers: CPU microseconds a request.",
    )
    parser.add_argument(
        "--seconds", type=int, default=4, help="of load for each contender in each round (default 4)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument(
        "--connections", type=int, default=64, help="kept connections of the load (default 64)"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        metavar="NAME",
        help=f"measure only this, repeatable: {', '.join(PARTS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args(arguments)
    if min(options.seconds, options.rounds, options.connections) < 1:
        parser.error("--seconds, --rounds and --connections are at least 1")
    return options


def _progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _start(stack: ExitStack, on: Rig, parts: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """The contenders that run, stopped when the stack ends, and why others do not."""
    running: list[Contender] = []
    absent: dict[str, str] = {}
    for kind in CONTENDERS:
        contender = kind()
        if contender.name not in parts and not (IDLE in parts and kind is WholeJob):
            continue
        why = contender.absent()
        if why:
            absent[contender.name] = why
            continue
        _progress(f"starting {contender.name}")
        stack.callback(contender.stop)
        contender.start(on)
        running.append(contender)
    return running, absent


def _measure(on: Rig, options: argparse.Namespace, parts: Sequence[str]) -> report.Results:
    with ExitStack() as stack:
        running, absent = _start(stack, on, parts)
        gateway = next((contender for contender in running if isinstance(contender, WholeJob)), None)
        idle_mib = idle.worker_mib(gateway) if gateway else 0.0
        _progress("warming up")
        rounds.warm_up(running, on, options.connections)
        driven = [contender for contender in running if contender.name in parts]
        samples = rounds.rotate(
            driven, on, rounds=options.rounds, seconds=options.seconds, connections=options.connections,
            progress=_progress,
        )  # fmt: skip
        memory = None
        if gateway and IDLE in parts:
            _progress(f"opening {idle.CONNECTIONS} idle connections")
            memory = idle.measure(gateway, on, idle_mib)
    drained = None
    if DRAIN in parts:
        _progress(f"draining {drain.EVENTS} events")
        drained = drain.measure(on)
    does = {contender.name: contender.does for contender in CONTENDERS}
    return report.Results(_conditions(on, options), does, samples, absent, memory, drained)


def _conditions(on: Rig, options: argparse.Namespace) -> list[str]:
    cores = f"The contender alone on core {on.proxy_core}; load, upstream and Redis on core {on.load_core}."
    if on.shares_a_core:
        cores = (
            "There is one core only: contender, load, upstream and Redis share it, so requests/s say little."
        )
    load_words = f"{options.connections} kept connections, GET answered with 500 bytes by {on.upstream_kind}"
    return [
        f"{load_words}; {options.rounds} rounds of {options.seconds} s in rotation, medians.",
        cores,
        "CPU µs: user + system time of the contender per request answered. / Envoy: median of the rounds' ratios.",
    ]


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    why = load.absent()
    if why:
        print(f"benchmark: {why}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    try:
        with tempfile.TemporaryDirectory(prefix="tollkeeper-benchmark-") as name:
            folder = Path(name)
            folder.chmod(
                0o711
            )  # as root we run Postgres as somebody else, who must reach its data through this folder
            with rig(folder) as on:
                results = _measure(on, options, options.only or PARTS)
    except (BenchmarkFailed, EmbeddedServerFailed, TimeoutError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(report.text(results))
    if options.json:
        options.json.write_bytes(report.to_json(results))
    return 1 if results.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
