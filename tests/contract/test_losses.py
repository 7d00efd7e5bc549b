"""`grants.lua` and `grants.py` find the same loss, so what is shown of a prepaid organization is what it is refused by."""

from importlib.resources import files

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.contract.grants import Grant, lost_by, packed, unpacked
from gateway.contract.money import AMOUNT_MAX, Microcredits

LOSSES = (files("gateway.contract.scripts") / "grants.lua").read_text("utf-8") + (
    "return ('%.0f'):format(lost_by(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])))"
)
AMOUNTS = st.integers(0, 200) | st.integers(0, AMOUNT_MAX)
MOMENTS_MS = st.integers(0, 20) | st.integers(0, 4_133_980_800_000)
GRANTS = st.lists(st.builds(Grant, MOMENTS_MS, AMOUNTS.map(Microcredits)), max_size=6).map(
    lambda grants: tuple(sorted(grants, key=lambda grant: (grant.expires_at_ms, grant.end)))
)


def test_both_find_the_same_loss(valkey: redis.Redis) -> None:
    @settings(max_examples=500, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(GRANTS, MOMENTS_MS, AMOUNTS, AMOUNTS)
    def agree(grants: tuple[Grant, ...], now_ms: int, used: int, lost: int) -> None:
        answer = valkey.eval(LOSSES, 0, packed(grants), now_ms, used, lost)
        assert int(answer) == lost_by(grants, now_ms, used, lost)

    agree()


@given(GRANTS)
def test_what_is_packed_is_read_back(grants: tuple[Grant, ...]) -> None:
    assert unpacked(packed(grants)) == grants


def test_a_grant_that_expires_takes_the_rest_of_itself_away() -> None:
    grants = [Grant(1_000, Microcredits(100)), Grant(2_000, Microcredits(150))]

    assert lost_by(grants, 999, 30, 0) == 0
    assert lost_by(grants, 1_000, 30, 0) == 70
    assert lost_by(grants, 1_000, 100, 0) == 0
    assert lost_by(grants, 1_500, 60, 70) == 70
    assert lost_by(grants, 2_000, 60, 70) == 90
