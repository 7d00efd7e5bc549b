"""Every "no" as problem+json (RFC 9457): one shape, whatever went wrong.

    {"type": "urn:tollkeeper:problem:<code>", "title": …, "status": …, "detail": …, "instance": <path>, "code": …,
     "request_id": …, "errors": [{"field": …, "reason": …, "suggestion"?: …}, …]}

`code` is for programs and never changes; `title` and `detail` are for people. `errors` is there when fields are wrong.
Much of it repeats what the caller wrote; a token that was written there, in place of an id, say, is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web

from control.domain.redaction import without_secrets
from control.domain.refusals import (
    Conflict,
    FieldError,
    Invalid,
    NotFound,
    NotSaved,
    NotYetInForce,
    Overloaded,
    Refused,
    TooOften,
)

REQUEST_ID: Final = web.RequestKey("request_id", str)
PROBLEM_CODE: Final = web.ResponseKey("problem_code", str)

_REFUSALS: Final[tuple[tuple[type[Refused], int, str], ...]] = (
    (Invalid, 400, "The request is not valid"),
    (NotFound, 404, "Not found"),
    (Conflict, 409, "Not possible in this state"),
    (TooOften, 429, "Too often"),
    (Overloaded, 503, "Too busy"),
    (NotYetInForce, 503, "Saved, but not yet in force"),
    (NotSaved, 503, "Redis does not answer"),
)
_RETRY_AFTER_S: Final = "1"


def problem(
    request: web.Request,
    status: int,
    code: str,
    detail: str,
    *,
    title: str | None = None,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """The answer. `title` defaults to the status's own words."""
    body: dict[str, Any] = {
        "type": f"urn:tollkeeper:problem:{code}",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": request.rel_url.raw_path,
        "code": code,
        "request_id": request[REQUEST_ID],
    }
    if errors:
        body["errors"] = [_field(error) for error in errors]
    response = web.Response(
        status=status,
        body=without_secrets(orjson.dumps(body)),
        content_type="application/problem+json",
        headers=headers,
    )
    response[PROBLEM_CODE] = code
    return response


def refused(request: web.Request, refusal: Refused) -> web.Response:
    """What the domain says no with, as an answer."""
    for kind, status, title in _REFUSALS:
        if isinstance(refusal, kind):
            headers = {"Retry-After": _RETRY_AFTER_S} if isinstance(refusal, (Overloaded, NotSaved)) else None
            if isinstance(refusal, TooOften):
                headers = {"Retry-After": str(refusal.retry_after_s)}
            return problem(
                request,
                status,
                refusal.code,
                refusal.detail,
                title=title,
                errors=refusal.errors,
                headers=headers,
            )
    raise TypeError(f"no status for {type(refusal).__name__}") from refusal


def _field(error: FieldError) -> dict[str, str]:
    shown = {"field": error.field, "reason": error.reason}
    return shown if error.suggestion is None else {**shown, "suggestion": error.suggestion}
