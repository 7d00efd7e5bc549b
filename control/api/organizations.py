"""/v1/organizations: parse, domain, answer."""

from __future__ import annotations

from aiohttp import web

from control.api import shapes
from control.api.bodies import CreateOrganization, PatchOrganization, read_body
from control.api.queries import OrganizationsQuery, read_query
from control.api.services import services
from control.domain import organizations
from control.domain.names import advice
from control.domain.operator import ACTOR


async def create(request: web.Request) -> web.Response:
    deps = services(request)
    new = (await read_body(request, CreateOrganization)).new()
    async with deps.changes.begin() as change:
        created = await organizations.create(change, new, actor=ACTOR)
    body = await shapes.organization(created, deps.counters)
    headers = {"Location": f"/v1/organizations/{body['id']}"}
    return shapes.answer({**body, "warnings": advice(created.name)}, status=201, headers=headers)


async def listed(request: web.Request) -> web.Response:
    deps = services(request)
    query = read_query(request, OrganizationsQuery)
    async with deps.reading() as conn:
        found = await organizations.listed(conn, query.page, query.status)
    return shapes.answer({"data": await shapes.organizations(found.rows, deps.counters), "next": found.next})


async def shown(request: web.Request) -> web.Response:
    deps = services(request)
    async with deps.reading() as conn:
        found = await organizations.get(conn, request.match_info["org"])
    return shapes.answer(await shapes.organization(found, deps.counters))


async def amend(request: web.Request) -> web.Response:
    deps = services(request)
    patch = (await read_body(request, PatchOrganization)).patch()
    async with deps.changes.begin() as change:
        amended = await organizations.amend(change, request.match_info["org"], patch)
    return shapes.answer(await shapes.organization(amended, deps.counters))
