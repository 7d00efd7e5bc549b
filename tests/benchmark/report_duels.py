"""The tables, verdicts and JSON of the parts `bodies` and `tls`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict

from tests.benchmark import bodies, tls
from tests.benchmark.duel import Duel
from tests.benchmark.peers import HAProxy
from tests.benchmark.verdict import Verdict, at_least
from tests.benchmark.whole_job import WholeJob

_PEER, _GATEWAY = HAProxy.name, WholeJob.name
_BODY_GOAL = 0.8


def _gains(duel: Duel, kind: bodies.Kind) -> list[float]:
    """Bytes a CPU second of the gateway / HAProxy's, round by round: the peer's CPU / the gateway's."""
    return duel.ratios(kind.name, _PEER, _GATEWAY)


def body_verdicts(duel: Duel | None) -> list[Verdict]:
    """Of the answers. Uploads are reported only."""
    found = []
    for kind in bodies.KINDS:
        if not kind.is_upload:
            gains = _gains(duel, kind) if duel else []
            goal = f"{kind.shown} bodies ≥ {_BODY_GOAL} × HAProxy's throughput per CPU second"
            found.append(at_least(goal, statistics.median(gains) if gains else None, _BODY_GOAL))
    return found


def bodies_table(duel: Duel) -> list[str]:
    left = f"{'load':<32} {_PEER:>9} {_GATEWAY:>9} {'ratio':>6}"
    lines = [
        "Bodies: MB for each CPU second of the contender's own processes; MB/s that came through, and core busy.",
        f"{left}  {'of the rounds':<14} {'MB/s':>15} {'core busy':>13}",
    ]
    lines += [_body_line(duel, kind) for kind in bodies.KINDS if kind.name in duel.samples]
    return [*lines, *_remarks(duel)]


def _body_line(duel: Duel, kind: bodies.Kind) -> str:
    """Bytes a microsecond are megabytes a second."""
    at = duel.summaries(kind.name)
    pair = [at.get(name) for name in (_PEER, _GATEWAY)]
    rates = [f"{kind.body_bytes / one.cpu_us:,.0f}" if one and one.cpu_us else "-" for one in pair]
    through = " / ".join(f"{kind.body_bytes * one.rate / 1e6:,.0f}" if one else "-" for one in pair)
    busy = " / ".join(f"{one.core_share:.0%}" if one else "-" for one in pair)
    gains = _gains(duel, kind)
    ratio = f"{statistics.median(gains):.2f}" if gains else "-"
    spread = f"{min(gains):.2f} to {max(gains):.2f}" if gains else ""
    load = f"{kind.name}, {kind.connections} connections"
    return f"{load:<32} {rates[0]:>9} {rates[1]:>9} {ratio:>6}  {spread:<14} {through:>15} {busy:>13}"


def tls_table(duel: Duel) -> list[str]:
    columns = f"{'CPU µs':>7} {'/ nginx':>8} {'requests/s':>11} {'p50 ms':>7} {'p99 ms':>7} {'core busy':>9}"
    lines = [
        "TLS: 500 bytes to every request; a new connection is a full handshake, a request and a close.",
        f"{'load':<17} {'contender':<14} {columns}",
    ]
    for what in (tls.KEPT, tls.NEW):
        for name, one in duel.summaries(what).items():
            times = duel.ratios(what, name, tls.NginxTls.name)
            ratio = f"{statistics.median(times):.2f}" if times else "-"
            lines.append(
                f"{what:<17} {name:<14} {one.cpu_us:>7.1f} {ratio:>8} {one.rate:>11,.0f} {one.p50_us / 1000:>7.2f} "
                f"{one.p99_us / 1000:>7.2f} {one.core_share:>9.0%}"
            )
    return [*lines, *_remarks(duel)]


def _remarks(duel: Duel) -> Iterator[str]:
    for name, why in duel.absent.items():
        yield f"{name} did not run: {why}"
    yield from duel.remarks


def to_json(duel: Duel) -> dict[str, object]:
    return {
        "loads": {
            what: {
                name: {**asdict(summary), "rounds": [asdict(sample) for sample in duel.samples[what][name]]}
                for name, summary in duel.summaries(what).items()
            }
            for what in duel.samples
        },
        "absent": dict(duel.absent),
        "remarks": list(duel.remarks),
    }
