"""Key names: every key of one organization lies in one slot of Redis Cluster, wherever it is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from gateway.contract import ids
from gateway.contract.ids import BASE62, AccountId, KeyId, OrganizationTag
from gateway.contract.layout import META, SHARDS_DEFAULT, SHARDS_MAX, Layout

TAGS = st.text(alphabet=BASE62, min_size=ids.TAG_LENGTH, max_size=ids.TAG_LENGTH).map(OrganizationTag)
SHARD_COUNTS = st.integers(1, SHARDS_MAX)


def _all_keys(layout: Layout, tag: OrganizationTag) -> list[str]:
    shard = layout.shard_of(tag)
    accounts = [ids.new_account_id(tag, "service-account"), ids.new_account_id(tag, "member")]
    return [
        layout.organization(tag),
        *(layout.account(account) for account in accounts),
        *(layout.key(ids.new_key_id(tag)) for _ in range(3)),
        layout.holds(shard),
        layout.events(shard),
    ]


@given(TAGS, SHARD_COUNTS)
def test_all_keys_of_one_organization_are_in_one_slot(tag: OrganizationTag, shards: int) -> None:
    keys = _all_keys(Layout(shards), tag)
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert len(set(keys)) == len(keys)


@given(TAGS, SHARD_COUNTS)
def test_a_shard_is_one_of_the_installations(tag: OrganizationTag, shards: int) -> None:
    assert 0 <= Layout(shards).shard_of(tag) < shards


def test_the_names_are_those_of_the_design() -> None:
    layout, tag = Layout(), OrganizationTag("Acme01")
    assert layout.shard_of(tag) == 11
    assert layout.organization(tag) == "tk:{11}:org:Acme01"
    assert layout.account(AccountId("sa_Acme010123456789")) == "tk:{11}:account:sa_Acme010123456789"
    assert layout.key(KeyId("Acme010123456789")) == "tk:{11}:key:Acme010123456789"
    assert layout.holds(5) == "tk:{05}:holds"
    assert layout.events(5) == "tk:{05}:events"
    assert META == "tk:meta"


def test_organizations_spread_over_every_shard() -> None:
    layout = Layout()
    counts = [0] * SHARDS_DEFAULT
    for _ in range(4_000):
        counts[layout.shard_of(ids.new_organization_tag())] += 1
    # 250 are expected on each; 140 is seven standard deviations below.
    assert min(counts) > 140


def test_shards_lie_in_different_slots_so_that_a_cluster_can_spread_them() -> None:
    layout = Layout(SHARDS_MAX)
    assert len({key_slot(layout.holds(shard).encode()) for shard in range(SHARDS_MAX)}) == SHARDS_MAX


@pytest.mark.parametrize("shards", [0, -1, SHARDS_MAX + 1])
def test_an_impossible_number_of_shards_is_an_error(shards: int) -> None:
    with pytest.raises(ValueError, match="shards must be 1 to 100"):
        Layout(shards)
