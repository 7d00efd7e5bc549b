"""The demo upstream, as a client sees it."""

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from control.demo.upstream import EVENTS_MAX, start_upstream


@pytest.fixture
async def upstream() -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose base address is a running demo upstream."""
    runner, url = await start_upstream()
    try:
        async with aiohttp.ClientSession(base_url=url) as http:
            yield http
    finally:
        await runner.cleanup()


async def test_it_shows_every_header_that_reached_it_and_the_size_of_the_body(
    upstream: aiohttp.ClientSession,
) -> None:
    headers = [("X-Principal", "service-account/acme/worker"), ("X-Twice", "1"), ("X-Twice", "2")]
    async with upstream.post("/anything/a/b?c=d", headers=headers, data=b"x" * 100_000) as answer:
        seen = await answer.json()
    assert (seen["method"], seen["path"], seen["body_bytes"]) == ("POST", "/anything/a/b?c=d", 100_000)
    assert seen["headers"]["X-Principal"] == "service-account/acme/worker"
    assert seen["headers"]["X-Twice"] == ["1", "2"]


async def test_a_streamed_completion_says_its_usage_last_and_adds_up_to_the_whole_one(
    upstream: aiohttp.ClientSession,
) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
    async with upstream.post("/v1/chat/completions", json=asked) as answer:
        whole = await answer.json()
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    async with upstream.post("/v1/chat/completions", json=streamed) as answer:
        assert answer.content_type == "text/event-stream"
        events = (await answer.text()).removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert chunks[-1]["usage"] == whole["usage"]
    assert whole["usage"]["prompt_tokens"] == 3
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text.strip() == whole["choices"][0]["message"]["content"]


async def test_a_streamed_completion_tells_no_usage_that_was_not_asked_for(
    upstream: aiohttp.ClientSession,
) -> None:
    async with upstream.post("/v1/chat/completions", json={"stream": True, "messages": []}) as answer:
        assert '"usage"' not in await answer.text()


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"messages": 3}', b'{"messages": [3]}'])
async def test_a_completion_without_messages_is_refused(upstream: aiohttp.ClientSession, body: bytes) -> None:
    async with upstream.post("/v1/chat/completions", data=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_it_sends_events_bytes_and_statuses_as_asked(upstream: aiohttp.ClientSession) -> None:
    async with upstream.get("/stream?events=3&interval=0") as answer:
        assert (await answer.text()).count("data: event") == 3
    async with upstream.get("/bytes/1000001") as answer:
        assert len(await answer.read()) == 1_000_001
    for status in (204, 302, 404, 503):
        async with upstream.get(f"/status/{status}", allow_redirects=False) as answer:
            assert answer.status == status


@pytest.mark.parametrize(
    "path", [f"/stream?events={EVENTS_MAX + 1}", "/stream?interval=nan", "/bytes/999999999999", "/status/101"]
)
async def test_it_refuses_what_has_no_end(upstream: aiohttp.ClientSession, path: str) -> None:
    async with upstream.get(path) as answer:
        assert answer.status == 400
