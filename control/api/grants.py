"""/v1/organizations/{org}/grants: parse, domain, answer."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from control.api import shapes
from control.api.bodies import CreateGrant, idempotency_key, read_body
from control.api.queries import Paged, read_query
from control.api.services import services
from control.domain import grants, organizations, prepaid
from control.domain.budgets import standing
from control.domain.operator import ACTOR


async def create(request: web.Request) -> web.Response:
    """201 for a new grant; 200 and the same answer for one that was made before with the same Idempotency-Key."""
    deps = services(request)
    new = (await read_body(request, CreateGrant)).new(idempotency_key(request))
    async with deps.changes.begin() as change:
        organization = await organizations.get(change.conn, request.match_info["org"])
        made, is_new = await grants.create(change, organization.tag, new, actor=ACTOR)
    return shapes.answer(shapes.grant(made), status=201 if is_new else 200)


async def listed(request: web.Request) -> web.Response:
    """Each with what of it is used, lost and left now."""
    deps = services(request)
    query = read_query(request, Paged)
    async with deps.reading() as conn:
        organization = await organizations.get(conn, request.match_info["org"])
        found = await grants.listed(conn, organization.tag, query.page)
        parts = await grants.open_parts(conn, organization.tag, organization.budget.since_ms)
    shared: dict[str, prepaid.Share] = {}
    budgeted = shapes.budgeted(organization)
    live = await deps.counters.live([budgeted])
    if live is not None and organization.line is not None:
        now_ms = live.now_us // 1000
        stands = standing(budgeted.budget, live.counters[0], now_ms, budgeted.grants)
        shared = prepaid.shares(
            parts,
            datetime.fromtimestamp(now_ms / 1000, UTC),
            stands.spent + stands.held + stands.lost,
            max(0, stands.lost - organization.line.closed),
        )
    rows = [shapes.grant_and_share(each, each.share or shared.get(each.id)) for each in found.rows]
    return shapes.answer({"data": rows, "next": found.next})
