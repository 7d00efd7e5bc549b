"""Answers that the gateway gives itself, as bytes. Pure.

A refusal is said in the dialect of the route: RFC 9457 problem JSON that also carries the `error` object which OpenAI-style
SDKs read, or the dialects of other SDKs. HTML never.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import orjson

from gateway.quota_fields import quota_fields
from gateway.refusals import Reason, Refusal
from gateway.routing import Dialect

_ALLOW: Final = (b"Allow", b"GET, HEAD")
_CHALLENGES: Final = (
    (b"WWW-Authenticate", b'Bearer realm="tollkeeper"'),
    (b"WWW-Authenticate", b'Basic realm="tollkeeper", charset="UTF-8"'),
)
_INVALID_CHALLENGES: Final = (
    (b"WWW-Authenticate", b'Bearer realm="tollkeeper", error="invalid_token"'),
    (b"WWW-Authenticate", b'Basic realm="tollkeeper", charset="UTF-8"'),
)


def refusal_answer(
    refusal: Refusal, dialect: Dialect, request_id: bytes, connection_field: bytes, *, has_body: bool
) -> bytes:
    """A refusal as a whole HTTP/1.1 answer; to HEAD it has no body, but says how long it would be."""
    content_type, body = render(refusal, dialect, request_id.decode())
    status = refusal.public_status
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%b: %b\r\n" % field for field in headers(refusal)]
    lines += _framed(content_type, body, request_id, connection_field, has_body)
    return b"".join(lines)


def own_answer(content: bytes, request_id: bytes, connection_field: bytes, *, has_body: bool) -> bytes:
    """What was asked of the gateway itself, in JSON, as a whole answer with status 200; to HEAD without its body."""
    lines = _framed(b"application/json", content, request_id, connection_field, has_body)
    return b"".join((b"HTTP/1.1 200 OK\r\n", *lines))


def _framed(
    content_type: bytes, body: bytes, request_id: bytes, connection_field: bytes, has_body: bool
) -> tuple[bytes, ...]:
    return (
        b"Content-Type: %b\r\nContent-Length: %d\r\nCache-Control: no-store\r\n" % (content_type, len(body)),
        connection_field,
        b"X-Request-Id: %b\r\n\r\n" % request_id,
        body if has_body else b"",
    )


def headers(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """Fields that go with a refusal: challenges, Retry-After where waiting helps, x-should-retry where it does not, and which
    limit stood in the way."""
    fields: list[tuple[bytes, bytes]] = []
    if refusal.reason is Reason.MISSING_TOKEN:
        fields.extend(_CHALLENGES)
    elif refusal.reason is Reason.INVALID_TOKEN:
        fields.extend(_INVALID_CHALLENGES)
    elif refusal.reason is Reason.METHOD_NOT_ALLOWED:
        fields.append(_ALLOW)
    retry_after_s = refusal.public_retry_after_s
    if retry_after_s:
        fields.append((b"Retry-After", b"%d" % retry_after_s))
    if refusal.public_status == 429 and (refusal.reason is Reason.BUDGET_EXCEEDED or retry_after_s == 0):
        fields.append((b"x-should-retry", b"false"))  # SDKs try every other 429 again
    if refusal.quota is not None:
        fields.extend(quota_fields(refusal.quota))
    return fields


def render(refusal: Refusal, dialect: Dialect, request_id: str) -> tuple[bytes, bytes]:
    """Content-Type and body of a refusal in a route's dialect."""
    detail = refusal.public_detail
    if dialect == "plain":
        return b"text/plain; charset=utf-8", f"{refusal.title}: {detail} ({refusal.public_code})\n".encode()
    if dialect == "anthropic":
        anthropic: dict[str, Any] = {
            "type": refusal.error_type,
            "message": detail,
            "code": refusal.public_code,
        }
        return b"application/json", orjson.dumps(
            {"type": "error", "error": anthropic, "request_id": request_id}
        )
    error: dict[str, Any] = {
        "message": detail, "type": refusal.error_type, "code": refusal.public_code, "param": refusal.param,
        "metadata": {**refusal.metadata, "request_id": request_id},
    }  # fmt: skip
    if dialect == "openai":
        return b"application/json", orjson.dumps({"error": error})
    problem = {
        "type": f"urn:tollkeeper:problem:{refusal.reason.value}",
        "title": refusal.title,
        "status": refusal.public_status,
        "detail": detail,
        "code": refusal.public_code,
        "request_id": request_id,
        **refusal.metadata,
        "error": error,
    }
    return b"application/problem+json", orjson.dumps(problem)


def event_of(refusal: Refusal, dialect: Dialect, request_id: str) -> bytes:
    """A refusal as the last Server-Sent Event of an answer under way, whole: to be written where no other event has begun.

    SDKs in the manner of OpenAI's look for `error` in the data of an event without a name, Anthropic's for an event "error".
    """
    if dialect == "openai":
        return b"data: %b\n\n" % render(refusal, dialect, request_id)[1]
    told: Dialect = "anthropic" if dialect == "anthropic" else "problem"
    return b"event: error\ndata: %b\n\n" % render(refusal, told, request_id)[1]
