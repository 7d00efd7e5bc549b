"""/v1/service-accounts/{id}/keys and /v1/keys: parse, domain, answer. The one answer with a token is `create`'s."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from aiohttp import web

from control.api import shapes
from control.api.bodies import CreateKey, PatchKey, read_body
from control.api.queries import KeysQuery, read_query
from control.api.services import services
from control.domain import keys, service_accounts
from control.domain.names import advice
from control.domain.operator import ACTOR


async def create(request: web.Request) -> web.Response:
    deps = services(request)
    account = request.match_info["id"]
    new = (await read_body(request, CreateKey)).new()
    keys.check_expiry(new.expires_at, datetime.now(UTC))
    minted = await keys.mint(account, deps.hashing, deps.pepper)
    async with deps.changes.begin() as change:
        created = await keys.create(
            change, account, new, minted, actor=ACTOR, keys_max=deps.settings.keys_max
        )
    body = {
        "key": await shapes.key(created, deps.counters),
        "token": minted.token,
        "warnings": advice(created.name),
    }
    headers = {"Location": f"/v1/keys/{created.id}", "Cache-Control": "no-store"}
    return shapes.answer(body, status=201, headers=headers)


async def listed(request: web.Request) -> web.Response:
    deps = services(request)
    query = read_query(request, KeysQuery)
    async with deps.reading() as conn:
        account = await service_accounts.get(conn, request.match_info["id"])
        found = await keys.listed(conn, account.id, query.page, query.status)
    return shapes.answer({"data": await shapes.keys(found.rows, deps.counters), "next": found.next})


async def shown(request: web.Request) -> web.Response:
    deps = services(request)
    async with deps.reading() as conn:
        found = await keys.get(conn, request.match_info["id"])
    return shapes.answer(await shapes.key(found, deps.counters))


async def amend(request: web.Request) -> web.Response:
    deps = services(request)
    patch = (await read_body(request, PatchKey)).patch()
    async with deps.changes.begin() as change:
        amended = await keys.amend(change, request.match_info["id"], patch)
    return shapes.answer(await shapes.key(amended, deps.counters))


async def enable(request: web.Request) -> web.Response:
    return await _set_status(request, "active")


async def disable(request: web.Request) -> web.Response:
    return await _set_status(request, "disabled")


async def revoke(request: web.Request) -> web.Response:
    return await _revoke(request, hide=False)


async def delete(request: web.Request) -> web.Response:
    """Revokes it and leaves it out of lists."""
    return await _revoke(request, hide=True)


async def _set_status(request: web.Request, status: Literal["active", "disabled"]) -> web.Response:
    deps = services(request)
    async with deps.changes.begin() as change:
        changed = await keys.set_status(change, request.match_info["id"], status)
    return shapes.answer(await shapes.key(changed, deps.counters))


async def _revoke(request: web.Request, *, hide: bool) -> web.Response:
    deps = services(request)
    async with deps.changes.begin() as change:
        revoked = await keys.revoke(change, request.match_info["id"], hide=hide)
    return shapes.answer(await shapes.key(revoked, deps.counters))
