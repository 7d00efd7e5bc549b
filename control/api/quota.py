"""/v1/keys/{id}/quota: the limits above a key, which of them binds, and whether a request would pass now."""

from __future__ import annotations

from aiohttp import web

from control.api import shapes
from control.api.services import services
from control.counters import Budgeted, Live
from control.domain import keys, organizations, quota, service_accounts
from control.domain.budgets import standing
from control.domain.keys import Key
from control.domain.organizations import Organization
from control.domain.quota import Link
from control.domain.service_accounts import Account
from gateway.contract.ids import organization_id
from gateway.contract.records import Pace


async def shown(request: web.Request) -> web.Response:
    deps = services(request)
    async with deps.reading() as conn:
        key = await keys.get(conn, request.match_info["id"])
        account = await service_accounts.get(conn, key.account)
        organization = await organizations.get(conn, organization_id(key.organization))
    chain = (
        Budgeted("key", key.id, key.budget),
        Budgeted("account", account.id, account.budget),
        shapes.budgeted(organization),
    )
    live = await deps.counters.live(chain)
    explained = quota.explained(
        _links(key, account, organization, chain, live),
        now_us=0 if live is None else live.now_us,
        is_loaded=live is not None and live.is_loaded,
        is_answering=live is not None,
    )
    return shapes.answer({"key": key.id, **shapes.quota(explained)})


def _links(
    key: Key,
    account: Account,
    organization: Organization,
    chain: tuple[Budgeted, Budgeted, Budgeted],
    live: Live | None,
) -> tuple[Link, Link, Link]:
    facts = (
        (key.id, key.name, key.shown_status, key.pace),
        (account.id, account.name, account.status, account.pace),
        (organization_id(organization.tag), organization.name, organization.status, Pace()),
    )
    links = []
    for place, (item, (identifier, name, status, pace)) in enumerate(zip(chain, facts, strict=True)):
        counters = None if live is None else live.counters[place]
        links.append(
            Link(
                level=item.level,
                id=identifier,
                name=name,
                status=status,
                budget=item.budget,
                pace=pace,
                standing=None
                if live is None
                else standing(item.budget, counters, live.now_us // 1000, item.grants),
                due_us=0 if counters is None else counters.tat_us,
                is_known=counters is not None,
            )
        )
    return links[0], links[1], links[2]
