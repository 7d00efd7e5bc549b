"""What an answer says: one function a noun, and the answer itself. Pure but for building responses.

Credits are decimal strings, times RFC 3339 in UTC with milliseconds. Live figures are null, and `counters_available`
false, while Redis does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import orjson
from aiohttp import web

from control.counters import Budgeted, LiveCounters
from control.domain.budgets import Standing
from control.domain.grants import Grant
from control.domain.keys import Key
from control.domain.organizations import Organization
from control.domain.prepaid import Line, Share
from control.domain.quota import Link, Quota
from control.domain.service_accounts import Account, RevokedKey
from gateway.contract.ids import organization_id
from gateway.contract.money import format_credits
from gateway.contract.records import Budget, Pace

Json: TypeAlias = dict[str, Any]


def answer(
    body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(body), content_type="application/json", headers=headers
    )


def instant(at: datetime | None) -> str | None:
    """RFC 3339 in UTC, whole milliseconds: 2031-01-31T12:00:00.000Z."""
    return (
        None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def credits_or_null(amount: int | None) -> str | None:
    return None if amount is None else format_credits(amount)


async def organizations(shown: Sequence[Organization], counters: LiveCounters) -> list[Json]:
    standings = await counters.standings([budgeted(one) for one in shown])
    return [_organization(one, standing) for one, standing in zip(shown, standings, strict=True)]


async def organization(shown: Organization, counters: LiveCounters) -> Json:
    return (await organizations([shown], counters))[0]


def budgeted(shown: Organization) -> Budgeted:
    grants = None if shown.line is None else shown.line.grants
    return Budgeted("organization", shown.tag, shown.budget, grants)


async def accounts(shown: Sequence[Account], counters: LiveCounters) -> list[Json]:
    standings = await counters.standings([Budgeted("account", one.id, one.budget) for one in shown])
    return [_account(one, standing) for one, standing in zip(shown, standings, strict=True)]


async def account(shown: Account, counters: LiveCounters) -> Json:
    return (await accounts([shown], counters))[0]


async def keys(shown: Sequence[Key], counters: LiveCounters) -> list[Json]:
    standings = await counters.standings([Budgeted("key", one.id, one.budget) for one in shown])
    return [_key(one, standing) for one, standing in zip(shown, standings, strict=True)]


async def key(shown: Key, counters: LiveCounters) -> Json:
    return (await keys([shown], counters))[0]


def revoked_key(key: RevokedKey) -> Json:
    return {"id": key.id, "name": key.name, "hint": key.hint, "last_used_at": instant(key.last_used_at)}


def _organization(shown: Organization, standing: Standing | None) -> Json:
    return {
        "id": organization_id(shown.tag),
        "name": shown.name,
        "display_name": shown.display_name,
        "description": shown.description,
        "status": shown.status,
        **_budget(shown.budget, standing),
        "billing_day": shown.budget.billing_day,
        "billing": shown.billing,
        **_prepaid(shown.line, standing),
        "created_at": instant(shown.created_at),
        "created_by": shown.created_by,
        "updated_at": instant(shown.updated_at),
    }


def _account(shown: Account, standing: Standing | None) -> Json:
    return {
        "id": shown.id,
        "organization": organization_id(shown.organization),
        "organization_name": shown.organization_name,
        "kind": shown.kind,
        "name": shown.name,
        "display_name": shown.display_name,
        "description": shown.description,
        "principal": f"{shown.kind}/{shown.organization_name}/{shown.name}",
        "status": shown.status,
        **_budget(shown.budget, standing),
        **_pace(shown.pace, standing),
        "created_at": instant(shown.created_at),
        "created_by": shown.created_by,
        "updated_at": instant(shown.updated_at),
        "deleted_at": instant(shown.deleted_at),
    }


def _key(shown: Key, standing: Standing | None) -> Json:
    return {
        "id": shown.id,
        "organization": organization_id(shown.organization),
        "organization_name": shown.organization_name,
        "account": shown.account,
        "account_name": shown.account_name,
        "name": shown.name,
        "hint": shown.hint,
        "status": shown.shown_status,
        "expires_at": instant(shown.expires_at),
        **_budget(shown.budget, standing),
        **_pace(shown.pace, standing),
        "created_at": instant(shown.created_at),
        "created_by": shown.created_by,
        "updated_at": instant(shown.updated_at),
        "last_used_at": instant(shown.last_used_at),
        "revoked_at": instant(shown.revoked_at),
        "deleted_at": instant(shown.deleted_at),
    }


def _budget(budget: Budget, standing: Standing | None) -> Json:
    limit = budget.limit if standing is None else standing.limit
    live: Json = dict.fromkeys(("spent", "held", "remaining", "resets_at", "observed"))
    if standing is not None:
        live = {
            "spent": format_credits(standing.spent),
            "held": format_credits(standing.held),
            "remaining": credits_or_null(standing.remaining),
            "resets_at": instant(standing.resets_at),
            "observed": standing.observed,
        }
    return {
        "credit_limit": credits_or_null(limit),
        "reset_period": budget.period,
        "enforcement": budget.enforcement,
        "alert_thresholds": list(budget.alerts),
        **live,
        "counters_available": standing is not None,
    }


def _pace(pace: Pace, standing: Standing | None) -> Json:
    return {
        "requests_per_minute": pace.per_minute,
        "burst": pace.burst,
        "requests_in_flight": pace.in_flight,
        "in_flight": None if standing is None else standing.in_flight,
    }


def _prepaid(line: Line | None, standing: Standing | None) -> Json:
    """Without Redis, the limit is what was granted, less what was lost as Postgres has it."""
    written = (
        {} if line is None or standing is not None else {"credit_limit": format_credits(line.end - line.lost)}
    )
    return {
        **written,
        "granted": None if line is None else format_credits(line.granted),
        "lost": None if line is None or standing is None else format_credits(standing.lost),
    }


def grant(shown: Grant) -> Json:
    """What of a grant never changes."""
    return {
        "id": shown.id,
        "organization": organization_id(shown.organization),
        "amount": format_credits(shown.amount),
        "expires_at": instant(shown.expires_at),
        "note": shown.note,
        "created_at": instant(shown.created_at),
        "created_by": shown.created_by,
    }


def grant_and_share(shown: Grant, share: Share | None) -> Json:
    """A grant and what has become of it; null while Redis does not answer."""
    return {
        **grant(shown),
        "used": None if share is None else format_credits(share.used),
        "lost": None if share is None else format_credits(share.lost),
        "left": None if share is None else format_credits(share.left),
        "counters_available": share is not None,
    }


def quota(shown: Quota) -> Json:
    refusal = shown.refusal
    return {
        "binding": shown.binding,
        "effective_remaining": credits_or_null(shown.effective_remaining),
        "admits": shown.admits,
        "refusal": None
        if refusal is None
        else {"reason": refusal.reason, "level": refusal.level, "detail": refusal.detail},
        "explanation": shown.explanation,
        "counters_available": shown.admits is not None,
        "chain": [_link(link) for link in shown.chain],
    }


def _link(link: Link) -> Json:
    shown = _budget(link.budget, link.standing)
    del shown["alert_thresholds"], shown["counters_available"]
    pace = {} if link.level == "organization" else _pace(link.pace, link.standing)
    return {"level": link.level, "id": link.id, "name": link.name, "status": link.status, **shown, **pace}
