"""The chain of limits above a key over REST: what it says is what the next request meets."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.api.world import Api, Gateway, Json


async def _quota(api: Api, created: Json) -> Json:
    answer = await api.get(f"/v1/keys/{created['key']['id']}/quota")
    assert answer.status == 200, answer.body
    return dict(answer.body)


async def test_the_chain_is_told_from_the_key_up_with_its_figures(api: Api, gateway: Gateway) -> None:
    organization = await api.organization("acme", credit_limit="20", reset_period="monthly")
    account = await api.account(requests_per_minute=100, requests_in_flight=5)
    created = await api.key(account, credit_limit="50", enforcement="observe")
    await gateway.spend(created["token"], 2_000_000)
    await gateway.admit(created["token"], 3_000_000)

    quota = await _quota(api, created)

    assert [(link["level"], link["id"]) for link in quota["chain"]] == [
        ("key", created["key"]["id"]),
        ("account", account["id"]),
        ("organization", organization["id"]),
    ]
    key, of_account, of_organization = quota["chain"]
    assert (key["credit_limit"], key["remaining"], key["enforcement"]) == ("50", "45", "observe")
    assert (of_account["credit_limit"], of_account["requests_per_minute"], of_account["in_flight"]) == (
        None,
        100,
        1,
    )
    figures = ("credit_limit", "spent", "held", "remaining", "reset_period")
    assert [of_organization[name] for name in figures] == ["20", "2", "3", "15", "monthly"]
    assert of_organization["resets_at"].endswith("T00:00:00.000Z")
    assert (quota["binding"], quota["effective_remaining"], quota["admits"]) == ("organization", "15", True)
    assert quota["explanation"].startswith(
        "Inherits the organization's limit, 20 credits shared: 15 left, afresh at "
    )
    assert quota["explanation"].endswith("; the limit of the key is only observed.")


@pytest.mark.parametrize(
    ("level", "limits", "reason", "answer"),
    [
        ("key", {"credit_limit": "0"}, "budget_exceeded", b"budget"),
        ("account", {"credit_limit": "0"}, "budget_exceeded", b"budget"),
        ("organization", {"credit_limit": "0"}, "budget_exceeded", b"budget"),
        ("key", {"requests_in_flight": 0}, "too_many_in_flight", b"in_flight"),
        ("account", {"requests_per_minute": 1}, "rate_limited", b"rate"),
    ],
)
async def test_what_is_foreseen_is_what_the_next_request_meets(
    api: Api, gateway: Gateway, level: str, limits: Json, reason: str, answer: bytes
) -> None:
    await api.organization("acme")
    account = await api.account()
    created = await api.key(account)
    paths = {
        "organization": "/v1/organizations/acme",
        "account": f"/v1/service-accounts/{account['id']}",
        "key": f"/v1/keys/{created['key']['id']}",
    }
    assert (await _quota(api, created))["admits"] is True
    await api.patch(paths[level], limits)
    if "requests_per_minute" in limits:
        await gateway.spend(created["token"], 0)

    quota = await _quota(api, created)
    met: Any = await gateway.admit(created["token"])

    assert (quota["admits"], quota["refusal"]["reason"], quota["refusal"]["level"]) == (False, reason, level)
    assert met[:2] == [answer, level.encode()]
    await api.patch(paths[level], dict.fromkeys(limits))
    assert (await _quota(api, created))["admits"] is True
    assert isinstance(await gateway.admit(created["token"]), bytes)


async def test_a_raised_pace_admits_the_next_request_and_the_quota_says_so(
    api: Api, gateway: Gateway
) -> None:
    await api.organization("acme")
    created = await api.key(await api.account(), requests_per_minute=1, burst=5)
    for _ in range(5):
        await gateway.spend(created["token"], 0)
    assert (await _quota(api, created))["refusal"]["reason"] == "rate_limited"

    await api.patch(f"/v1/keys/{created['key']['id']}", {"requests_per_minute": 6_000, "burst": None})

    assert (await _quota(api, created))["admits"] is True
    assert isinstance(await gateway.admit(created["token"]), bytes)


async def test_a_prepaid_organization_binds_with_what_is_left_of_its_grants(
    api: Api, gateway: Gateway
) -> None:
    await api.organization("acme", billing="prepaid")
    created = await api.key(await api.account())
    assert (await _quota(api, created))["refusal"]["reason"] == "budget_exceeded"

    await api.post("/v1/organizations/acme/grants", {"amount": "5"})
    await gateway.spend(created["token"], 2_000_000)

    quota = await _quota(api, created)
    assert (quota["binding"], quota["effective_remaining"], quota["admits"]) == ("organization", "3", True)


async def test_a_revoked_key_has_a_quota_that_says_so(api: Api, gateway: Gateway) -> None:
    await api.organization("acme")
    created = await api.key(await api.account())
    await api.post(f"/v1/keys/{created['key']['id']}/revoke")

    assert (await _quota(api, created))["refusal"]["reason"] == "key_revoked"


async def test_while_redis_is_empty_nothing_is_admitted(api: Api, redis_client: Redis) -> None:
    await api.organization("acme")
    created = await api.key(await api.account())
    await redis_client.flushall()

    quota = await _quota(api, created)

    assert (quota["admits"], quota["refusal"]["reason"], quota["refusal"]["level"]) == (
        False,
        "not_ready",
        None,
    )


async def test_there_is_no_quota_of_a_key_that_does_not_exist(api: Api) -> None:
    for identifier in ("0" * 16, "x"):
        answer = await api.get(f"/v1/keys/{identifier}/quota")
        assert (answer.status, answer.code) == (404, "key_not_found")
