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
from pathlib import Path

from control.embedded import EmbeddedServerFailed
from tests.benchmark import load, report
from tests.benchmark.processes import BenchmarkFailed
from tests.benchmark.rig import rig
from tests.benchmark.run import PARTS, Plan, measure


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


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    plan = Plan(options.seconds, options.rounds, options.connections, frozenset(options.only or PARTS))
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
                results = measure(on, plan, _progress)
    except (BenchmarkFailed, EmbeddedServerFailed) as error:
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
