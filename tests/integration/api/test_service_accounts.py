"""Service accounts over REST."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from redis.asyncio import Redis

from tests.integration.api.world import LAYOUT, Api, Gateway


@pytest.fixture(autouse=True)
async def acme(api: Api) -> None:
    await api.organization("acme")


async def test_an_account_says_as_whom_its_workloads_run(api: Api) -> None:
    created = await api.account(
        "acme", "production-worker", display_name="Production Worker", description="Runs."
    )

    shown = await api.get(f"/v1/service-accounts/{created['id']}")

    assert shown.body["principal"] == "service-account/acme/production-worker"
    assert (shown.body["display_name"], shown.body["status"]) == ("Production Worker", "active")
    assert (shown.body["organization_name"], shown.body["created_by"]) == ("acme", "operator")


async def test_a_created_account_is_in_redis_when_the_answer_comes(api: Api, redis_client: Redis) -> None:
    created = await api.account("acme", "nightly-report", credit_limit="500", reset_period="monthly")

    fields = await redis_client.hmget(
        LAYOUT.account(created["id"]), ["status", "name", "limit", "period", "kind"]
    )
    assert fields == [b"active", b"nightly-report", b"500000000", b"monthly", b"service-account"]


async def test_a_good_name_is_taken_as_it_is_and_a_poor_one_with_a_warning(api: Api) -> None:
    assert (await api.account("acme", "nightly-report"))["warnings"] == []
    assert "'sa1'" in (await api.account("acme", "sa1"))["warnings"][0]


async def test_a_name_belongs_to_one_organization_and_is_free_in_another(api: Api) -> None:
    await api.organization("other")
    await api.account("acme", "nightly-report")

    again = await api.post("/v1/organizations/acme/service-accounts", {"name": "nightly-report"})

    assert (again.status, again.code) == (409, "name_taken")
    assert (await api.account("other", "nightly-report"))["name"] == "nightly-report"


async def test_the_name_of_a_deleted_account_is_never_used_again(api: Api) -> None:
    created = await api.account("acme", "nightly-report")
    await api.delete(f"/v1/service-accounts/{created['id']}")

    again = await api.post("/v1/organizations/acme/service-accounts", {"name": "nightly-report"})

    assert (again.status, again.code) == (409, "name_taken")


async def test_what_people_see_changes_and_the_name_does_not(api: Api) -> None:
    created = await api.account("acme", "nightly-report")
    path = f"/v1/service-accounts/{created['id']}"

    changed = await api.patch(path, {"display_name": "Weekly report", "description": None})
    refused = await api.patch(path, {"name": "weekly-report"})

    assert (changed.body["display_name"], changed.body["name"]) == ("Weekly report", "nightly-report")
    assert (refused.status, refused.code) == (400, "immutable_field")


async def test_no_key_of_an_inactive_account_passes_once_that_is_answered(api: Api, gateway: Gateway) -> None:
    account = await api.account()
    secret = (await api.key(account))["token"]
    assert isinstance(await gateway.admit(secret), bytes)

    answer = await api.post(f"/v1/service-accounts/{account['id']}/deactivate")

    assert (answer.status, answer.body["status"]) == (200, "inactive")
    assert await gateway.admit(secret) == [b"status", b"account", b"inactive"]


async def test_an_account_that_is_active_again_revives_only_keys_that_were_not_revoked(
    api: Api, gateway: Gateway
) -> None:
    account = await api.account()
    kept, revoked = await api.key(account, "kept"), await api.key(account, "revoked")
    await api.post(f"/v1/keys/{revoked['key']['id']}/revoke")
    await api.post(f"/v1/service-accounts/{account['id']}/deactivate")

    await api.post(f"/v1/service-accounts/{account['id']}/activate")

    assert isinstance(await gateway.admit(kept["token"]), bytes)
    assert await gateway.admit(revoked["token"]) == [b"status", b"key", b"revoked"]


async def test_activating_and_deactivating_may_be_said_twice(api: Api) -> None:
    account = await api.account()

    for action, status in (("deactivate", "inactive"), ("activate", "active")):
        for _ in range(2):
            answer = await api.post(f"/v1/service-accounts/{account['id']}/{action}")
            assert (answer.status, answer.body["status"]) == (200, status)


async def test_deleting_an_account_revokes_its_keys_and_lists_them(api: Api, gateway: Gateway) -> None:
    account = await api.account()
    first, second = await api.key(account, "first"), await api.key(account, "second")
    await api.post(f"/v1/keys/{second['key']['id']}/disable")

    answer = await api.delete(f"/v1/service-accounts/{account['id']}")

    assert (answer.status, answer.body["status"]) == (200, "deleted")
    assert [key["name"] for key in answer.body["revoked_keys"]] == ["first", "second"]
    assert set(answer.body["revoked_keys"][0]) == {"id", "name", "hint", "last_used_at"}
    assert await gateway.admit(first["token"]) == [b"status", b"key", b"revoked"]
    assert (await api.get(f"/v1/keys/{first['key']['id']}")).body["status"] == "revoked"


async def test_a_deleted_account_is_still_shown_by_its_id_and_hidden_in_lists(api: Api) -> None:
    account = await api.account()
    await api.delete(f"/v1/service-accounts/{account['id']}")
    path = "/v1/organizations/acme/service-accounts"

    shown = await api.get(f"/v1/service-accounts/{account['id']}")

    assert (shown.status, shown.body["status"]) == (200, "deleted")
    assert (await api.get(path)).body["data"] == []
    assert [row["id"] for row in (await api.get(f"{path}?status=all")).body["data"]] == [account["id"]]
    assert [row["id"] for row in (await api.get(f"{path}?status=deleted")).body["data"]] == [account["id"]]


async def test_deletion_is_final(api: Api) -> None:
    account = await api.account()
    path = f"/v1/service-accounts/{account['id']}"
    await api.delete(path)

    again = await api.delete(path)
    refused = [
        await api.post(f"{path}/activate"),
        await api.patch(path, {"credit_limit": "5"}),
        await api.post(f"{path}/keys", {"name": "late"}),
    ]

    assert (again.status, again.body["revoked_keys"]) == (200, [])
    assert [(answer.status, answer.code) for answer in refused] == [(409, "account_deleted")] * 3


async def test_no_key_outlives_the_deletion_that_it_raced(api: Api, database: asyncpg.Connection) -> None:
    for number in range(8):
        account = await api.account("acme", f"racer-{number}")
        path = f"/v1/service-accounts/{account['id']}"

        await asyncio.gather(
            *(api.post(f"{path}/keys", {"name": f"key {index}"}) for index in range(4)), api.delete(path)
        )

        usable = "SELECT count(*) FROM keys WHERE account = $1 AND status <> 'revoked'"
        assert await database.fetchval(usable, account["id"]) == 0


async def test_a_new_period_starts_a_fresh_window_and_the_same_one_does_not(
    api: Api, gateway: Gateway, redis_client: Redis
) -> None:
    account = await api.account("acme", "nightly-report", credit_limit="1", reset_period="monthly")
    secret = (await api.key(account))["token"]
    path = f"/v1/service-accounts/{account['id']}"
    await gateway.settle(await gateway.admit(secret, 400_000), 300_000)
    assert (await api.get(path)).body["spent"] == "0.3"

    same = await api.patch(path, {"reset_period": "monthly", "credit_limit": "0.5"})
    fresh = await api.patch(path, {"reset_period": "never"})

    assert (same.body["spent"], same.body["remaining"]) == ("0.3", "0.2")
    assert (fresh.body["spent"], fresh.body["remaining"]) == ("0", "0.5")
    assert (fresh.body["reset_period"], fresh.body["resets_at"]) == ("never", None)
    assert isinstance(await gateway.admit(secret, 500_000), bytes)


async def test_a_limit_lowered_under_what_is_spent_refuses_the_next_request(
    api: Api, gateway: Gateway
) -> None:
    account = await api.account("acme", "nightly-report", credit_limit="1")
    secret = (await api.key(account))["token"]
    await gateway.settle(await gateway.admit(secret, 400_000), 400_000)
    path = f"/v1/service-accounts/{account['id']}"

    lowered = await api.patch(path, {"credit_limit": "0.3"})
    refusal = await gateway.admit(secret, 1)
    await api.patch(path, {"credit_limit": "0.5"})

    assert (lowered.body["spent"], lowered.body["remaining"]) == ("0.4", "0")
    assert refusal[:2] == [b"budget", b"account"]
    assert isinstance(await gateway.admit(secret, 1), bytes)


async def test_what_is_held_is_shown_beside_what_is_spent(api: Api, gateway: Gateway) -> None:
    account = await api.account("acme", "nightly-report", credit_limit="1")
    secret = (await api.key(account))["token"]

    await gateway.admit(secret, 250_000)

    shown = (await api.get(f"/v1/service-accounts/{account['id']}")).body
    assert (shown["spent"], shown["held"], shown["remaining"]) == ("0", "0.25", "0.75")


async def test_an_organization_has_no_more_accounts_than_it_may(api: Api, control_settings: object) -> None:
    deps = api.deps
    object.__setattr__(deps.settings, "accounts_max", 2)

    answers = await asyncio.gather(
        *(
            api.post("/v1/organizations/acme/service-accounts", {"name": f"worker-{number}"})
            for number in range(5)
        )
    )

    assert sorted(answer.status for answer in answers) == [201, 201, 409, 409, 409]
    assert {answer.code for answer in answers if answer.status == 409} == {"too_many_accounts"}


@pytest.mark.parametrize("reference", ["missing", "org_000000", "Acme", "a%00b", "%F0%9F%92%A9", "a" * 300])
async def test_an_organization_that_is_not_there_is_not_found(api: Api, reference: str) -> None:
    for method, path in (("GET", ""), ("GET", "/service-accounts"), ("GET", "/usage")):
        answer = await api.call(method, f"/v1/organizations/{reference}{path}")
        assert (answer.status, answer.code) == (404, "organization_not_found")


@pytest.mark.parametrize("reference", ["sa_0000000000000000", "mb_0000000000000000", "missing", "a%00b"])
async def test_an_account_that_is_not_there_is_not_found(api: Api, reference: str) -> None:
    path = f"/v1/service-accounts/{reference}"

    answers = [
        await api.get(path),
        await api.patch(path, {"credit_limit": "1"}),
        await api.delete(path),
        await api.post(f"{path}/activate"),
        await api.get(f"{path}/keys"),
        await api.post(f"{path}/keys", {"name": "production"}),
    ]

    assert {(answer.status, answer.code) for answer in answers} == {(404, "service_account_not_found")}
