"""The gateway and one peer under several loads, turn by turn: what the parts `bodies` and `tls` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.benchmark import rounds
from tests.benchmark.contender import Contender
from tests.benchmark.load import Offer
from tests.benchmark.rig import Rig
from tests.benchmark.rounds import Sample, Summary


@dataclass(frozen=True, slots=True)
class Duel:
    """By load and contender, a Sample a round. `absent` says why a contender, or the whole part, did not run."""

    samples: Mapping[str, Mapping[str, Sequence[Sample]]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    def summaries(self, what: str) -> dict[str, Summary]:
        return {name: rounds.summarize(samples) for name, samples in self.samples.get(what, {}).items()}

    def ratios(self, what: str, name: str, to: str) -> list[float]:
        """CPU of `name` / CPU of `to`, round by round."""
        return rounds.ratios(self.samples.get(what, {}), name, to)

    @property
    def problems(self) -> list[str]:
        return [
            f"{what}, {name}: {problem}"
            for what in self.samples
            for name, summary in self.summaries(what).items()
            for problem in summary.problems
        ]


def fight(
    rig: Rig,
    contenders: Sequence[Contender],
    offers: Mapping[str, Offer],
    *,
    warm_up: Offer,
    turns: int,
    progress: Callable[[str], None],
    look_at: Callable[[Contender], str] | None = None,
) -> Duel:
    """Start those that this machine has, let each warm up, and measure. Raises BenchmarkFailed.

    What `look_at` says of each running contender becomes a remark.
    """
    whys = {contender.name: contender.absent() for contender in contenders}
    absent = {name: why for name, why in whys.items() if why}
    present = [contender for contender in contenders if contender.name not in absent]
    with ExitStack() as stack:
        for contender in present:
            progress(f"starting {contender.name}")
            stack.callback(contender.stop)
            contender.start(rig)
        remarks = [look_at(contender) for contender in present] if look_at else []
        for contender in present:
            rounds.measure(contender, rig, warm_up)
        samples = rounds.rotate(present, rig, offers, rounds=turns, progress=progress)
    return Duel(samples, absent, remarks)
