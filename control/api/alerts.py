"""/v1/organizations/{org}/alerts, …/alerts/test and …/alerts/destinations: parse, domain, answer.

A webhook's signing secret is in the answer that made it, and in no other.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from control.api import shapes
from control.api.alert_bodies import CreateDestination, DestinationQuery, PatchDestination
from control.api.bodies import read_body
from control.api.queries import Paged, read_query
from control.api.services import Services, services
from control.delivery import mail
from control.delivery.courier import TIMEOUT_S, Courier
from control.delivery.mail import MailServer
from control.delivery.message import facts, of_test
from control.delivery.outcome import Outcome
from control.domain import alerts, deliveries, destinations, organizations
from control.domain.alerts import Delivery
from control.domain.destinations import SEALING_PURPOSE, Destination
from control.domain.operator import ACTOR
from control.domain.refusals import Conflict
from control.sealing import Sealing
from gateway.contract.ids import organization_id, random_base62

_TEST_ID_LENGTH: Final = 16
_OF_THE_CALL: Final = 0.8
"""Part of a call's time that a test may take of its destinations: what they did is still to be answered."""


async def listed(request: web.Request) -> web.Response:
    """Alerts, newest first, each with how far every destination is told."""
    deps = services(request)
    query = read_query(request, Paged)
    async with deps.reading() as conn:
        tag = (await organizations.get(conn, request.match_info["org"])).tag
        found = await alerts.listed(conn, tag, query.page)
        told = await alerts.deliveries_of(conn, [alert.id for alert in found.rows])
    rows = [
        {**facts(alert), "deliveries": [_delivery(each) for each in told[alert.id]]} for alert in found.rows
    ]
    return shapes.answer({"data": rows, "next": found.next})


async def test(request: web.Request) -> web.Response:
    """Send a test to every enabled destination, or to the one named, and answer what each did with it.

    One that takes it is well again: what waited for it, because it was failing, is sent.
    """
    deps = services(request)
    query = read_query(request, DestinationQuery)
    async with deps.changes.begin() as change:
        organization = await organizations.get(change.conn, request.match_info["org"])
        found, tested_at = await destinations.for_test(change.conn, organization.tag, query.destination)
    message = of_test(
        f"test_{random_base62(_TEST_ID_LENGTH)}", organization.tag, organization.name, datetime.now(UTC)
    )
    timeout_s = min(TIMEOUT_S, deps.settings.request_timeout_s * _OF_THE_CALL)
    server = MailServer.of(deps.settings)
    async with Courier(_sealing(deps), server, deps.resolver, timeout_s=timeout_s) as courier:
        outcomes = await asyncio.gather(*(courier.deliver(each, message) for each in found))
    for destination, outcome in zip(found, outcomes, strict=True):
        if outcome.is_delivered:
            async with deps.changes.begin() as change:
                await deliveries.took_something(change.conn, destination.id, tested_at)
    rows = [_tested(destination, outcome) for destination, outcome in zip(found, outcomes, strict=True)]
    return shapes.answer({"data": rows, "message_id": message.id})


async def create_destination(request: web.Request) -> web.Response:
    deps = services(request)
    new = (await read_body(request, CreateDestination)).new()
    if new.kind == "email" and MailServer.of(deps.settings) is None:
        raise Conflict("mail_not_configured", mail.NOT_CONFIGURED)
    async with deps.changes.begin() as change:
        organization = await organizations.get(change.conn, request.match_info["org"])
        created, secret = await destinations.create(
            change.conn, organization.tag, new, _sealing(deps), actor=ACTOR
        )
    headers = {"Location": f"/v1/organizations/{organization.name}/alerts/destinations/{created.id}"}
    return shapes.answer(_with_secret(created, secret), status=201, headers=headers)


async def listed_destinations(request: web.Request) -> web.Response:
    deps = services(request)
    query = read_query(request, Paged)
    async with deps.reading() as conn:
        tag = (await organizations.get(conn, request.match_info["org"])).tag
        found = await destinations.listed(conn, tag, query.page)
    return shapes.answer({"data": [_destination(each) for each in found.rows], "next": found.next})


async def amend_destination(request: web.Request) -> web.Response:
    """Rename, enable, disable, set from which threshold on, or have a new signing secret made."""
    deps = services(request)
    patch = (await read_body(request, PatchDestination)).patch()
    async with deps.changes.begin() as change:
        tag = (await organizations.get(change.conn, request.match_info["org"])).tag
        amended, secret = await destinations.amend(
            change.conn, tag, request.match_info["id"], patch, _sealing(deps)
        )
    return shapes.answer(_with_secret(amended, secret))


async def delete_destination(request: web.Request) -> web.Response:
    """Answers what was deleted, with how much it was still to be told."""
    deps = services(request)
    async with deps.changes.begin() as change:
        tag = (await organizations.get(change.conn, request.match_info["org"])).tag
        deleted = await destinations.delete(change.conn, tag, request.match_info["id"])
    return shapes.answer(_destination(deleted))


def _sealing(deps: Services) -> Sealing:
    return Sealing(deps.pepper, SEALING_PURPOSE)


def _with_secret(destination: Destination, secret: str | None) -> shapes.Json:
    shown = _destination(destination)
    return shown if secret is None else {**shown, "secret": secret}


def _destination(shown: Destination) -> shapes.Json:
    where: shapes.Json = {"url": shown.url}
    if shown.kind != "webhook":
        where = {"addresses": list(shown.addresses)} if shown.kind == "email" else {"url_hint": shown.hint}
    return {
        "id": shown.id,
        "organization": organization_id(shown.organization),
        "kind": shown.kind,
        "name": shown.name,
        **where,
        "min_threshold": shown.min_threshold,
        "enabled": shown.is_enabled,
        "disabled_at": shapes.instant(shown.disabled_at),
        "disabled_reason": shown.disabled_reason,
        "failing_since": shapes.instant(shown.failing_since),
        "paused_until": shapes.instant(shown.paused_until),
        "last_error": shown.last_error,
        "last_delivered_at": shapes.instant(shown.delivered_at),
        "pending": shown.pending,
        "created_at": shapes.instant(shown.created_at),
        "created_by": shown.created_by,
        "updated_at": shapes.instant(shown.updated_at),
    }


def _delivery(shown: Delivery) -> shapes.Json:
    return {
        "destination": shown.destination,
        "destination_name": shown.destination_name,
        "kind": shown.kind,
        "status": shown.status,
        "attempts": shown.attempts,
        "next_attempt_at": shapes.instant(shown.next_attempt_at),
        "last_attempt_at": shapes.instant(shown.last_attempt_at),
        "delivered_at": shapes.instant(shown.delivered_at),
        "last_error": shown.last_error,
    }


def _tested(destination: Destination, outcome: Outcome) -> shapes.Json:
    return {
        "destination": destination.id,
        "name": destination.name,
        "kind": destination.kind,
        "delivered": outcome.is_delivered,
        "status": outcome.status,
        "milliseconds": outcome.milliseconds,
        "error": outcome.error,
        "note": outcome.note,
    }
