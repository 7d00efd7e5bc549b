"""Which members of a holds set may reach the settle script."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control.jobs.expire import read_hold
from gateway.contract.ids import new_account_id, new_key_id, new_organization_tag
from gateway.contract.layout import Layout

LAYOUT = Layout()
TAG = new_organization_tag()
SHARD = LAYOUT.shard_of(TAG)
PARTS = [
    b"req_1",
    new_key_id(TAG).encode(),
    new_account_id(TAG, "service-account").encode(),
    TAG.encode(),
    b"models",
]
NUMBERS = [b"500", b"1760000000000", b"0", b"1760000000000", b"7"]


def test_a_hold_of_this_shard_is_read() -> None:
    hold = read_hold(LAYOUT, SHARD, b"|".join(PARTS + NUMBERS))
    assert hold is not None
    assert (hold.amount, hold.admitted_at_ms, hold.windows) == (
        500,
        1_760_000_000_000,
        (0, 1_760_000_000_000, 7),
    )


def test_a_hold_of_another_shard_is_not() -> None:
    assert read_hold(LAYOUT, (SHARD + 1) % LAYOUT.shards, b"|".join(PARTS + NUMBERS)) is None


@given(
    st.integers(0, 4),
    st.sampled_from([b"", b"-1", b"+1", b" 1", b"1 ", b"1_0", b"1.0", b"1e3", b"\xd9\xa1", b"nan"]),
)
def test_a_number_that_the_script_would_not_read_is_no_hold(position: int, text: bytes) -> None:
    numbers = [*NUMBERS]
    numbers[position] = text
    assert read_hold(LAYOUT, SHARD, b"|".join(PARTS + numbers)) is None


@given(st.binary(max_size=80))
def test_anything_else_is_no_hold_and_no_failure(member: bytes) -> None:
    assert read_hold(LAYOUT, SHARD, member) is None


def test_ids_that_belong_to_different_organizations_are_no_hold() -> None:
    other = new_account_id(new_organization_tag(), "service-account").encode()
    assert read_hold(LAYOUT, SHARD, b"|".join([*PARTS[:2], other, *PARTS[3:], *NUMBERS])) is None
