"""Answers of the gateway's own: framed like any other, and the last event of a stream that real clients take for an error."""

import httpx2
import openai
import orjson
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from gateway.http1.own_answer import event_of, headers, own_answer
from gateway.refusals import Entity, Reason, Refusal, cut_for_budget
from gateway.routing import DIALECTS, Dialect

CUT = cut_for_budget("key", Entity("k1"), (1000, 900, 50, 0))
DELTA = (
    b'data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
)


def test_an_own_answer_is_whole_and_not_to_be_stored() -> None:
    answer = own_answer(b'{"a":1}', b"request-1", b"Connection: close\r\n", has_body=True)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Content-Length: 7", b"Cache-Control: no-store",
        b"Connection: close", b"X-Request-Id: request-1",
    ]  # fmt: skip
    assert (
        own_answer(b'{"a":1}', b"request-1", b"Connection: close\r\n", has_body=False) == head + b"\r\n\r\n"
    )


def test_a_method_that_is_not_allowed_is_told_which_are() -> None:
    assert headers(Refusal(Reason.METHOD_NOT_ALLOWED)) == [(b"Allow", b"GET, HEAD")]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("refusal", [CUT, Refusal(Reason.NOT_READY, detail="one\ntwo\r\n\r\nthree")])
def test_an_event_is_one_whole_event_whatever_it_says(dialect: Dialect, refusal: Refusal) -> None:
    event = event_of(refusal, dialect, "request-1")
    lines = event.decode().split("\n")
    assert "\r" not in event.decode()
    assert lines[-2:] == ["", ""]
    *names, data = lines[:-2]
    assert names == ([] if dialect == "openai" else ["event: error"])
    told = orjson.loads(data.removeprefix("data: "))
    assert told["error"]["message"] == refusal.public_detail
    assert told["error"]["code"] == refusal.public_code
    assert "request-1" in data


def test_the_last_event_says_what_its_dialects_clients_look_for() -> None:
    told = {dialect: orjson.loads(event_of(CUT, dialect, "r").split(b"data: ")[1]) for dialect in DIALECTS}
    assert set(told["openai"]) == {"error"}
    assert (told["anthropic"]["type"], told["anthropic"]["error"]["type"]) == ("error", "insufficient_quota")
    assert told["problem"] == told["plain"]
    assert told["problem"]["type"] == "urn:tollkeeper:problem:budget_exceeded"


def test_the_openai_sdk_takes_the_last_event_for_an_error_after_what_came_before() -> None:
    stream = DELTA + event_of(CUT, "openai", "request-1")
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    transport = httpx2.MockTransport(lambda _: answer)
    asked: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hello"}]
    read: list[str | None] = []
    with openai.OpenAI(
        api_key="none", base_url="http://gateway.example/v1", http_client=httpx2.Client(transport=transport), max_retries=0
    ) as client, pytest.raises(openai.APIError) as failure:  # fmt: skip
        read += [
            chunk.choices[0].delta.content
            for chunk in client.chat.completions.create(model="m", messages=asked, stream=True)
        ]
    assert failure.value.code == "budget_exceeded"
    assert "ran out while the answer was under way" in failure.value.message
