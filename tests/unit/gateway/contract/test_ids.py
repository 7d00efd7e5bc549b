"""Identifiers carry their organization's tag, and nothing that merely resembles one is taken for one."""

import pytest

from gateway.contract import ids
from gateway.contract.ids import OrganizationTag

TAG = OrganizationTag("Acme01")
WORDS_THAT_ARE_NOT_IDS = [
    "", "acme", "org_", "sa_", "org_Acme0", "org_Acme012", "org_Acme0!", "org_Acme0\n", "org_Acme01\n", "ORG_Acme01",
    "sa_Acme01012345678", "sa_Acme0101234567890", "xx_Acme010123456789", "sa_Acme01012345678|", "Acme01012345678",
    "Acme01012345678é", "Acme010123456789\n", "Acme01٣123456789",
]  # fmt: skip


def test_an_organization_id_leads_back_to_its_tag() -> None:
    assert ids.organization_id(TAG) == "org_Acme01"
    assert ids.tag_of_organization("org_Acme01") == TAG


@pytest.mark.parametrize(("kind", "prefix"), [("service-account", "sa_"), ("member", "mb_")])
def test_an_account_id_says_its_kind_and_leads_back_to_its_tag(kind: ids.AccountKind, prefix: str) -> None:
    account = ids.new_account_id(TAG, kind)
    assert account.startswith(prefix + TAG)
    assert len(account) == 3 + ids.KEY_ID_LENGTH
    assert ids.tag_of_account(account) == TAG


def test_a_key_id_leads_back_to_its_tag() -> None:
    key = ids.new_key_id(TAG)
    assert len(key) == ids.KEY_ID_LENGTH
    assert ids.tag_of_key(key) == TAG


@pytest.mark.parametrize("word", WORDS_THAT_ARE_NOT_IDS)
def test_what_only_resembles_an_id_has_no_tag(word: str) -> None:
    assert ids.tag_of_organization(word) is None
    assert ids.tag_of_account(word) is None
    assert ids.tag_of_key(word) is None


def test_the_three_kinds_of_id_are_never_taken_for_one_another() -> None:
    account, key = ids.new_account_id(TAG, "member"), ids.new_key_id(TAG)
    assert ids.tag_of_key(account) is None
    assert ids.tag_of_account(key) is None
    assert ids.tag_of_organization(account) is None
    assert ids.tag_of_organization(key) is None


def test_random_ids_use_every_one_of_the_62_characters_and_no_other() -> None:
    drawn = ids.random_base62(20_000)
    assert set(drawn) == set(ids.BASE62)
    assert len(set(ids.BASE62)) == 62
    # Evenly: each character is expected 322 times; 200 is seven standard deviations below.
    assert min(drawn.count(character) for character in ids.BASE62) > 200


def test_ids_do_not_repeat() -> None:
    assert len({ids.new_key_id(TAG) for _ in range(5_000)}) == 5_000


def test_no_id_can_hold_the_character_that_separates_the_parts_of_a_hold() -> None:
    assert "|" not in ids.BASE62
    for made in (ids.new_organization_tag(), ids.new_account_id(TAG, "member"), ids.new_key_id(TAG)):
        assert "|" not in made
    assert ids.tag_of_key("Acme01|123456789") is None
    assert ids.tag_of_account("sa_Acme01|123456789") is None
