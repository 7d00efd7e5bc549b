"""Whatever happens in whatever order, the scripts and the model agree on every answer and on all that is stored.

Three organizations of two accounts of two keys share one Redis, two of them a shard; one is prepaid. Chance admits, settles,
settles again, expires and extends, one by one and in batches, edits rules, publishes late, grants credits and moves the clock,
also to the edge of a window and back; after every step all counters, holds and events are compared.
"""

from __future__ import annotations

from collections import Counter

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.contract.walk import Contract

EXAMPLES, STEPS = 300, 100
OPERATIONS_MIN = 20_000
WHAT_MUST_HAPPEN = (
    "admit done", "admit placed", "admit observed", "admit budget", "admit rate", "admit in_flight", "admit status",
    "admit expired", "admit digest", "batch of admit", "settle 1", "settle 0", "batch of settle", "expire 1", "expire 0",
    "expire -1", "batch of expire", "extend done", "extend gone", "extend budget", "extend moved", "edit limit", "edit period",
    "edit status", "edit enforcement", "edit pace", "edit alerts", "edit expiry", "edit late", "grant", "grant closed",
    "new line", "loss booked", "loss found by a top-up", "roll", "back", "alert key", "alert account",
    "alert organization", "alert prepaid",
)  # fmt: skip
HAPPENS_MIN = 20


@pytest.mark.slow
@pytest.mark.timeout(400)  # half a minute where nothing else runs
def test_the_scripts_and_the_model_agree_whatever_happens_in_whatever_order(valkey: redis.Redis) -> None:
    """A walk that fails is printed as it was. Phase.shrink makes it shorter, in more time than a run of all tests has."""
    Contract.client = valkey
    Contract.happened = Counter()
    run_state_machine_as_test(
        Contract,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, derandomize=True, database=None, deadline=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    # A walk that never meets a refusal or a settlement proves nothing about it.
    assert Contract.happened["operation"] >= OPERATIONS_MIN, dict(Contract.happened)
    for what in WHAT_MUST_HAPPEN:
        assert Contract.happened[what] >= HAPPENS_MIN, (what, dict(Contract.happened))
