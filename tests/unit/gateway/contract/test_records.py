"""Rule records and holds: what control writes is what the gateway reads."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import ids, records
from gateway.contract.grants import Grant
from gateway.contract.ids import AccountId, KeyId, OrganizationTag, RequestId
from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.contract.periods import NEVER_ENDS_MS
from gateway.contract.records import (
    AccountRules,
    Budget,
    Counters,
    Field,
    Hold,
    Identity,
    KeyRules,
    OrganizationRules,
    Pace,
)
from gateway.contract.token import Digest

TAG = OrganizationTag("Acme01")
ACCOUNT, KEY = AccountId("sa_Acme010123456789"), KeyId("Acme01abcdefghij")
BUDGET = Budget(Microcredits(2_500_000), "monthly", 31, 1_700_000_000_000)
KEY_RULES = KeyRules(
    id=KEY, version=7, status="active", budget=BUDGET, expires_at_ms=None, token_hash="$argon2id$v=19$…",
    account_id=ACCOUNT, account_name="builder", account_kind="service-account",
    organization_tag=TAG, organization_name="acme", digest=Digest(bytes(32)),
)  # fmt: skip
HOLD = Hold(RequestId("01J"), KEY, ACCOUNT, TAG, "models", Microcredits(100), 1_700_000_000_123, (1, 2, 3))
PACKED = b"01J|Acme01abcdefghij|sa_Acme010123456789|Acme01|models|100|1700000000123|1|2|3"


def _as_hash(fields: list[Field]) -> dict[str, bytes]:
    """The hash that Redis holds after HSET with these fields."""
    assert len(fields) % 2 == 0
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    stored = {str(name): value if isinstance(value, bytes) else str(value).encode() for name, value in pairs}
    assert len(stored) == len(pairs), "a field is named twice"
    return stored


def test_a_budget_is_written_in_the_words_that_the_scripts_read() -> None:
    assert _as_hash(BUDGET.fields()) == {
        "limit": b"2500000", "period": b"monthly", "billing_day": b"31", "since": b"1700000000000",
        "enforcement": b"enforce", "alerts": b"80,100",
    }  # fmt: skip


def test_a_budget_that_only_observes_and_tells_nobody_says_so() -> None:
    written = _as_hash(Budget(enforcement="observe", alerts=()).fields())
    assert (written["enforcement"], written["alerts"]) == (b"observe", b"")
    assert _as_hash(Budget(alerts=(5, 50, 1000)).fields())["alerts"] == b"5,50,1000"


@pytest.mark.parametrize(
    ("pace", "rpm", "burst", "in_flight"),
    [
        (Pace(), b"", b"", b""), (Pace(60), b"60", b"60", b""), (Pace(60, 5), b"60", b"5", b""),
        (Pace(in_flight=0), b"", b"", b"0"), (Pace(1, 1_000_000, 7), b"1", b"1000000", b"7"),
    ],
)  # fmt: skip
def test_a_pace_without_a_bound_is_the_empty_string_and_a_burst_is_a_whole_minute_unless_it_is_given(
    pace: Pace, rpm: bytes, burst: bytes, in_flight: bytes
) -> None:
    assert _as_hash(pace.fields()) == {"rpm": rpm, "burst": burst, "in_flight_max": in_flight}


def test_grants_are_written_in_the_order_in_which_they_expire() -> None:
    grants = (Grant(1_700_000_000_000, Microcredits(5)), Grant(1_800_000_000_000, Microcredits(12)))
    rules = OrganizationRules(TAG, "acme", 1, "active", BUDGET, grants)
    assert _as_hash(rules.fields())["grants"] == b"1700000000000:5,1800000000000:12"
    assert _as_hash(replace(rules, grants=()).fields())["grants"] == b""


def test_a_pace_belongs_to_keys_and_accounts_and_grants_to_organizations() -> None:
    account = _as_hash(AccountRules(ACCOUNT, "builder", "service-account", 1, "active", BUDGET).fields())
    organization = _as_hash(OrganizationRules(TAG, "acme", 1, "active", BUDGET).fields())
    for paced in (account, _as_hash(KEY_RULES.fields())):
        assert {"rpm", "burst", "in_flight_max"} <= set(paced)
        assert "grants" not in paced
    assert not {"rpm", "burst", "in_flight_max"} & set(organization)


def test_no_limit_is_the_empty_string_and_a_limit_of_zero_is_zero() -> None:
    assert _as_hash(Budget(None).fields())["limit"] == b""
    assert _as_hash(Budget(Microcredits(0)).fields())["limit"] == b"0"


def test_rules_never_write_a_field_that_belongs_to_the_scripts() -> None:
    of_scripts = {*records.COUNTER_FIELDS, "alert_at", "version"}
    organization = OrganizationRules(TAG, "acme", 1, "active", BUDGET)
    account = AccountRules(ACCOUNT, "builder", "service-account", 1, "active", BUDGET)
    for rules in (organization, account, KEY_RULES):
        written = _as_hash(rules.fields())
        assert not of_scripts & set(written)
        assert {"status", "limit", "period", "billing_day", "since", "enforcement", "alerts"} <= set(written)


def test_an_expiry_of_none_is_written_as_zero() -> None:
    assert _as_hash(KEY_RULES.fields())["expires_at"] == b"0"
    assert _as_hash(replace(KEY_RULES, expires_at_ms=5).fields())["expires_at"] == b"5"


def test_a_digest_is_written_only_by_the_call_that_knows_it() -> None:
    assert _as_hash(KEY_RULES.fields())["digest"] == bytes(32)
    assert "digest" not in _as_hash(replace(KEY_RULES, digest=None).fields())


@pytest.mark.parametrize("digest", [None, Digest(b"\x00\xff" * 16)])
def test_key_facts_are_read_back_as_they_were_written(digest: Digest | None) -> None:
    stored = _as_hash(replace(KEY_RULES, digest=digest).fields())
    facts = records.read_key_facts(KEY, [stored.get(name) for name in records.IDENTITY_FIELDS])
    assert facts is not None
    assert facts.digest == digest
    assert facts.token_hash == KEY_RULES.token_hash
    assert facts.identity == Identity(KEY, ACCOUNT, "builder", "service-account", TAG, "acme")
    assert facts.identity.principal == "service-account/acme/builder"


def test_a_member_is_named_as_a_member() -> None:
    stored = _as_hash(replace(KEY_RULES, account_kind="member", account_name="ada").fields())
    facts = records.read_key_facts(KEY, [stored.get(name) for name in records.IDENTITY_FIELDS])
    assert facts is not None
    assert facts.identity.principal == "member/acme/ada"


@pytest.mark.parametrize("absent", [name for name in records.IDENTITY_FIELDS if name != "digest"])
def test_a_key_record_that_lacks_a_fact_is_no_record(absent: str) -> None:
    stored = _as_hash(KEY_RULES.fields())
    del stored[absent]
    assert records.read_key_facts(KEY, [stored.get(name) for name in records.IDENTITY_FIELDS]) is None


def test_a_key_record_that_is_not_there_is_no_record() -> None:
    assert records.read_key_facts(KEY, [None] * len(records.IDENTITY_FIELDS)) is None


def test_counters_are_read_and_a_record_without_a_window_has_none() -> None:
    stored = {
        "window": b"5", "window_end": b"9", "spent": b"20", "held": b"30", "in_flight": b"4", "tat": b"1700000000000000",
        "observed": b"6", "lost": b"7", "alerted": b"80",
    }  # fmt: skip
    assert set(stored) == set(records.COUNTER_FIELDS)
    assert records.read_counters([stored[name] for name in records.COUNTER_FIELDS]) == Counters(
        window_ms=5, spent=Microcredits(20), held=Microcredits(30), in_flight=4, tat_us=1_700_000_000_000_000, observed=6,
        lost=Microcredits(7), alerted=80,
    )  # fmt: skip
    older = [b"5", *[None] * (len(stored) - 1)]
    assert records.read_counters(older) == Counters(5, Microcredits(0), Microcredits(0))
    assert records.read_counters([None] * len(stored)) is None


def test_a_packed_hold_is_read_whole() -> None:
    assert Hold.unpack(PACKED) == HOLD


WORDS = st.text(alphabet=ids.BASE62 + "-_.", min_size=1, max_size=40)
TIMES = st.integers(0, NEVER_ENDS_MS)


@given(WORDS, WORDS, st.integers(0, AMOUNT_MAX), TIMES, st.tuples(TIMES, TIMES, TIMES))
def test_any_hold_that_a_script_can_pack_is_read_whole(
    request: str, route: str, amount: int, admitted_at_ms: int, windows: tuple[int, int, int]
) -> None:
    packed = "|".join(map(str, (request, KEY, ACCOUNT, TAG, route, amount, admitted_at_ms, *windows)))
    expected = Hold(
        RequestId(request), KEY, ACCOUNT, TAG, route, Microcredits(amount), admitted_at_ms, windows
    )
    assert Hold.unpack(packed.encode()) == expected


@pytest.mark.parametrize(
    "member",
    [b"", b"|", PACKED + b"|4", PACKED[:-2], PACKED.replace(b"|100|", b"|much|"),
     PACKED.replace(b"models", b"m\xc3\xa9"),
     PACKED.replace(b"models", b"mod|els"), PACKED.replace(b"|1|", b"||"), b"x" * 10_000],
)  # fmt: skip
def test_what_is_not_a_hold_is_an_error_of_bounded_length(member: bytes) -> None:
    with pytest.raises(ValueError, match="not a hold") as raised:
        Hold.unpack(member)
    assert len(str(raised.value)) < 1_000
