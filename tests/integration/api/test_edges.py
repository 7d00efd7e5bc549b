"""What surrounds every call: who may, what is refused before it is looked at, what is said about it."""

from __future__ import annotations

import asyncio
import re

import asyncpg
import pytest
import structlog

from control.app import ensure_operator_token, renew_operator_token
from gateway.contract import token
from tests.integration.api.world import Api

EVERY_CALL = [
    ("GET", "/v1/organizations"),
    ("POST", "/v1/organizations"),
    ("GET", "/v1/organizations/acme"),
    ("PATCH", "/v1/organizations/acme"),
    ("GET", "/v1/organizations/acme/grants"),
    ("POST", "/v1/organizations/acme/grants"),
    ("GET", "/v1/organizations/acme/usage"),
    ("GET", "/v1/organizations/acme/usage/events"),
    ("GET", "/v1/organizations/acme/alerts"),
    ("POST", "/v1/organizations/acme/alerts/test"),
    ("GET", "/v1/organizations/acme/alerts/destinations"),
    ("POST", "/v1/organizations/acme/alerts/destinations"),
    ("PATCH", "/v1/organizations/acme/alerts/destinations/x"),
    ("DELETE", "/v1/organizations/acme/alerts/destinations/x"),
    ("GET", "/v1/organizations/acme/service-accounts"),
    ("POST", "/v1/organizations/acme/service-accounts"),
    ("GET", "/v1/service-accounts/sa_x"),
    ("PATCH", "/v1/service-accounts/sa_x"),
    ("DELETE", "/v1/service-accounts/sa_x"),
    ("POST", "/v1/service-accounts/sa_x/activate"),
    ("POST", "/v1/service-accounts/sa_x/deactivate"),
    ("GET", "/v1/service-accounts/sa_x/keys"),
    ("POST", "/v1/service-accounts/sa_x/keys"),
    ("GET", "/v1/keys/x"),
    ("GET", "/v1/keys/x/quota"),
    ("PATCH", "/v1/keys/x"),
    ("DELETE", "/v1/keys/x"),
    ("POST", "/v1/keys/x/enable"),
    ("POST", "/v1/keys/x/disable"),
    ("POST", "/v1/keys/x/revoke"),
    ("GET", "/v1/nothing"),
]


async def test_every_route_under_v1_is_among_those_tried_here(api: Api) -> None:
    paths = [re.sub(r"/(acme|sa_x|x)(?=/|$)", "/{}", path) for _, path in EVERY_CALL]
    tried = {(method, path) for (method, _), path in zip(EVERY_CALL, paths, strict=True)}
    assert api.client.app is not None
    there = {
        (route.method, re.sub(r"\{\w+\}", "{}", route.resource.canonical))
        for route in api.client.app.router.routes()
        if route.resource is not None
        and route.resource.canonical.startswith("/v1/")
        and route.method != "HEAD"
    }

    assert there - tried == set()


async def test_nobody_calls_without_the_operator_token(api: Api) -> None:
    wrong = "tko_" + "0" * 43
    for method, path in EVERY_CALL:
        without = await api.call(method, path, bearer=None)
        other = await api.call(method, path, bearer=wrong)
        assert (without.status, without.code) == (401, "missing_token")
        assert without.headers["WWW-Authenticate"] == 'Bearer realm="tollkeeper control"'
        assert (other.status, other.code) == (401, "invalid_token")
        assert other.headers["WWW-Authenticate"].endswith('error="invalid_token"')


async def test_a_data_key_does_not_open_the_control_plane(api: Api) -> None:
    await api.organization("acme")
    secret = (await api.key(await api.account()))["token"]

    for bearer in (secret, "tk_nonsense"):
        answer = await api.call("GET", "/v1/organizations", bearer=bearer)
        assert (answer.status, answer.code) == (403, "data_key")
        assert secret not in str(answer.body)


@pytest.mark.parametrize(
    "value", ["Basic dG9rZW4=", "Bearer", "Bearer ", "tko_x", "Bearer a b", "Bearer tko_é"]
)
async def test_an_authorization_header_of_another_kind_is_refused(api: Api, value: str) -> None:
    answer = await api.call("GET", "/v1/organizations", bearer=None, headers={"Authorization": value})

    assert (answer.status, answer.code) == (401, "invalid_token")


async def test_a_token_that_was_replaced_stops_working_at_once(
    api: Api, database: asyncpg.Connection
) -> None:
    assert (await api.get("/v1/organizations")).status == 200

    renewed = await renew_operator_token(database)

    assert (await api.get("/v1/organizations")).status == 401
    assert (await api.call("GET", "/v1/organizations", bearer=renewed)).status == 200


async def test_the_operator_token_is_made_once_and_kept_as_a_hash(
    api: Api, database: asyncpg.Connection
) -> None:
    assert await ensure_operator_token(database) is None

    kept = await database.fetch("SELECT * FROM operator_tokens")
    assert len(kept) == 1
    assert kept[0]["token_hash"].startswith("$argon2id$")
    assert api.operator_token not in str(kept)


async def test_many_wrong_tokens_do_not_stop_the_right_one(api: Api) -> None:
    await api.get("/v1/organizations")
    wrong = ["tko_" + f"{number:043d}" for number in range(100)]

    flood = [asyncio.create_task(api.call("GET", "/v1/organizations", bearer=bearer)) for bearer in wrong]
    answer = await api.get("/v1/organizations")
    answers = await asyncio.gather(*flood)

    assert answer.status == 200
    assert {refusal.status for refusal in answers} <= {401, 503}


async def test_a_path_that_does_not_exist_is_a_problem(api: Api) -> None:
    answer = await api.get("/v1/nothing")

    assert (answer.status, answer.code) == (404, "route_not_found")


async def test_a_method_that_is_not_possible_says_which_are(api: Api) -> None:
    answer = await api.call("PUT", "/v1/organizations/acme")

    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, PATCH"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b'{"name": NaN}', b'{"name": "\xff"}', b'{"name": "\\ud800"}']
)
async def test_a_body_that_is_no_json_object_is_refused(api: Api, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {api.operator_token}", "Content-Type": "application/json"}

    async with api.client.post("/v1/organizations", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json(content_type=None))["code"] == "malformed_json"


async def test_a_body_must_be_said_to_be_json(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.operator_token}", "Content-Type": "text/plain"}

    async with api.client.post("/v1/organizations", data=b"{}", headers=headers) as response:
        assert response.status == 415
        assert response.content_type == "application/problem+json"


async def test_a_body_of_more_than_64_kib_is_refused(api: Api) -> None:
    answer = await api.post("/v1/organizations", {"name": "acme", "description": "a" * 70_000})

    assert (answer.status, answer.code) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("status=gone", "status"),
        ("cursor=x", "cursor"),
        ("cursor=", "cursor"),
        ("cursor=WzEsMl0", "cursor"),
        ("cursor=Wzk5OTk5OTk5OTk5OTk5OTk5OTk5LCJhIl0", "cursor"),
        ("page=2", "page"),
    ],
)
async def test_a_query_that_cannot_be_read_is_named(api: Api, query: str, field: str) -> None:
    answer = await api.get(f"/v1/organizations?{query}")

    assert (answer.status, answer.fields) == (400, [field])


async def test_a_query_parameter_that_is_there_twice_is_refused(api: Api) -> None:
    assert (await api.get("/v1/organizations?limit=1&limit=2")).status == 400


async def test_every_answer_has_a_request_id_that_its_problem_repeats(api: Api) -> None:
    found = await api.get("/v1/organizations")
    missing = await api.get("/v1/organizations/missing")

    assert re.fullmatch(r"[0-9A-Za-z]{22}", found.headers["X-Request-Id"])
    assert missing.body["request_id"] == missing.headers["X-Request-Id"] != found.headers["X-Request-Id"]
    assert missing.body["instance"] == "/v1/organizations/missing"


async def test_no_token_and_no_name_stands_in_a_log_line(api: Api) -> None:
    with structlog.testing.capture_logs() as lines:
        await api.organization("acme")
        account = await api.account()
        secret = (await api.key(account))["token"]
        await api.call("GET", f"/v1/keys/{secret}", bearer=secret)
        await api.call("GET", f"/{secret}", bearer=api.operator_token)

    answered = [line for line in lines if line["event"] == "answered"]
    assert [line["status"] for line in answered] == [201, 201, 201, 403, 404]
    assert token.PATTERN.search(str(lines).encode()) is None
    assert api.operator_token not in str(lines)
    assert "acme" not in str(lines)


async def test_metrics_count_answers_by_route_and_never_by_what_was_written(api: Api) -> None:
    await api.get("/v1/organizations/missing")

    answer = await api.call("GET", "/metrics", bearer=None)

    assert answer.status == 200
    line = 'tollkeeper_control_requests_total{method="GET",route="/v1/organizations/{org}",status="404"} 1.0'
    assert line in answer.body
    assert "missing" not in answer.body


async def test_a_running_process_is_live_and_ready(api: Api) -> None:
    live = await api.call("GET", "/livez", bearer=None)
    ready = await api.call("GET", "/readyz", bearer=None)

    assert (live.status, live.body["status"]) == (200, "ok")
    assert (ready.status, ready.body) == (200, {"status": "ok", "postgres": True, "redis": True})


async def test_a_token_that_was_written_where_it_does_not_belong_is_not_repeated(api: Api) -> None:
    await api.organization()
    account = await api.account()
    secret = (await api.key(account))["token"]
    keys = f"/v1/service-accounts/{account['id']}/keys"
    answers = [
        await api.get(f"/v1/keys/{secret}"),
        await api.delete(f"/v1/keys/{secret}"),
        await api.get(f"/v1/service-accounts/{secret}"),
        await api.get(f"/v1/organizations/{secret}"),
        await api.get(f"/v1/organizations/{api.operator_token}"),
        await api.get(f"/v1/organizations?{secret}=1"),
        await api.post("/v1/organizations", {"name": secret}),
        await api.post("/v1/organizations", {"name": "globex", secret: 1}),
        await api.post(keys, {"name": f"of {secret}"}),
        await api.patch(f"/v1/service-accounts/{account['id']}", {"description": secret}),
    ]

    assert [answer.status for answer in answers] == [404] * 5 + [400] * 5
    for answer in answers:
        said = str(answer.body).lower()
        assert secret.lower() not in said
        assert api.operator_token.lower() not in said
        assert secret[20:50].lower() not in said
