"""Answers that the gateway gives itself: in the dialect of the route, JSON or plain text, and HTML never."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.installation import (
    Addresses,
    Gateway,
    Installation,
    Workload,
    another_gateway,
    with_other_secret,
)
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import Answer, request, wire

DIALECTS = ("problem", "openai", "anthropic", "plain")
CONTENT_TYPES = {
    "problem": "application/problem+json", "openai": "application/json", "anthropic": "application/json",
    "plain": "text/plain; charset=utf-8",
}  # fmt: skip
ROUTES = """
[[route]]
name = "{dialect}"
path = "/{dialect}/"
upstream = "{recording}"
price.request = "0.10"
errors = "{dialect}"
timeouts = {{ connect_s = 2, first_byte_s = 0.5, between_bytes_s = 0.5 }}

[[route]]
name = "{dialect}-nobody"
path = "/{dialect}/nobody/"
upstream = "http://127.0.0.1:9"
errors = "{dialect}"
"""
BODY_BYTES_MAX = 100_000


@pytest.fixture(scope="module")
def gateway(addresses: Addresses, data_dir: Path, upstream: RecordingUpstream) -> Iterator[Gateway]:
    routes = data_dir / "dialects.toml"
    routes.write_text("".join(ROUTES.format(dialect=dialect, recording=upstream.url) for dialect in DIALECTS))
    with another_gateway(
        addresses.redis,
        data_dir / "pepper",
        data_dir / "gateways.log",
        routes,
        body_bytes_max=str(BODY_BYTES_MAX),
    ) as started:
        yield started


def code_in(dialect: str, answer: Answer) -> str:
    """The code of a refusal, where the clients of this dialect look for it; fails if the body is not what they read."""
    assert answer["content-type"] == CONTENT_TYPES[dialect]
    assert answer["cache-control"] == "no-store"
    assert b"<" not in answer.body
    if dialect == "plain":
        text = answer.body.decode()
        assert text.endswith(")\n")
        return text[:-2].rpartition("(")[2]
    body: dict[str, Any] = json.loads(answer.body)
    error: dict[str, Any] = body["error"]
    assert error["message"]
    if dialect == "problem":
        assert body["status"] == answer.status
        assert body["type"].startswith("urn:tollkeeper:problem:")
        assert (body["code"], body["request_id"]) == (error["code"], answer["x-request-id"])
    elif dialect == "anthropic":
        assert (body["type"], body["request_id"]) == ("error", answer["x-request-id"])
    else:
        assert set(body) == {"error"}
        assert error["metadata"]["request_id"] == answer["x-request-id"]
    return str(error["code"])


Asks = Callable[[Workload, str], bytes]
REFUSED: dict[str, tuple[Asks, int, str]] = {
    "no token": (lambda _, path: request(None, path), 401, "missing_token"),
    "no such token": (
        lambda who, path: request(None, path, f"Authorization: Bearer {with_other_secret(who.token)}"), 401, "invalid_token",
    ),
    "no body that can be read": (
        lambda who, path: request(who, path, "Transfer-Encoding: chunked", method="POST") + b"<x>\r\n", 400, "bad_request",
    ),
    "too large a body": (
        lambda who, path: request(who, path, f"Content-Length: {BODY_BYTES_MAX + 1}", method="POST"), 413, "body_too_large",
    ),
    "nobody there": (lambda who, path: request(who, f"{path}nobody/"), 502, "upstream_unreachable"),
    "no answer": (lambda who, path: request(who, f"{path}die/-1"), 502, "upstream_failed"),
    "no HTTP": (lambda who, path: request(who, f"{path}nonsense"), 502, "upstream_failed"),
    "no answer in time": (lambda who, path: request(who, f"{path}never"), 504, "upstream_timeout"),
}  # fmt: skip
"""What is asked of a route, and how that is answered."""


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_route_refuses_in_the_words_of_its_clients(
    installation: Installation, gateway: Gateway, dialect: str
) -> None:
    workload = await installation.workload()
    for what, (asks, status, code) in REFUSED.items():
        async with wire(gateway.port) as client:
            client.send(asks(workload, f"/{dialect}/"))
            answer = await client.answer()
            assert (answer.status, code_in(dialect, answer)) == (status, code), what
    poor = await installation.workload("0.05")
    async with wire(gateway.port) as client:
        client.send(request(poor, f"/{dialect}/"))
        answer = await client.answer()
        assert (answer.status, code_in(dialect, answer)) == (402, "budget_exceeded")
        client.send(request(poor, f"/{dialect}/", method="HEAD"))
        answer = await client.answer(to_head=True)
        assert (answer.status, answer["content-type"], answer.body) == (402, CONTENT_TYPES[dialect], b"")


MALFORMED: dict[str, tuple[bytes, int]] = {
    "no request": (b"<html></html>\r\n\r\n", 400),
    "no host": (b"GET /plain/ HTTP/1.1\r\n\r\n", 400),
    "no path": (b"GET /plain/%00<script> HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "nowhere": (b"GET /nowhere/%3Cscript%3E HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    "the gateway's own": (b"GET /-/nothing HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    "too long a target": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: <\r\n\r\n", 414),
    "expectations": (b"PUT /plain/ HTTP/1.1\r\nHost: a\r\nExpect: <b>\r\nContent-Length: 1\r\n\r\n", 417),
    "too long a head": (b"GET /plain/ HTTP/1.1\r\nHost: a\r\nX: " + b"<" * 40_000 + b"\r\n\r\n", 431),
    "too many fields": (b"GET /plain/ HTTP/1.1\r\nHost: a\r\n" + b"X: <\r\n" * 200 + b"\r\n", 431),
    "a tunnel": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
    "a coding": (b"PUT /plain/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "a version": (b"GET /plain/ HTTP/3.0\r\nHost: a\r\n\r\n", 505),
}
"""What no route's dialect is known for yet, and how that is answered."""


@pytest.mark.parametrize("what", MALFORMED)
async def test_what_no_route_answers_is_refused_as_a_problem_in_json(gateway: Gateway, what: str) -> None:
    data, status = MALFORMED[what]
    async with wire(gateway.port) as client:
        client.send(data)
        answer = await client.answer()
    assert (answer.status, code_in("problem", answer)) == (
        status,
        "no_such_route" if status == 404 else "bad_request",
    )
