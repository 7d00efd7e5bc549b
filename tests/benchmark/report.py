"""The table, the verdicts and the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import orjson

from tests.benchmark import report_duels, rounds
from tests.benchmark.drain import DrainRate
from tests.benchmark.duel import Duel
from tests.benchmark.idle import Memory
from tests.benchmark.rounds import Sample, Summary
from tests.benchmark.verdict import Verdict, at_least, at_most

WHOLE_JOB, METERED, LOGGED = "whole-job", "whole-job-metered", "whole-job-logged"
LUA, ENVOY = "nginx-lua", "envoy"
_OTHERS_SHARE_QUIET = 0.1


@dataclass(frozen=True, slots=True)
class Results:
    """All that one run found. `absent` says why a contender did not run."""

    conditions: Sequence[str]
    does: Mapping[str, str]
    samples: Mapping[str, Sequence[Sample]]
    absent: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()
    memory: Memory | None = None
    drain: DrainRate | None = None
    bodies: Duel | None = None
    tls: Duel | None = None

    @property
    def summaries(self) -> dict[str, Summary]:
        return {name: rounds.summarize(samples) for name, samples in self.samples.items()}

    @property
    def problems(self) -> list[str]:
        found = [
            f"{name}: {problem}" for name, summary in self.summaries.items() for problem in summary.problems
        ]
        for part in (self.drain, self.bodies, self.tls):
            found += part.problems if part else ()
        return [*self.failures, *found]


def verdicts(results: Results) -> list[Verdict]:
    whole, metered = results.summaries.get(WHOLE_JOB), results.summaries.get(METERED)
    redis_us = metered.redis.cpu_us_per_request if metered and metered.redis else None
    memory, drain = results.memory, results.drain
    return [
        at_most("whole job ≤ 1.2 × Envoy's CPU", rounds.ratio(results.samples, WHOLE_JOB, ENVOY), 1.2),
        at_most("whole job ≤ 0.5 × nginx + Lua's CPU", rounds.ratio(results.samples, WHOLE_JOB, LUA), 0.5),
        at_most(
            "whole job, JSON metered ≤ 1.5 × Envoy's CPU", rounds.ratio(results.samples, METERED, ENVOY), 1.5
        ),
        at_most("Redis ≤ 20 µs a request of it", redis_us, 20),
        _throughput(whole),
        at_least("drain ≥ 20 000 events/s into Postgres", drain.rate if drain else None, 20_000),
        at_most(
            "a worker with 5 000 idle connections < 150 MiB", memory.holding_mib if memory else None, 150
        ),
        *report_duels.body_verdicts(results.bodies),
    ]


def _throughput(whole: Summary | None) -> Verdict:
    goal = "whole job ≥ 10 000 requests/s on one core"
    if whole is None:
        return Verdict(goal, None, None)
    idle = (
        ""
        if whole.core_share >= 0.95
        else f", with its core {whole.core_share:.0%} busy: the other one was the limit"
    )
    return Verdict(goal, whole.rate, whole.rate >= 10_000, idle)


def text(results: Results) -> str:
    parts = [results.conditions, _table(results), _details(results)]
    if results.bodies:
        parts.append(report_duels.bodies_table(results.bodies))
    if results.tls:
        parts.append(report_duels.tls_table(results.tls))
    lines = [line for part in parts if part for line in (*part, "")]
    lines += [verdict.line() for verdict in verdicts(results)]
    if results.problems:
        lines += [
            "",
            "This did not work, or its figures are not to be trusted:",
            *(f"  {problem}" for problem in results.problems),
        ]
    return "\n".join(line.rstrip() for line in lines)


def _table(results: Results) -> list[str]:
    if not results.samples and not results.absent:
        return []
    left = f"{'contender':<17} {'what it does':<25} {'CPU µs':>7} {'/ Envoy':>8}"
    lines = [f"{left} {'requests/s':>11} {'p50 ms':>7} {'p99 ms':>7} {'core busy':>9}"]
    for name, one in results.summaries.items():
        times = rounds.ratio(results.samples, name, ENVOY)
        lines.append(
            f"{name:<17} {results.does[name]:<25} {one.cpu_us:>7.1f} {'-' if times is None else f'{times:.2f}':>8} "
            f"{one.rate:>11,.0f} {one.p50_us / 1000:>7.2f} {one.p99_us / 1000:>7.2f} {one.core_share:>9.0%}"
        )
    return lines + [f"{name:<17} did not run: {why}" for name, why in results.absent.items()]


def _details(results: Results) -> list[str]:
    lines = []
    measured = [*results.summaries.values()]
    for duel in (results.bodies, results.tls):
        measured += [one for what in duel.samples for one in duel.summaries(what).values()] if duel else ()
    others = max((one.others_share for one in measured), default=0.0)
    if others > _OTHERS_SHARE_QUIET:
        lines.append(
            f"The machine was not quiet: others had up to {others:.0%} of the contender's core. Run it again."
        )
    for name, one in results.summaries.items():
        if one.redis:
            work = one.redis
            lines.append(
                f"Redis under {name}: {work.cpu_us_per_request:.1f} CPU µs a request; {work.scripts_per_request:.2f} "
                f"scripts a request of {work.us_per_script:.1f} µs each"
            )
        if one.supervisor_us >= 0.05:
            lines.append(f"Other processes of {name}: {one.supervisor_us:.2f} CPU µs a request")
    if results.memory:
        at = results.memory
        each = (at.holding_mib - at.loaded_mib) * 1024 / at.connections
        lines.append(
            f"Memory of a worker: {at.idle_mib:.0f} MiB at start, {at.loaded_mib:.0f} after load, {at.holding_mib:.0f} "
            f"with {at.connections:,} idle connections ({each:.1f} KiB each)"
        )
    if results.drain:
        lines.append(
            f"Drain: {results.drain.events:,} events into Postgres (fsync on) in {results.drain.seconds:.2f} s, "
            f"{results.drain.rate:,.0f} a second"
        )
    return lines


def to_json(results: Results) -> bytes:
    ratios = {name: rounds.ratio(results.samples, name, ENVOY) for name in results.samples}
    whole = {
        "conditions": list(results.conditions),
        "contenders": {
            name: {"does": results.does[name], "ratio_to_envoy": ratios[name], **asdict(summary)}
            for name, summary in results.summaries.items()
        },
        "rounds": {name: [asdict(sample) for sample in samples] for name, samples in results.samples.items()},
        "absent": dict(results.absent),
        "memory": results.memory and asdict(results.memory),
        "drain": results.drain and {**asdict(results.drain), "rate": results.drain.rate},
        "bodies": results.bodies and report_duels.to_json(results.bodies),
        "tls": results.tls and report_duels.to_json(results.tls),
        "verdicts": [asdict(verdict) for verdict in verdicts(results)],
        "problems": results.problems,
    }
    return orjson.dumps(whole, option=orjson.OPT_INDENT_2)
