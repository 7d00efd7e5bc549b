"""One run: which contenders start, what is measured in which order, and what could not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from control.embedded import EmbeddedServerFailed
from tests.benchmark import bodies, drain, idle, rounds, tls
from tests.benchmark.contender import Contender
from tests.benchmark.drain import DrainRate
from tests.benchmark.duel import Duel
from tests.benchmark.idle import Memory
from tests.benchmark.load import Wrk
from tests.benchmark.lua import NginxLua
from tests.benchmark.peers import Aiohttp, Envoy, HAProxy, Nginx
from tests.benchmark.processes import BenchmarkFailed
from tests.benchmark.report import Results
from tests.benchmark.rig import Rig
from tests.benchmark.whole_job import WholeJob, WholeJobLogged, WholeJobMetered, WholeJobVaried

CONTENDERS: tuple[type[Contender], ...] = (
    Envoy,
    Nginx,
    HAProxy,
    Aiohttp,
    NginxLua,
    WholeJob,
    WholeJobVaried,
    WholeJobMetered,
    WholeJobLogged,
)
DRAIN, IDLE, BODIES, TLS = "drain", "idle", "bodies", "tls"
PARTS = (*(contender.name for contender in CONTENDERS), IDLE, DRAIN, BODIES, TLS)
_SMALL = "500 bytes"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for; `parts` are names out of PARTS."""

    seconds: int
    rounds: int
    connections: int
    parts: frozenset[str]

    @property
    def short_seconds(self) -> int:
        """Of a turn where there are many loads."""
        return max(1, self.seconds // 2)


@dataclass(slots=True)
class _Found:
    """What the run has found so far. A part that fails is written down, and the others go on."""

    absent: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    samples: dict[str, list[rounds.Sample]] = field(default_factory=dict)
    memory: Memory | None = None
    drained: DrainRate | None = None
    bodies: Duel | None = None
    tls: Duel | None = None

    @contextmanager
    def noting(self, part: str) -> Iterator[None]:
        try:
            yield
        except (BenchmarkFailed, EmbeddedServerFailed) as error:
            self.failures.append(f"{part}: {error}")


def measure(on: Rig, plan: Plan, progress: Progress) -> Results:
    """Run the plan. Raises BenchmarkFailed when the load itself does not work."""
    found = _Found()
    _race(on, plan, progress, found)
    if DRAIN in plan.parts:
        progress(f"draining {drain.EVENTS} events")
        with found.noting(DRAIN):
            found.drained = drain.measure(on)
    if BODIES in plan.parts:
        with found.noting(BODIES):
            found.bodies = bodies.measure(
                on, seconds=plan.short_seconds, turns=plan.rounds, progress=progress
            )
    if TLS in plan.parts:
        with found.noting(TLS):
            found.tls = tls.measure(
                on, seconds=plan.short_seconds, turns=plan.rounds, connections=plan.connections,
                progress=progress,
            )  # fmt: skip
    return Results(
        conditions=_conditions(on, plan),
        does={contender.name: contender.does for contender in CONTENDERS},
        samples=found.samples,
        absent=found.absent,
        failures=found.failures,
        memory=found.memory,
        drain=found.drained,
        bodies=found.bodies,
        tls=found.tls,
    )


def _race(on: Rig, plan: Plan, progress: Progress, found: _Found) -> None:
    """All contenders side by side, in rotation; then the idle connections of the gateway."""
    with ExitStack() as stack:
        running: list[Contender] = []
        for contender in _wanted(plan, found):
            progress(f"starting {contender.name}")
            stack.callback(contender.stop)
            with found.noting(contender.name):
                contender.start(on)
                running.append(contender)
        gateway = next((contender for contender in running if isinstance(contender, WholeJob)), None)
        idle_mib = idle.worker_mib(gateway) if gateway else 0.0
        if running:
            progress("warming up")
        for contender in running:
            rounds.measure(contender, on, Wrk(1, plan.connections))
        racing = [contender for contender in running if contender.name in plan.parts]
        offers = {_SMALL: Wrk(plan.seconds, plan.connections)}
        found.samples = rounds.rotate(racing, on, offers, rounds=plan.rounds, progress=progress)[_SMALL]
        if gateway and IDLE in plan.parts:
            progress(f"opening {idle.CONNECTIONS} idle connections")
            with found.noting(IDLE):
                found.memory = idle.measure(gateway, on, idle_mib)


def _wanted(plan: Plan, found: _Found) -> Iterator[Contender]:
    """Those that the plan needs and this machine has."""
    for kind in CONTENDERS:
        if kind.name not in plan.parts and not (IDLE in plan.parts and kind is WholeJob):
            continue
        contender = kind()
        why = contender.absent()
        if why:
            found.absent[contender.name] = why
        else:
            yield contender


def _conditions(on: Rig, plan: Plan) -> list[str]:
    cores = f"The contender alone on core {on.proxy_core}; load, upstream and Redis on core {on.load_core}."
    if on.shares_a_core:
        cores = "There is one core only: all share it, so requests/s say little."
    offered = f"{plan.connections} kept connections, GET answered with 500 bytes by {on.upstream_kind}"
    return [
        f"{offered}; rounds in rotation: {plan.rounds} of {plan.seconds} s each; medians.",
        cores,
        f"Bodies and TLS, where there are many loads: rounds of {plan.short_seconds} s.",
        "CPU µs: user + system time of the contender per request answered. / Envoy: median of the rounds' ratios.",
    ]
