"""Every path of the API and who answers it. `build` makes the application; `control.app` serves it."""

from __future__ import annotations

from aiohttp import web

from control.api import alerts, grants, health, keys, organizations, quota, service_accounts, usage
from control.api.bodies import BODY_BYTES_MAX
from control.api.middleware import IN_ORDER
from control.api.services import SERVICES, Services


def build(deps: Services) -> web.Application:
    """The application with all routes and everything that surrounds them."""
    app = web.Application(middlewares=IN_ORDER, client_max_size=BODY_BYTES_MAX)
    app[SERVICES] = deps
    app.add_routes(
        [
            web.get("/livez", health.livez),
            web.get("/readyz", health.readyz),
            web.get("/metrics", health.metrics),
            web.post("/v1/organizations", organizations.create),
            web.get("/v1/organizations", organizations.listed),
            web.get("/v1/organizations/{org}", organizations.shown),
            web.patch("/v1/organizations/{org}", organizations.amend),
            web.post("/v1/organizations/{org}/grants", grants.create),
            web.get("/v1/organizations/{org}/grants", grants.listed),
            web.get("/v1/organizations/{org}/usage", usage.report),
            web.get("/v1/organizations/{org}/usage/events", usage.events),
            web.get("/v1/organizations/{org}/alerts", alerts.listed),
            web.post("/v1/organizations/{org}/alerts/test", alerts.test),
            web.post("/v1/organizations/{org}/alerts/destinations", alerts.create_destination),
            web.get("/v1/organizations/{org}/alerts/destinations", alerts.listed_destinations),
            web.patch("/v1/organizations/{org}/alerts/destinations/{id}", alerts.amend_destination),
            web.delete("/v1/organizations/{org}/alerts/destinations/{id}", alerts.delete_destination),
            web.post("/v1/organizations/{org}/service-accounts", service_accounts.create),
            web.get("/v1/organizations/{org}/service-accounts", service_accounts.listed),
            web.get("/v1/service-accounts/{id}", service_accounts.shown),
            web.patch("/v1/service-accounts/{id}", service_accounts.amend),
            web.delete("/v1/service-accounts/{id}", service_accounts.delete),
            web.post("/v1/service-accounts/{id}/activate", service_accounts.activate),
            web.post("/v1/service-accounts/{id}/deactivate", service_accounts.deactivate),
            web.post("/v1/service-accounts/{id}/keys", keys.create),
            web.get("/v1/service-accounts/{id}/keys", keys.listed),
            web.get("/v1/keys/{id}", keys.shown),
            web.get("/v1/keys/{id}/quota", quota.shown),
            web.patch("/v1/keys/{id}", keys.amend),
            web.delete("/v1/keys/{id}", keys.delete),
            web.post("/v1/keys/{id}/enable", keys.enable),
            web.post("/v1/keys/{id}/disable", keys.disable),
            web.post("/v1/keys/{id}/revoke", keys.revoke),
        ]
    )
    return app
