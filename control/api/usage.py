"""/v1/organizations/{org}/usage and …/usage/events: parse, domain, answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from control.api import shapes
from control.api.queries import EventsQuery, UsageQuery, read_query
from control.api.services import services
from control.domain import organizations, usage
from gateway.contract.ids import organization_id
from gateway.contract.money import format_credits

_MONEY: Final = frozenset({"cost", "held"})


async def report(request: web.Request) -> web.Response:
    """Sums by the hour, so `from` is rounded down and `to` up to a whole one; the answer says what it covers. By reason: why
    requests were refused, by the minute."""
    deps = services(request)
    query = read_query(request, UsageQuery)
    start, end = query.span(datetime.now(UTC))
    async with deps.reading() as conn:
        tag = (await organizations.get(conn, request.match_info["org"])).tag
        if query.group_by == "reason":
            found = await usage.refusals(conn, tag, start, end, query.limit, query.cursor)
            covered = {"from": shapes.instant(start), "to": shapes.instant(end)}
            return shapes.answer({"data": found.rows, "next": found.next, **covered})
        found = await usage.report(conn, tag, query.group_by, start, end, query.limit, query.cursor)
    covered = {"from": shapes.instant(usage.hour_floor(start)), "to": shapes.instant(usage.hour_ceiling(end))}
    return shapes.answer({"data": [_row(row) for row in found.rows], "next": found.next, **covered})


async def events(request: web.Request) -> web.Response:
    """Rows of the ledger, latest first."""
    deps = services(request)
    query = read_query(request, EventsQuery)
    start, end = query.span(datetime.now(UTC))
    async with deps.reading() as conn:
        tag = (await organizations.get(conn, request.match_info["org"])).tag
        found = await usage.events(conn, tag, start, end, query.limit, query.cursor)
    rows = [{**_row(row), "organization": organization_id(tag)} for row in found.rows]
    return shapes.answer({"data": rows, "next": found.next})


def _row(row: dict[str, Any]) -> shapes.Json:
    return {name: _value(name, value) for name, value in row.items()}


def _value(name: str, value: Any) -> Any:
    if name in _MONEY:
        return format_credits(value)
    return shapes.instant(value) if isinstance(value, datetime) else value
