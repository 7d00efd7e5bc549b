"""A load on a contender, and what it counted. Most of it is wrk with kept connections."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Protocol

from tests.benchmark.contender import Contender
from tests.benchmark.processes import BenchmarkFailed, on_core, program
from tests.benchmark.rig import Rig

PATH = "/v1/models"
_MARK = "figures "
# `done` runs once, at the end; the request is built once, at the start. Lua does nothing while the load runs, unless heads
# are to differ.
_SCRIPT = """
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCHMARK_TOKEN")
function done(summary, latency, requests)
  local e = summary.errors
  io.write(('@mark@{"requests":%d,"duration_us":%d,"unanswered":%d,"refused":%d,"p50_us":%.1f,"p99_us":%.1f,"bytes":%.0f}')
    :format(summary.requests, summary.duration, e.connect + e.read + e.write + e.timeout, e.status,
            latency:percentile(50), latency:percentile(99), summary.bytes), "\\n")
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
_UPLOAD = """
wrk.method = "POST"
wrk.body = ("u"):rep(@bytes@)
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run counted. `refused`: answers with a status of 400 or more; `unanswered`: socket errors and time-outs."""

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


class Offer(Protocol):
    """A load that can be put on any contender."""

    @property
    def unfinished_max(self) -> int:
        """How many requests it may have begun without counting them, because its time was up."""

    def drive(self, contender: Contender, rig: Rig) -> Load:
        """One run, on the rig's load core. Raises BenchmarkFailed when it gives no figures."""


def absent() -> str | None:
    return None if program("wrk") else "wrk is not installed"


@dataclass(frozen=True, slots=True)
class Wrk:
    """One thread of wrk with kept connections: GET, or POST of `upload_bytes`."""

    seconds: int
    connections: int
    path: str = PATH
    upload_bytes: int = 0
    answer_bytes_min: int = 0

    @property
    def unfinished_max(self) -> int:
        return self.connections

    def drive(self, contender: Contender, rig: Rig) -> Load:
        script = rig.folder / "load.lua"
        script.write_text(self._script(heads_differ=contender.heads_differ))
        options = ["-t1", f"-c{self.connections}", f"-d{self.seconds}s", "--timeout", "5s", "-s", str(script)]
        address = contender.address
        try:
            with on_core(rig.load_core):
                done = subprocess.run(
                    [str(program("wrk")), *options, address + self.path],
                    capture_output=True, text=True, timeout=self.seconds + 30, check=False,
                    env={"PATH": os.defpath, "BENCHMARK_TOKEN": contender.charged(rig).token},
                )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise BenchmarkFailed(f"wrk did not end within {self.seconds + 30} s against {address}") from None
        figures = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
        if done.returncode != 0 or not figures:
            said = (done.stdout + done.stderr).strip()[-500:]
            raise BenchmarkFailed(f"wrk against {address} gave no figures: {said}")
        read = json.loads(figures[-1].removeprefix(_MARK))
        if read["bytes"] < read["requests"] * self.answer_bytes_min:
            raise BenchmarkFailed(f"{read['requests']} answers of {address} had {read['bytes']} bytes in all")
        return Load(
            requests=read["requests"],
            duration_s=read["duration_us"] / 1e6,
            refused=read["refused"],
            unanswered=read["unanswered"],
            p50_us=read["p50_us"],
            p99_us=read["p99_us"],
        )

    def _script(self, *, heads_differ: bool) -> str:
        if self.upload_bytes:
            return _SCRIPT + _UPLOAD.replace("@bytes@", str(self.upload_bytes))
        return _SCRIPT + (_DIFFERING_HEADS if heads_differ else "")
