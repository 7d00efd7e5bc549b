"""Answers that the gateway gives itself, as bytes. Pure."""

from __future__ import annotations

from http import HTTPStatus

from gateway.refusals import Refusal, headers, render
from gateway.routing import Dialect


def refusal_answer(
    refusal: Refusal, dialect: Dialect, request_id: bytes, connection_field: bytes, *, has_body: bool
) -> bytes:
    """A refusal as a whole HTTP/1.1 answer; to HEAD it has no body, but says how long it would be."""
    content_type, body = render(refusal, dialect, request_id.decode())
    status = refusal.public_status
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%b: %b\r\n" % field for field in headers(refusal)]
    lines.append(
        b"Content-Type: %b\r\nContent-Length: %d\r\nCache-Control: no-store\r\n" % (content_type, len(body))
    )
    lines += [connection_field, b"X-Request-Id: %b\r\n\r\n" % request_id]
    if has_body:
        lines.append(body)
    return b"".join(lines)
