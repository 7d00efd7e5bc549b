"""`GET /-/key`: a workload asks the gateway where its key stands, on the real product."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from control.embedded import wait_until
from tests.system.conftest import StartGateway
from tests.system.installation import Installation, Workload, with_other_secret
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import event_count, request, wire


async def ask_for(installation: Installation, workload: Workload, url: str | None = None) -> dict[str, Any]:
    """What a key is told about itself."""
    url = url or f"{installation.addresses.gateway}/-/key"
    async with installation.http.get(url, headers=workload.bearer) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["Cache-Control"] == "no-store"
        told: dict[str, Any] = await answer.json()
        return told


async def test_a_key_sees_its_chain_and_which_level_binds(installation: Installation) -> None:
    organization = await installation.organization("1000", "monthly")
    account = await installation.account(organization, "0.25")
    workload = await installation.key(organization, account, "50", "daily")
    told = await ask_for(installation, workload)
    assert (told["id"], told["status"], told["detail"], told["binding"]) == (
        workload.key,
        "active",
        None,
        "account",
    )
    assert (told["principal"], told["expires_at"]) == (workload.principal, None)
    expected = {
        "key": (workload.key, "50", "50", "daily"),
        "account": (workload.account, "0.25", "0.25", "never"),
        "organization": (workload.organization, "1000", "1000", "monthly"),
    }
    for level, (identifier, limit, remaining, period) in expected.items():
        shown = told[level]
        assert (shown["id"], shown["limit"], shown["remaining"], shown["reset_period"]) == (
            identifier, limit, remaining, period
        )  # fmt: skip
        assert (shown["spent"], shown["held"], shown["enforcement"], shown["observed"]) == (
            "0",
            "0",
            "enforce",
            0,
        )
        assert (shown["resets_at"] is None) == (period == "never")
    assert (await installation.ask(workload, "/priced/x"))[0] == 200

    async def is_settled() -> bool:
        return bool((await ask_for(installation, workload))["key"]["spent"] == "0.1")

    await wait_until(is_settled, 10.0, "the request to be settled")
    told = await ask_for(installation, workload)
    for level, (_, limit, _, _) in expected.items():
        assert told[level]["spent"] == "0.1"
        assert float(told[level]["remaining"]) == float(limit) - 0.1


async def test_asking_costs_nothing_and_is_no_row(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload("0.10")
    for _ in range(20):
        assert (await ask_for(installation, workload))["key"]["remaining"] == "0.1"
    assert (await installation.ask(workload, "/priced/x"))[0] == 200
    (row,) = await installation.settled(workload.tag)
    assert row["path"] == "/priced/x"
    assert [seen.target for seen in upstream.of(workload.key)] == ["/priced/x"]
    told = await ask_for(installation, workload)
    assert (told["key"]["remaining"], told["status"]) == ("0", "active")


async def test_a_key_that_was_switched_off_is_told_so(installation: Installation) -> None:
    workload = await installation.workload()
    await ask_for(installation, workload)
    await installation.call("POST", f"/v1/service-accounts/{workload.account}/deactivate")
    told = await ask_for(installation, workload)
    assert (told["status"], told["account"]["status"], told["key"]["status"]) == (
        "account_inactive",
        "inactive",
        "active",
    )
    await installation.call("POST", f"/v1/keys/{workload.key}/revoke")
    told = await ask_for(installation, workload)
    assert (told["status"], told["key"]["status"]) == ("revoked", "revoked")
    assert "revoked" in told["detail"]


async def test_who_is_not_the_key_is_told_nothing(installation: Installation) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(None, "/-/key"))
        client.send(request(None, "/-/key", f"Authorization: Bearer {with_other_secret(workload.token)}"))
        client.send(request(workload, "/-/key", method="POST", body=b"{}"))
        client.send(request(workload, "/-/nothing"))
        client.send(request(workload, "/-/key", method="GET", body=b"ignored"))
        for status, code in (
            (401, "missing_token"), (401, "invalid_token"), (405, "method_not_allowed"), (404, "no_such_route"),
        ):  # fmt: skip
            answer = await client.answer()
            assert (answer.status, json.loads(answer.body)["code"]) == (status, code)
            assert workload.key.encode() not in answer.body
        last = await client.answer()
        assert (last.status, json.loads(last.body)["id"]) == (200, workload.key)


async def test_head_and_basic_work_as_for_any_request(installation: Installation) -> None:
    workload = await installation.workload()
    basic = aiohttp.encode_basic_auth("anybody", workload.token)
    async with installation.http.head(
        f"{installation.addresses.gateway}/-/key", headers={"Authorization": basic}
    ) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 300


async def test_the_prefix_is_a_setting_and_asking_is_counted(
    installation: Installation, gateway_with: StartGateway
) -> None:
    gateway = gateway_with(own_prefix="/.tollkeeper/")
    workload = await installation.workload("5")
    told = await ask_for(installation, workload, f"{gateway.url}/.tollkeeper/key")
    assert (told["id"], told["key"]["limit"]) == (workload.key, "5")
    async with installation.http.get(f"{gateway.url}/-/key", headers=workload.bearer) as answer:
        assert (answer.status, (await answer.json())["code"]) == (404, "no_such_route")
    assert await event_count(gateway.management_port, "own_key") == 1
