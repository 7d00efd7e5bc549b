"""Counts and timings of the data plane. Plain numbers while requests run, Prometheus families when somebody asks.

A worker counts in dictionaries and lists (0.1 µs a count). On a scrape the supervisor collects a snapshot from every
worker, adds them up, and renders them; a worker that died leaves its last snapshot in the sum, so counters never step back.
Label values come from bounded sets only: route names, outcomes, reasons, status classes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip

Snapshot = dict[str, Any]


class Histogram:
    """Counts by bucket of seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total += seconds


class Metrics:
    """What one worker has counted since it started."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        """(route, outcome, hundreds of the status) -> requests that were admitted and have ended."""
        self.refusals: defaultdict[tuple[str, str], int] = defaultdict(int)
        """(route or "", reason) -> requests that were not."""
        self.observed: defaultdict[tuple[str, str], int] = defaultdict(int)
        """(route, reason) -> requests that a level would have refused which only observes."""
        self.events: defaultdict[str, int] = defaultdict(int)
        """Things worth a count and no line each: see EVENT_HELP."""
        self.admission = Histogram()
        self.upstream = Histogram()
        self.whole = Histogram()
        self.bytes_in = 0
        self.bytes_out = 0
        self.cost = 0
        self.overshoot = 0
        self.gauges: dict[str, float] = {}
        self.targets: list[tuple[str, str, int, int, int]] = []
        """(route, target, whether it takes requests, connections, pending), as a snapshot is taken."""

    def snapshot(self) -> Snapshot:
        """Everything, as JSON can carry it."""
        return {
            "requests": [[*labels, count] for labels, count in self.requests.items()],
            "refusals": [[*labels, count] for labels, count in self.refusals.items()],
            "observed": [[*labels, count] for labels, count in self.observed.items()],
            "events": dict(self.events),
            "histograms": {
                name: {"counts": histogram.counts, "total": histogram.total}
                for name, histogram in (
                    ("admission", self.admission), ("upstream", self.upstream), ("whole", self.whole),
                )
            },
            "totals": {
                "bytes_in": self.bytes_in, "bytes_out": self.bytes_out,
                "cost": self.cost, "overshoot": self.overshoot,
            },
            "gauges": dict(self.gauges),
            "targets": [list(row) for row in self.targets],
        }  # fmt: skip


_HISTOGRAM_HELP: Final = {
    "admission": "Seconds from a request's head read to the answer of admit.",
    "upstream": "Seconds from the request sent upstream to the head of the answer.",
    "whole": "Seconds from a request's head read to the end of its answer.",
}
_TOTAL_HELP: Final = {
    "bytes_in": ("tollkeeper_request_body_bytes", "Bytes of request bodies of admitted requests."),
    "bytes_out": ("tollkeeper_response_body_bytes", "Bytes of response bodies of admitted requests."),
    "cost": ("tollkeeper_cost_microcredits", "Cost of settled requests."),
    "overshoot": ("tollkeeper_overshoot_microcredits", "Cost above what was held."),
}
EVENT_HELP: Final = (
    "What is counted instead of logged: bad heads, dead peers, lost Redis connections, late settlements."
)
_GAUGE_HELP: Final = {
    "in_flight": "Requests admitted and not yet settled.",
    "client_connections": "Open connections of workloads.",
    "upstream_connections": "Open connections to upstreams.",
    "upstream_waiting": "Requests waiting for an upstream connection.",
    "redis_pipe_depth": "Admissions and settlements that Redis has not answered yet.",
    "cold_lookups": "Tokens being looked up.",
    "known_callers": "Tokens recognised from memory.",
    "unsettled": "Settlements kept until Redis is back.",
    "ready": "Workers that are ready to admit.",
    "workers": "Workers running.",
}

_TARGET_HELP: Final = (
    ("up", "Workers to which the target is neither ejected nor found ill by health checks."),
    ("connections", "Open connections to the target."),
    ("pending", "Requests under way at the target, or waiting for a connection to it."),
)


def add_snapshots(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum of several workers' snapshots."""
    requests: defaultdict[tuple[str, ...], int] = defaultdict(int)
    refusals: defaultdict[tuple[str, ...], int] = defaultdict(int)
    observed: defaultdict[tuple[str, ...], int] = defaultdict(int)
    events: defaultdict[str, int] = defaultdict(int)
    totals: defaultdict[str, int] = defaultdict(int)
    gauges: defaultdict[str, float] = defaultdict(float)
    targets: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    histograms = {name: Histogram() for name in _HISTOGRAM_HELP}
    for snapshot in snapshots:
        for sums, name in ((requests, "requests"), (refusals, "refusals"), (observed, "observed")):
            rows = snapshot[name]
            for *labels, count in rows:
                sums[tuple(labels)] += count
        for target, source in ((events, "events"), (totals, "totals"), (gauges, "gauges")):
            for name, value in snapshot[source].items():
                target[name] += value
        for route, target, *values in snapshot["targets"]:
            row = targets[(route, target)]
            row[:] = [a + b for a, b in zip(row, values, strict=True)]
        for name, histogram in histograms.items():
            given = snapshot["histograms"][name]
            histogram.counts = [a + b for a, b in zip(histogram.counts, given["counts"], strict=True)]
            histogram.total += given["total"]
    return {
        "requests": [[*labels, count] for labels, count in requests.items()],
        "refusals": [[*labels, count] for labels, count in refusals.items()],
        "observed": [[*labels, count] for labels, count in observed.items()],
        "events": dict(events),
        "histograms": {name: {"counts": h.counts, "total": h.total} for name, h in histograms.items()},
        "totals": dict(totals),
        "gauges": dict(gauges),
        "targets": [[*labels, *values] for labels, values in targets.items()],
    }


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """What remains of a worker that is gone: its counts, not its states."""
    return {**snapshot, "gauges": {}, "targets": []}


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """A snapshot as Prometheus families."""
    requests = CounterMetricFamily(
        "tollkeeper_requests",
        "Admitted requests that have ended.",
        labels=("route", "outcome", "status_class"),
    )
    for route, outcome, hundreds, count in snapshot["requests"]:
        requests.add_metric((route, outcome, f"{hundreds}xx" if hundreds else "none"), count)
    yield requests
    refusals = CounterMetricFamily(
        "tollkeeper_refusals",
        "Requests that were refused, and answers that failed.",
        labels=("route", "reason"),
    )
    for route, reason, count in snapshot["refusals"]:
        refusals.add_metric((route, reason), count)
    yield refusals
    observed = CounterMetricFamily(
        "tollkeeper_observed",
        "Requests that were let through, and that a level which only observes would have refused.",
        labels=("route", "reason"),
    )
    for route, reason, count in snapshot["observed"]:
        observed.add_metric((route, reason), count)
    yield observed
    events = CounterMetricFamily("tollkeeper_events", EVENT_HELP, labels=("event",))
    for name, count in snapshot["events"].items():
        events.add_metric((name,), count)
    yield events
    for key, (name, text) in _TOTAL_HELP.items():
        yield CounterMetricFamily(name, text, value=snapshot["totals"].get(key, 0))
    for key, text in _HISTOGRAM_HELP.items():
        yield _histogram_family(f"tollkeeper_{key}_seconds", text, snapshot["histograms"][key])
    for key, text in _GAUGE_HELP.items():
        yield GaugeMetricFamily(f"tollkeeper_{key}", text, value=snapshot["gauges"].get(key, 0))
    for place, (name, text) in enumerate(_TARGET_HELP):
        family = GaugeMetricFamily(f"tollkeeper_target_{name}", text, labels=("route", "target"))
        for row in snapshot["targets"]:
            family.add_metric((row[0], row[1]), row[2 + place])
        yield family


def _histogram_family(name: str, text: str, histogram: Mapping[str, Any]) -> HistogramMetricFamily:
    buckets: list[tuple[str, float]] = []
    running = 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), histogram["counts"], strict=True):
        running += count
        buckets.append((bound, running))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram["total"])
