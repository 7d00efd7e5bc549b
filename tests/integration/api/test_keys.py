"""Keys over REST."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from redis.asyncio import Redis

from control.database import connect_pool
from control.settings import ControlSettings
from gateway.contract import token
from tests.integration.api.world import LAYOUT, PEPPER, Api, Gateway, Json


def in_days(days: float) -> str:
    return (
        (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


@pytest.fixture
async def account(api: Api) -> Json:
    await api.organization("acme")
    return await api.account("acme", "nightly-report")


async def test_a_token_opens_the_gateway_as_soon_as_it_is_answered(
    api: Api, account: Json, gateway: Gateway
) -> None:
    created = await api.key(account)

    assert isinstance(await gateway.admit(created["token"]), bytes)
    assert token.key_id_of(created["token"].encode()) == created["key"]["id"]


async def test_a_token_is_shown_once_and_kept_nowhere(
    api: Api, account: Json, redis_client: Redis, database: asyncpg.Connection
) -> None:
    created = await api.key(account)
    secret: str = created["token"]
    key = created["key"]

    shown = [
        await api.get(f"/v1/keys/{key['id']}"),
        await api.get(f"/v1/service-accounts/{account['id']}/keys?status=all"),
        await api.patch(f"/v1/keys/{key['id']}", {"name": "renamed"}),
        await api.post(f"/v1/keys/{key['id']}/disable"),
        await api.delete(f"/v1/keys/{key['id']}"),
    ]
    kept = [str(await database.fetch(f"SELECT * FROM {table}")) for table in ("keys", "outbox", "accounts")]
    published = str(await redis_client.hgetall(LAYOUT.key(key["id"])))

    assert all(secret not in str(answer.body) and "token" not in str(answer.body) for answer in shown)
    assert all(secret not in text for text in [*kept, published])
    assert key["hint"] == f"tk_…{secret[-4:]}"


async def test_the_answer_with_the_token_is_not_to_be_stored(api: Api, account: Json) -> None:
    answer = await api.post(f"/v1/service-accounts/{account['id']}/keys", {"name": "production"})

    assert answer.headers["Cache-Control"] == "no-store"


async def test_postgres_keeps_an_argon2id_hash_that_has_nothing_of_the_digest(
    api: Api, account: Json, database: asyncpg.Connection, redis_client: Redis
) -> None:
    created = await api.key(account)

    token_hash = await database.fetchval("SELECT token_hash FROM keys WHERE id = $1", created["key"]["id"])
    digest = token.digest(PEPPER, created["token"].encode())

    assert token_hash.startswith("$argon2id$v=19$m=8192,t=1,p=1$")
    assert await redis_client.hget(LAYOUT.key(created["key"]["id"]), "digest") == digest
    rows = await database.fetch("SELECT * FROM keys")
    assert digest.hex() not in str(rows)


async def test_disabling_is_undone_by_enabling(api: Api, account: Json, gateway: Gateway) -> None:
    created = await api.key(account)
    path = f"/v1/keys/{created['key']['id']}"

    for _ in range(2):
        assert (await api.post(f"{path}/disable")).body["status"] == "disabled"
    assert await gateway.admit(created["token"]) == [b"status", b"key", b"disabled"]

    for _ in range(2):
        assert (await api.post(f"{path}/enable")).body["status"] == "active"
    assert isinstance(await gateway.admit(created["token"]), bytes)


async def test_revocation_is_immediate_and_final(api: Api, account: Json, gateway: Gateway) -> None:
    created = await api.key(account)
    path = f"/v1/keys/{created['key']['id']}"

    for _ in range(2):
        answer = await api.post(f"{path}/revoke")
        assert (answer.status, answer.body["status"]) == (200, "revoked")
    assert await gateway.admit(created["token"]) == [b"status", b"key", b"revoked"]

    refused = [
        await api.post(f"{path}/enable"),
        await api.post(f"{path}/disable"),
        await api.patch(path, {"name": "x"}),
    ]
    assert [(answer.status, answer.code) for answer in refused] == [(409, "key_revoked")] * 3


async def test_no_request_passes_after_the_revocation_was_answered_under_load(
    api: Api, account: Json, gateway: Gateway
) -> None:
    created = await api.key(account)
    revoked = asyncio.Event()
    late: list[object] = []

    async def keep_asking() -> None:
        for _ in range(400):
            was_revoked = revoked.is_set()
            answer = await gateway.admit(created["token"])
            if was_revoked:
                late.append(answer)
            await asyncio.sleep(0)

    async def revoke() -> None:
        await api.post(f"/v1/keys/{created['key']['id']}/revoke")
        revoked.set()

    await asyncio.gather(*(keep_asking() for _ in range(4)), revoke())

    assert late
    assert all(answer == [b"status", b"key", b"revoked"] for answer in late)


async def test_a_deleted_key_is_revoked_and_hidden(api: Api, account: Json, gateway: Gateway) -> None:
    created = await api.key(account)
    path = f"/v1/service-accounts/{account['id']}/keys"

    answer = await api.delete(f"/v1/keys/{created['key']['id']}")

    assert (answer.status, answer.body["status"]) == (200, "revoked")
    assert await gateway.admit(created["token"]) == [b"status", b"key", b"revoked"]
    assert (await api.get(path)).body["data"] == []
    assert (await api.get(f"{path}?status=revoked")).body["data"] == []
    assert len((await api.get(f"{path}?status=all")).body["data"]) == 1
    assert (await api.get(f"/v1/keys/{created['key']['id']}")).status == 200


async def test_keys_are_listed_by_what_they_are_now(
    api: Api, account: Json, database: asyncpg.Connection
) -> None:
    made = {
        name: (await api.key(account, name))["key"]["id"]
        for name in ("active", "disabled", "revoked", "expired")
    }
    await api.post(f"/v1/keys/{made['disabled']}/disable")
    await api.post(f"/v1/keys/{made['revoked']}/revoke")
    await database.execute(
        "UPDATE keys SET expires_at = now() - interval '1 ms' WHERE id = $1", made["expired"]
    )
    path = f"/v1/service-accounts/{account['id']}/keys"

    for status in made:
        listed = (await api.get(f"{path}?status={status}")).body["data"]
        assert [(row["name"], row["status"]) for row in listed] == [(status, status)]
    assert len((await api.get(path)).body["data"]) == 4


async def test_an_expiry_is_enforced_to_the_millisecond_that_is_shown(
    api: Api, account: Json, redis_client: Redis
) -> None:
    created = await api.key(account, expires_at="2031-01-31T13:00:00.123456+01:00")

    assert created["key"]["expires_at"] == "2031-01-31T12:00:00.123Z"
    published = await redis_client.hget(LAYOUT.key(created["key"]["id"]), "expires_at")
    assert (
        datetime.fromtimestamp(int(published or 0) / 1000, UTC).isoformat()
        == "2031-01-31T12:00:00.123000+00:00"
    )


async def test_an_expiry_is_moved_and_removed(api: Api, account: Json, redis_client: Redis) -> None:
    created = await api.key(account, expires_at=in_days(1))
    path = f"/v1/keys/{created['key']['id']}"

    moved = await api.patch(path, {"expires_at": in_days(2)})
    removed = await api.patch(path, {"expires_at": None})

    assert moved.body["expires_at"] > created["key"]["expires_at"]
    assert removed.body["expires_at"] is None
    assert await redis_client.hget(LAYOUT.key(created["key"]["id"]), "expires_at") == b"0"


@pytest.mark.parametrize(
    "expires_at",
    [
        pytest.param(in_days(-1), id="yesterday"),
        pytest.param(in_days(3700), id="in ten years"),
        "2031-01-31",
        "2031-01-31T12:00:00",
        "2031-02-31T12:00:00Z",
        "tomorrow",
        "9999-12-31T23:59:59-23:59",
        1927540800,
    ],
)
async def test_an_expiry_that_makes_no_sense_is_refused(api: Api, account: Json, expires_at: object) -> None:
    path = f"/v1/service-accounts/{account['id']}/keys"

    answer = await api.post(path, {"name": "production", "expires_at": expires_at})

    assert (answer.status, answer.fields) == (400, ["expires_at"])
    assert (await api.get(path)).body["data"] == []


async def test_a_key_of_an_inactive_account_is_made_and_waits_for_it(
    api: Api, account: Json, gateway: Gateway
) -> None:
    await api.post(f"/v1/service-accounts/{account['id']}/deactivate")

    created = await api.key(account)

    assert await gateway.admit(created["token"]) == [b"status", b"account", b"inactive"]


async def test_an_account_has_no_more_keys_than_it_may_whoever_asks_at_once(api: Api, account: Json) -> None:
    object.__setattr__(api.deps.settings, "keys_max", 3)
    path = f"/v1/service-accounts/{account['id']}/keys"

    answers = await asyncio.gather(*(api.post(path, {"name": f"key {number}"}) for number in range(6)))
    assert sorted(answer.status for answer in answers) == [201, 201, 201, 409, 409, 409]
    assert {answer.code for answer in answers if answer.status == 409} == {"too_many_keys"}

    created = next(answer for answer in answers if answer.status == 201)
    await api.post(f"/v1/keys/{created.body['key']['id']}/revoke")
    assert (await api.post(path, {"name": "one more"})).status == 201


async def test_a_page_of_keys_is_read_from_redis_in_one_round_trip(
    api: Api, account: Json, redis_client: Redis
) -> None:
    for number in range(5):
        await api.key(account, f"key {number}", credit_limit="1")
    await redis_client.config_resetstat()

    await api.get(f"/v1/service-accounts/{account['id']}/keys")

    stats = await redis_client.info("commandstats")
    assert stats["cmdstat_hmget"]["calls"] == 5
    assert stats["cmdstat_time"]["calls"] == 1


async def test_counters_of_a_window_that_has_ended_count_for_nothing(
    api: Api, account: Json, gateway: Gateway, redis_client: Redis
) -> None:
    created = await api.key(account, credit_limit="1", reset_period="daily")
    record = LAYOUT.key(created["key"]["id"])
    await gateway.settle(await gateway.admit(created["token"], 300_000), 300_000)
    path = f"/v1/keys/{created['key']['id']}"
    assert (await api.get(path)).body["spent"] == "0.3"

    window = int(await redis_client.hget(record, "window") or 0)
    await redis_client.hset(record, "window", str(window - 86_400_000))

    shown = (await api.get(path)).body
    assert (shown["spent"], shown["remaining"]) == ("0", "1")
    assert shown["resets_at"] == f"{datetime.now(UTC).date() + timedelta(days=1)}T00:00:00.000Z"


async def test_nothing_is_left_in_the_outbox_when_all_went_well(
    api: Api, account: Json, database: asyncpg.Connection
) -> None:
    key = (await api.key(account))["key"]
    await api.post(f"/v1/keys/{key['id']}/disable")
    await api.delete(f"/v1/service-accounts/{account['id']}")

    assert await database.fetchval("SELECT count(*) FROM outbox") == 0


async def test_a_version_only_grows_whoever_changes_at_once(
    api: Api, account: Json, redis_client: Redis, database: asyncpg.Connection
) -> None:
    key = (await api.key(account))["key"]
    path = f"/v1/keys/{key['id']}"

    await asyncio.gather(*(api.patch(path, {"credit_limit": str(limit)}) for limit in range(1, 21)))

    row = await database.fetchrow("SELECT version, limit_microcredits FROM keys WHERE id = $1", key["id"])
    assert row is not None
    version, limit = await redis_client.hmget(LAYOUT.key(key["id"]), ["version", "limit"])
    assert (int(version or 0), int(limit or 0)) == (row["version"], row["limit_microcredits"])


async def test_a_key_that_is_not_there_is_not_found(api: Api, account: Json) -> None:
    for reference in ("0000000000000000", "missing", "a%00b"):
        path = f"/v1/keys/{reference}"
        answers = [
            await api.get(path),
            await api.patch(path, {"name": "x"}),
            await api.delete(path),
            await api.post(f"{path}/enable"),
            await api.post(f"{path}/disable"),
            await api.post(f"{path}/revoke"),
        ]
        assert {(answer.status, answer.code) for answer in answers} == {(404, "key_not_found")}


async def test_settings_reach_the_pool(control_settings: ControlSettings) -> None:
    async with await connect_pool(control_settings) as pool, pool.acquire() as conn:
        assert await conn.fetchval("SHOW statement_timeout") == "5s"
        assert await conn.fetchval("SHOW lock_timeout") == "3s"
        assert await conn.fetchval("SHOW timezone") == "UTC"
