"""Who may call: for now the operator, with the one token that was shown at the first start. No session, no cookie."""

from __future__ import annotations

from aiohttp import hdrs, web

from control.api.problems import problem
from control.api.services import services
from gateway.contract.token import PREFIX as DATA_KEY_PREFIX

_REALM = 'Bearer realm="tollkeeper control"'


async def refusal_of_caller(request: web.Request) -> web.Response | None:
    """None if the caller is the operator, else the answer: 401 or, for a data key, 403."""
    values = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not values:
        return _unauthorized(
            request, "missing_token", "Send the operator token: Authorization: Bearer tko_….", _REALM
        )
    scheme, _, token = values[0].partition(" ")
    token = token.strip()
    if len(values) > 1 or scheme.lower() != "bearer" or not token:
        detail = "The Authorization header must be there once and say: Bearer tko_…."
        return _unauthorized(request, "invalid_token", detail, f'{_REALM}, error="invalid_request"')
    if token.startswith(DATA_KEY_PREFIX):
        return problem(
            request,
            403,
            "data_key",
            "This is an API key of a service account. API keys open the gateway, not the control plane.",
        )
    deps = services(request)
    async with deps.reading() as conn:
        admitted = await deps.gate.admits(conn, token)
    if admitted:
        return None
    detail = "This is not the operator token of this installation."
    return _unauthorized(request, "invalid_token", detail, f'{_REALM}, error="invalid_token"')


def _unauthorized(request: web.Request, code: str, detail: str, challenge: str) -> web.Response:
    return problem(request, 401, code, detail, headers={hdrs.WWW_AUTHENTICATE: challenge})
