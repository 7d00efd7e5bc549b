"""The load: wrk with kept connections, and what it counted."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.benchmark.processes import BenchmarkFailed, on_core, program

PATH = "/v1/models"
_MARK = "figures "
# `done` runs once, at the end; the request is built once, at the start. Lua does nothing while the load runs, unless heads
# are to differ.
_SCRIPT = """
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCHMARK_TOKEN")
function done(summary, latency, requests)
  local e = summary.errors
  io.write(('@mark@{"requests":%d,"duration_us":%d,"unanswered":%d,"refused":%d,"p50_us":%.1f,"p99_us":%.1f}')
    :format(summary.requests, summary.duration, e.connect + e.read + e.write + e.timeout, e.status,
            latency:percentile(50), latency:percentile(99)), "\\n")
end
""".replace("@mark@", _MARK)
_DIFFERING_HEADS = """
local number, beginning = 0, nil
function init() beginning = wrk.format():sub(1, -3) end
function request()
  number = number + 1
  return beginning .. "X-Number: " .. number .. "\\r\\n\\r\\n"
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk. `refused`: answers with a status of 400 or more; `unanswered`: socket errors and time-outs."""

    requests: int
    duration_s: float
    refused: int
    unanswered: int
    p50_us: float
    p99_us: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.duration_s

    @property
    def is_clean(self) -> bool:
        return self.requests > 0 and self.refused == 0 and self.unanswered == 0


def absent() -> str | None:
    return None if program("wrk") else "wrk is not installed"


def drive(
    address: str, token: str, *, seconds: int, connections: int, core: int, folder: Path, heads_differ: bool
) -> Load:
    """Load `address` from one thread on `core`. Raises BenchmarkFailed when wrk cannot connect or does not end."""
    script = folder / "load.lua"
    script.write_text(_SCRIPT + (_DIFFERING_HEADS if heads_differ else ""))
    command = [
        str(program("wrk")),
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "5s",
        "-s",
        str(script),
    ]
    environment = {"PATH": os.defpath, "BENCHMARK_TOKEN": token}
    try:
        with on_core(core):
            done = subprocess.run(
                [*command, address + PATH], capture_output=True, text=True, timeout=seconds + 30, env=environment,
                check=False,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BenchmarkFailed(f"wrk did not end within {seconds + 30} s against {address}") from None
    figures = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode != 0 or not figures:
        raise BenchmarkFailed(
            f"wrk against {address} gave no figures: {(done.stdout + done.stderr).strip()[-500:]}"
        )
    read = json.loads(figures[-1].removeprefix(_MARK))
    return Load(
        requests=read["requests"],
        duration_s=read["duration_us"] / 1e6,
        refused=read["refused"],
        unanswered=read["unanswered"],
        p50_us=read["p50_us"],
        p99_us=read["p99_us"],
    )
