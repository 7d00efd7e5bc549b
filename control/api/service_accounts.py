"""/v1/organizations/{org}/service-accounts and /v1/service-accounts: parse, domain, answer."""

from __future__ import annotations

from typing import Literal

from aiohttp import web

from control.api import shapes
from control.api.bodies import CreateServiceAccount, PatchServiceAccount, read_body
from control.api.queries import AccountsQuery, read_query
from control.api.services import services
from control.domain import organizations, service_accounts
from control.domain.names import advice
from control.domain.operator import ACTOR


async def create(request: web.Request) -> web.Response:
    deps = services(request)
    new = (await read_body(request, CreateServiceAccount)).new()
    async with deps.changes.begin() as change:
        organization = await organizations.get(change.conn, request.match_info["org"])
        created = await service_accounts.create(
            change, organization, new, actor=ACTOR, accounts_max=deps.settings.accounts_max
        )
    body = await shapes.account(created, deps.counters)
    headers = {"Location": f"/v1/service-accounts/{created.id}"}
    return shapes.answer({**body, "warnings": advice(created.name)}, status=201, headers=headers)


async def listed(request: web.Request) -> web.Response:
    deps = services(request)
    query = read_query(request, AccountsQuery)
    async with deps.reading() as conn:
        organization = await organizations.get(conn, request.match_info["org"])
        found = await service_accounts.listed(conn, organization.tag, query.page, query.status)
    return shapes.answer({"data": await shapes.accounts(found.rows, deps.counters), "next": found.next})


async def shown(request: web.Request) -> web.Response:
    deps = services(request)
    async with deps.reading() as conn:
        found = await service_accounts.get(conn, request.match_info["id"])
    return shapes.answer(await shapes.account(found, deps.counters))


async def amend(request: web.Request) -> web.Response:
    deps = services(request)
    patch = (await read_body(request, PatchServiceAccount)).patch()
    async with deps.changes.begin() as change:
        amended = await service_accounts.amend(change, request.match_info["id"], patch)
    return shapes.answer(await shapes.account(amended, deps.counters))


async def activate(request: web.Request) -> web.Response:
    return await _set_status(request, "active")


async def deactivate(request: web.Request) -> web.Response:
    return await _set_status(request, "inactive")


async def delete(request: web.Request) -> web.Response:
    """Answers what was revoked with it, and when each was last used."""
    deps = services(request)
    async with deps.changes.begin() as change:
        deleted, keys = await service_accounts.delete(change, request.match_info["id"])
    body = await shapes.account(deleted, deps.counters)
    return shapes.answer({**body, "revoked_keys": [shapes.revoked_key(key) for key in keys]})


async def _set_status(request: web.Request, status: Literal["active", "inactive"]) -> web.Response:
    deps = services(request)
    async with deps.changes.begin() as change:
        changed = await service_accounts.set_status(change, request.match_info["id"], status)
    return shapes.answer(await shapes.account(changed, deps.counters))
