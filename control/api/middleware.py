"""What surrounds each call, from the outside in: request id and log line, failures as problems, time limit, caller.

The log line has the route's template, never the path as written, no header and no body: there is no place in it where
a token could stand. An unexpected failure is logged by type and place; its message may quote a row, so it is left out.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from typing import Final

import asyncpg
import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from control.api.authentication import refusal_of_caller
from control.api.problems import PROBLEM_CODE, REQUEST_ID, problem, refused
from control.api.services import services
from control.database import POSTGRES_ERRORS
from control.domain.refusals import Refused
from gateway.contract.ids import random_base62

_log = structlog.get_logger("control.api")
_PROTECTED: Final = "/v1/"
_REQUEST_ID_LENGTH: Final = 22
_FRAMES_LOGGED: Final = 8


@web.middleware
async def identified_and_logged(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the call its id, and says in one line and in the metrics how it went."""
    request[REQUEST_ID] = random_base62(_REQUEST_ID_LENGTH)
    metrics = services(request).metrics
    started = time.perf_counter()
    with metrics.in_flight.track_inprogress():
        response = await handler(request)
    seconds = time.perf_counter() - started
    route = _template(request)
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    metrics.requests.labels(_method(request), route, response.status).inc()
    metrics.seconds.labels(route).observe(seconds)
    code = response.get(PROBLEM_CODE)
    if code is not None:
        metrics.problems.labels(code).inc()
    if route.startswith(_PROTECTED) or response.status >= 400:
        _log.info(
            "answered",
            method=_method(request),
            route=route,
            status=response.status,
            code=code,
            ms=round(seconds * 1000, 1),
            remote=request.remote,
            request_id=request[REQUEST_ID],
        )
    return response


@web.middleware
async def failures_as_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever is raised into one problem answer."""
    try:
        return await handler(request)
    except Refused as refusal:
        return refused(request, refusal)
    except web.HTTPException as error:
        return _of_framework(request, error)
    except (*POSTGRES_ERRORS, asyncpg.DeadlockDetectedError) as error:
        _log.warning("postgres_unavailable", error=type(error).__name__, request_id=request[REQUEST_ID])
        detail = "The database did not answer in time. Nothing was changed, or the change is complete; look before repeating."
        return problem(request, 503, "postgres_unavailable", detail, headers={"Retry-After": "1"})
    except Exception as error:  # noqa: BLE001 - the last line of defence: logged, and never shown to the caller
        _log.error("failed", error=type(error).__name__, at=_places(error), request_id=request[REQUEST_ID])
        return problem(
            request, 500, "internal", "Something went wrong here. The request id finds it in the log."
        )


@web.middleware
async def limited_in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No call takes longer than the setting says."""
    limit_s = services(request).settings.request_timeout_s
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            return await handler(request)
    except TimeoutError:
        if not limit.expired():
            raise
        detail = f"This took longer than {limit_s:g} s. A change may or may not have been made; look before repeating."
        return problem(request, 503, "timeout", detail, headers={"Retry-After": "1"})


@web.middleware
async def operator_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Everything under /v1 is the operator's, what does not exist there included."""
    if (
        request.rel_url.raw_path.startswith(_PROTECTED)
        and (refusal := await refusal_of_caller(request)) is not None
    ):
        return refusal
    return await handler(request)


IN_ORDER: Final[tuple[Middleware, ...]] = (
    identified_and_logged,
    failures_as_problems,
    limited_in_time,
    operator_only,
)


def _of_framework(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    if isinstance(error, web.HTTPNotFound):
        return problem(request, 404, "route_not_found", "There is no such path in this API.")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        detail = f"{_method(request)} is not possible here; {allowed} is."
        return problem(request, 405, "method_not_allowed", detail, headers={hdrs.ALLOW: allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return problem(request, 413, "body_too_large", "The body has more than 64 KiB.")
    if isinstance(error, web.HTTPUnsupportedMediaType):
        return problem(request, 415, "unsupported_media_type", error.reason)
    if error.status < 400:
        return error
    return problem(request, error.status, "refused", error.reason)


def _template(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


def _method(request: web.Request) -> str:
    return request.method if request.method in hdrs.METH_ALL else "other"


def _places(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_LOGGED:]
    return [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
