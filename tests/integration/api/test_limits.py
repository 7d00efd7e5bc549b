"""Enforcement, thresholds of alerts and pace over REST, at every level: what is accepted, and that it is in force at once."""

from __future__ import annotations

import asyncpg
import pytest
from redis.asyncio import Redis

from gateway.contract.ids import OrganizationTag, tag_of_organization
from tests.integration.api.world import LAYOUT, Api, Gateway, Json

LEVELS = ("organization", "account", "key")
PACED = ("account", "key")


class Chain:
    """An organization with an account with a key: where each is patched, and its record in Redis."""

    def __init__(self, organization: Json, account: Json, created: Json) -> None:
        tag = tag_of_organization(organization["id"])
        assert tag is not None
        self.tag: OrganizationTag = tag
        self.token: str = created["token"]
        self.paths = {
            "organization": "/v1/organizations/acme",
            "account": f"/v1/service-accounts/{account['id']}",
            "key": f"/v1/keys/{created['key']['id']}",
        }
        self.records = {
            "organization": LAYOUT.organization(tag),
            "account": LAYOUT.account(account["id"]),
            "key": LAYOUT.key(created["key"]["id"]),
        }


@pytest.fixture
async def chain(api: Api) -> Chain:
    organization = await api.organization("acme")
    account = await api.account()
    return Chain(organization, account, await api.key(account))


@pytest.mark.parametrize("level", LEVELS)
async def test_without_a_word_a_limit_is_enforced_and_alerts_come_at_80_and_100_percent(
    api: Api, chain: Chain, redis_client: Redis, level: str
) -> None:
    shown = (await api.get(chain.paths[level])).body

    assert (shown["enforcement"], shown["alert_thresholds"], shown["observed"]) == ("enforce", [80, 100], 0)
    assert await redis_client.hmget(chain.records[level], ["enforcement", "alerts"]) == [
        b"enforce",
        b"80,100",
    ]


@pytest.mark.parametrize("level", LEVELS)
async def test_a_change_of_thresholds_alone_is_in_redis_before_the_answer(
    api: Api, chain: Chain, redis_client: Redis, level: str
) -> None:
    answer = await api.patch(chain.paths[level], {"alert_thresholds": [100, 50, 50, 1000]})

    assert (answer.status, answer.body["alert_thresholds"]) == (200, [50, 100, 1000])
    assert await redis_client.hget(chain.records[level], "alerts") == b"50,100,1000"

    await api.patch(chain.paths[level], {"alert_thresholds": []})
    assert await redis_client.hget(chain.records[level], "alerts") == b""


@pytest.mark.parametrize("level", LEVELS)
async def test_a_limit_that_is_only_observed_refuses_nothing_from_the_next_request_on_and_counts(
    api: Api, chain: Chain, gateway: Gateway, level: str
) -> None:
    await api.patch(chain.paths[level], {"credit_limit": "0"})
    refused = await gateway.admit(chain.token, 1)
    assert refused[:2] == [b"budget", level.encode()]

    answer = await api.patch(chain.paths[level], {"enforcement": "observe"})
    assert (answer.status, answer.body["enforcement"]) == (200, "observe")
    admitted = await gateway.admit(chain.token, 1)
    assert (admitted[0], admitted[2:]) == (b"observed", [level.encode(), b"budget"])
    assert (await api.get(chain.paths[level])).body["observed"] == 1

    await api.patch(chain.paths[level], {"enforcement": "enforce"})
    assert (await gateway.admit(chain.token, 1))[0] == b"budget"


@pytest.mark.parametrize("level", PACED)
async def test_requests_in_flight_are_bounded_from_the_next_request_on_until_null_lifts_it(
    api: Api, chain: Chain, gateway: Gateway, level: str
) -> None:
    hold = await gateway.admit(chain.token)
    answer = await api.patch(chain.paths[level], {"requests_in_flight": 1})
    assert (answer.body["requests_in_flight"], answer.body["in_flight"]) == (1, 1)
    assert await gateway.admit(chain.token) == [b"in_flight", level.encode(), 1, 1]

    await gateway.settle(hold, 0)
    assert (await api.get(chain.paths[level])).body["in_flight"] == 0
    assert isinstance(await gateway.admit(chain.token), bytes)

    await api.patch(chain.paths[level], {"requests_in_flight": 0})
    assert (await gateway.admit(chain.token))[0] == b"in_flight"
    answer = await api.patch(chain.paths[level], {"requests_in_flight": None})
    assert answer.body["requests_in_flight"] is None
    assert isinstance(await gateway.admit(chain.token), bytes)


@pytest.mark.parametrize("level", PACED)
async def test_requests_a_minute_and_their_burst_are_in_force_from_the_next_request_on(
    api: Api, chain: Chain, gateway: Gateway, redis_client: Redis, level: str
) -> None:
    await api.patch(chain.paths[level], {"requests_per_minute": 60, "burst": 2})
    admitted = [await gateway.admit(chain.token) for _ in range(3)]
    assert [isinstance(answer, bytes) for answer in admitted] == [True, True, False]
    assert admitted[2][:4] == [b"rate", level.encode(), 60, 2]

    answer = await api.patch(chain.paths[level], {"burst": None})
    assert (answer.body["requests_per_minute"], answer.body["burst"]) == (60, None)
    assert await redis_client.hmget(chain.records[level], ["rpm", "burst"]) == [b"60", b"60"]
    assert isinstance(await gateway.admit(chain.token), bytes)


@pytest.mark.parametrize("level", PACED)
async def test_a_burst_goes_with_the_rate_that_it_belongs_to(api: Api, chain: Chain, level: str) -> None:
    without = await api.patch(chain.paths[level], {"burst": 5})
    assert (without.status, without.fields) == (400, ["burst"])
    assert "requests_per_minute" in without.body["detail"]

    await api.patch(chain.paths[level], {"requests_per_minute": 10, "burst": 5})
    contradiction = await api.patch(chain.paths[level], {"requests_per_minute": None, "burst": 5})
    assert (contradiction.status, contradiction.fields) == (400, ["burst"])
    lifted = await api.patch(chain.paths[level], {"requests_per_minute": None})
    assert (lifted.body["requests_per_minute"], lifted.body["burst"]) == (None, None)


async def test_everything_can_be_said_when_something_is_created(api: Api, redis_client: Redis) -> None:
    limits: Json = {"enforcement": "observe", "alert_thresholds": [90], "credit_limit": "5"}
    pace: Json = {"requests_per_minute": 100, "burst": 7, "requests_in_flight": 3}
    organization = await api.organization("acme", **limits)
    account = await api.account(**limits, **pace)
    key = (await api.key(account, **limits, **pace))["key"]

    for shown in (organization, account, key):
        assert {name: shown[name] for name in limits} == limits
    for shown, record in ((account, LAYOUT.account(account["id"])), (key, LAYOUT.key(key["id"]))):
        assert {name: shown[name] for name in pace} == pace
        fields = ["enforcement", "alerts", "rpm", "burst", "in_flight_max"]
        assert await redis_client.hmget(record, fields) == [b"observe", b"90", b"100", b"7", b"3"]


@pytest.mark.parametrize(
    ("body", "code", "fields"),
    [
        ({"enforcement": "shadow"}, "invalid_field", ["enforcement"]),
        ({"enforcement": None}, "invalid_field", ["enforcement"]),
        ({"alert_thresholds": [0]}, "invalid_field", ["alert_thresholds"]),
        ({"alert_thresholds": [1001]}, "invalid_field", ["alert_thresholds"]),
        ({"alert_thresholds": list(range(1, 12))}, "invalid_field", ["alert_thresholds"]),
        ({"alert_thresholds": [80.5]}, "invalid_field", ["alert_thresholds.0"]),
        ({"alert_thresholds": ["80"]}, "invalid_field", ["alert_thresholds.0"]),
        ({"alert_thresholds": [True]}, "invalid_field", ["alert_thresholds.0"]),
        ({"alert_thresholds": None}, "invalid_field", ["alert_thresholds"]),
        ({"alert_thresholds": "80"}, "invalid_field", ["alert_thresholds"]),
        ({"requests_per_minute": 0}, "invalid_field", ["requests_per_minute"]),
        ({"requests_per_minute": 1_000_001}, "invalid_field", ["requests_per_minute"]),
        ({"requests_per_minute": "10"}, "invalid_field", ["requests_per_minute"]),
        ({"requests_per_minute": 1.5}, "invalid_field", ["requests_per_minute"]),
        ({"requests_per_minute": 10, "burst": 0}, "invalid_field", ["burst"]),
        ({"requests_per_minute": 10, "burst": 1_000_001}, "invalid_field", ["burst"]),
        ({"requests_in_flight": -1}, "invalid_field", ["requests_in_flight"]),
        ({"requests_in_flight": 1_000_001}, "invalid_field", ["requests_in_flight"]),
        ({"in_flight": 0}, "immutable_field", ["in_flight"]),
        ({"observed": 0}, "immutable_field", ["observed"]),
        ({"rpm": 5}, "unknown_field", ["rpm"]),
    ],
)
async def test_what_cannot_be_accepted_is_named_and_changes_nothing(
    api: Api, chain: Chain, body: Json, code: str, fields: list[str]
) -> None:
    before = [(await api.get(chain.paths[level])).body for level in PACED]

    for level in PACED:
        answer = await api.patch(chain.paths[level], body)
        assert (answer.status, answer.code, answer.fields) == (400, code, fields)

    assert [(await api.get(chain.paths[level])).body for level in PACED] == before


async def test_an_organization_has_no_pace(api: Api, chain: Chain) -> None:
    answer = await api.patch(chain.paths["organization"], {"requests_per_minute": 5})

    assert (answer.status, answer.code) == (400, "unknown_field")


@pytest.mark.parametrize("level", LEVELS)
async def test_a_limit_lowered_below_what_is_spent_refuses_the_next_request_and_raised_admits_it(
    api: Api, chain: Chain, gateway: Gateway, level: str
) -> None:
    path = chain.paths[level]
    await api.patch(path, {"credit_limit": "1"})
    await gateway.spend(chain.token, 500_000)

    lowered = await api.patch(path, {"credit_limit": "0.4"})
    assert (lowered.body["spent"], lowered.body["remaining"]) == ("0.5", "0")
    assert (await gateway.admit(chain.token))[:2] == [b"budget", level.encode()]

    raised = await api.patch(path, {"credit_limit": "0.6"})
    assert raised.body["remaining"] == "0.1"
    assert isinstance(await gateway.admit(chain.token, 100_000), bytes)
    assert (await gateway.admit(chain.token, 1))[0] == b"budget"

    await api.patch(path, {"credit_limit": None})
    assert isinstance(await gateway.admit(chain.token, 10**12), bytes)


@pytest.mark.parametrize("level", LEVELS)
async def test_a_changed_period_starts_a_fresh_window_and_the_new_window_counts_from_nothing(
    api: Api, chain: Chain, gateway: Gateway, level: str
) -> None:
    path = chain.paths[level]
    await api.patch(path, {"credit_limit": "1", "reset_period": "monthly"})
    await gateway.spend(chain.token, 1_000_000)
    assert (await gateway.admit(chain.token, 1))[0] == b"budget"

    answer = await api.patch(path, {"reset_period": "daily"})

    assert (answer.body["spent"], answer.body["remaining"], answer.body["observed"]) == ("0", "1", 0)
    await gateway.spend(chain.token, 400_000)
    assert (await api.get(path)).body["spent"] == "0.4"


async def test_the_same_said_again_changes_nothing(
    api: Api, chain: Chain, database: asyncpg.Connection
) -> None:
    body = {
        "enforcement": "observe",
        "alert_thresholds": [5],
        "requests_per_minute": 5,
        "requests_in_flight": 5,
    }
    for level in PACED:
        await api.patch(chain.paths[level], body)
    versions = "SELECT version FROM accounts UNION ALL SELECT version FROM keys"
    before = await database.fetch(versions)

    for level in PACED:
        assert (await api.patch(chain.paths[level], body)).status == 200

    assert await database.fetch(versions) == before
