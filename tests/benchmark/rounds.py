"""Contenders in rotation: one Sample for each contender in each round.

The machine is never quiet, so no contender gets a long turn of its own: all of them run from start to end, pinned
to one core, and each round gives each a few seconds of load. Comparisons are made inside a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import redis

from tests.benchmark import rules
from tests.benchmark.contender import Contender
from tests.benchmark.load import Load, Offer
from tests.benchmark.processes import BenchmarkFailed, core_busy_seconds, cpu_seconds, wait_for
from tests.benchmark.rig import Rig

_SETTLED_TIMEOUT_S = 10.0
_REWRITE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class RedisWork:
    """What a round cost Redis: CPU of its process, and its own account of the scripts."""

    cpu_us_per_request: float
    scripts_per_request: float
    us_per_script: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender in one round. `problems` is empty when the figures mean what they say."""

    load: Load
    cpu_us: float
    """CPU microseconds per request of the working processes."""
    supervisor_us: float
    """The same of its other processes."""
    core_share: float
    """Part of the round in which the working processes had the core: near 1 means that this core was the limit."""
    others_share: float
    """Part of the round in which somebody else had the contender's core."""
    redis: RedisWork | None
    problems: tuple[str, ...]


def rotate(
    contenders: Sequence[Contender],
    rig: Rig,
    offers: Mapping[str, Offer],
    *,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, dict[str, list[Sample]]]:
    """For each offer and each contender one Sample a round."""
    samples: dict[str, dict[str, list[Sample]]] = {
        what: {contender.name: [] for contender in contenders} for what in offers
    }
    for number in range(rounds):
        for what, offer in offers.items():
            for contender in contenders:
                progress(f"round {number + 1} of {rounds}: {what}, {contender.name}")
                samples[what][contender.name].append(measure(contender, rig, offer))
    return samples


def measure(contender: Contender, rig: Rig, offer: Offer) -> Sample:
    """One turn. Raises BenchmarkFailed when the load gives no figures."""
    charged, client = contender.charged(rig), rig.client
    pids, working = contender.pids(), contender.working_pids()
    before = rules.books(client, charged)
    rules.ask(client, "CONFIG", "RESETSTAT")
    cpu = cpu_seconds([*pids, rig.redis_pid])
    busy_s, started = core_busy_seconds(rig.proxy_core), time.monotonic()
    got = offer.drive(contender, rig)
    busy_s, took_s = core_busy_seconds(rig.proxy_core) - busy_s, time.monotonic() - started
    problems = _unsettled(client, charged) if contender.charges else []
    same = contender.pids() == pids
    after = cpu_seconds([*pids, rig.redis_pid]) if same else cpu
    requests = max(got.requests, 1)
    spent_us = {pid: (after[pid] - cpu[pid]) * 1e6 / requests for pid in cpu}
    cpu_us = sum(spent_us[pid] for pid in working)
    if not same:
        problems.append("a process of it was replaced")
    if not got.is_clean:
        problems.append(f"{got.refused} answers of 400 or more, {got.unanswered} socket errors or time-outs")
    work = None
    if contender.charges:
        work = _redis_work(client, spent_us[rig.redis_pid], requests)
        problems += _unbalanced(before, rules.books(client, charged), got.requests, offer.unfinished_max)
        _tidy(client, charged)
    return Sample(
        load=got,
        cpu_us=cpu_us,
        supervisor_us=sum(spent_us[pid] for pid in pids if pid not in working),
        core_share=cpu_us * got.rate / 1e6,
        others_share=max(0.0, busy_s / took_s - sum(spent_us[pid] for pid in pids) * got.rate / 1e6),
        redis=work,
        problems=tuple(problems),
    )


def _unsettled(client: redis.Redis, charged: rules.Charged) -> list[str]:
    """Wait until no hold is open: what the contender does after its last answer belongs to the round."""
    try:
        wait_for(
            lambda: rules.books(client, charged).holds == 0, _SETTLED_TIMEOUT_S, "every hold to be settled"
        )
    except BenchmarkFailed as error:
        return [f"{error}: {rules.books(client, charged).holds} are open"]
    return []


def _unbalanced(before: rules.Books, after: rules.Books, requests: int, unfinished_max: int) -> list[str]:
    """Every answered request is one event and one price; the load may have left some more unanswered."""
    problems = []
    events, spent = after.events - before.events, after.spent - before.spent
    if not requests <= events <= requests + unfinished_max:
        problems.append(f"{requests} requests left {events} events")
    # A request whose client left is an event too, and may cost less.
    if not requests * rules.PRICE_MICROCREDITS <= spent <= events * rules.PRICE_MICROCREDITS:
        problems.append(f"{events} events, {spent} microcredits spent")
    if after.held != before.held:
        problems.append(f"{after.held - before.held} microcredits still held")
    return problems


def _redis_work(client: redis.Redis, cpu_us: float, requests: int) -> RedisWork:
    stats: Mapping[str, Mapping[str, float]] = client.info("commandstats")
    scripts = stats.get("cmdstat_evalsha", {})
    return RedisWork(cpu_us, scripts.get("calls", 0.0) / requests, scripts.get("usec_per_call", 0.0))


def _tidy(client: redis.Redis, charged: rules.Charged) -> None:
    """Empty the stream and rewrite the append-only file now, so that neither happens in somebody's turn."""
    rules.forget_events(client, charged)
    rules.ask(client, "BGREWRITEAOF")

    def is_rewritten() -> bool:
        state: Mapping[str, int] = client.info("persistence")
        return not (state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])

    wait_for(is_rewritten, _REWRITE_TIMEOUT_S, "Redis to rewrite its append-only file")


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians of a contender over its rounds."""

    cpu_us: float
    supervisor_us: float
    rate: float
    p50_us: float
    p99_us: float
    core_share: float
    others_share: float
    redis: RedisWork | None
    problems: tuple[str, ...]


def summarize(samples: Sequence[Sample]) -> Summary:
    def median(value: Callable[[Sample], float]) -> float:
        return statistics.median(value(sample) for sample in samples)

    works = [sample.redis for sample in samples if sample.redis]
    redis_work = RedisWork(
        statistics.median(work.cpu_us_per_request for work in works),
        statistics.median(work.scripts_per_request for work in works),
        statistics.median(work.us_per_script for work in works),
    ) if works else None  # fmt: skip
    return Summary(
        cpu_us=median(lambda sample: sample.cpu_us),
        supervisor_us=median(lambda sample: sample.supervisor_us),
        rate=median(lambda sample: sample.load.rate),
        p50_us=median(lambda sample: sample.load.p50_us),
        p99_us=median(lambda sample: sample.load.p99_us),
        core_share=median(lambda sample: sample.core_share),
        others_share=median(lambda sample: sample.others_share),
        redis=redis_work,
        problems=tuple(dict.fromkeys(problem for sample in samples for problem in sample.problems)),
    )


def ratios(samples: Mapping[str, Sequence[Sample]], name: str, to: str) -> list[float]:
    """CPU a request of `name` / that of `to` in the same round, for each round; empty if either did not run."""
    pairs = list(zip(samples.get(name, ()), samples.get(to, ()), strict=False))
    if any(base.cpu_us == 0 for _, base in pairs):
        return []
    return [sample.cpu_us / base.cpu_us for sample, base in pairs]


def ratio(samples: Mapping[str, Sequence[Sample]], name: str, to: str) -> float | None:
    """The median of `ratios`; None if either did not run."""
    found = ratios(samples, name, to)
    return statistics.median(found) if found else None
