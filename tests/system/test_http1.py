"""HTTP/1.1 as clients rely on it: framing both ways, keep-alive, pipelining, old clients, bounds."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.system.conftest import StartGateway
from tests.system.installation import Installation
from tests.system.recording_upstream import PIECE, RecordingUpstream
from tests.system.wire import request, wire


@pytest.fixture
def port(installation: Installation) -> int:
    return installation.addresses.gateway_port


async def test_one_connection_serves_many_requests_and_so_does_one_to_the_upstream(
    installation: Installation, upstream: RecordingUpstream, port: int
) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        for number in range(20):
            client.send(request(workload, f"/free/{number}"))
            assert (await client.answer()).status == 200
    assert len({seen.connection for seen in upstream.of(workload.key)}) == 1


async def test_pipelined_requests_are_answered_in_order(
    installation: Installation, upstream: RecordingUpstream, port: int
) -> None:
    workload = await installation.workload()
    plays = ["sleep/0.2", "echo", "nothing-here", "sleep/0.05", "status/204", "echo"]
    async with wire(port) as client:
        client.send(b"".join(request(workload, f"/free/{play}/{n}") for n, play in enumerate(plays)))
        client.send(
            request(workload, "/nowhere") + request(workload, "/free/last", body=b"abc", method="POST")
        )
        answers = [await client.answer() for _ in range(len(plays) + 2)]
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 204, 200, 404, 200]
    bodies = [json.loads(answer.body) for answer in answers if answer.status == 200]
    assert [body["target"][-1] for body in bodies] == ["0", "1", "2", "3", "5", "t"]
    assert len(upstream.of(workload.key)) == 7


async def test_a_pipeline_of_thousands_is_answered_whole(installation: Installation, port: int) -> None:
    workload = await installation.workload()
    count = 3000
    async with wire(port) as client:
        client.send(request(workload, "/free/status/204") * count)
        for _ in range(count):
            assert (await client.answer()).status == 204
        assert await client.still_open(0.1)
    assert len(await installation.settled(workload.tag)) == count


async def test_a_head_has_the_length_and_no_body(installation: Installation, port: int) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        client.send(request(workload, "/free/bytes/1000", method="HEAD") + request(workload, "/free/"))
        answer = await client.answer(to_head=True)
        assert (answer.status, answer["content-length"]) == (200, "1000")
        assert (await client.answer()).status == 200
        client.send(request(None, "/free/", method="HEAD"))
        refused = await client.answer(to_head=True)
        assert refused.status == 401
        assert int(refused["content-length"]) > 0
        client.send(request(workload, "/free/"))
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_that_have_no_body_leave_the_connection_usable(
    installation: Installation, port: int, status: int
) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        client.send(request(workload, f"/free/status/{status}"))
        answer = await client.answer()
        assert answer.status == status
        assert answer.all("content-length") == answer.all("transfer-encoding") == []
        assert answer["etag"] == '"1"'
        client.send(request(workload, "/free/"))
        assert (await client.answer()).status == 200


async def test_a_chunked_answer_arrives_whole_with_its_trailers_and_without_extensions(
    installation: Installation, port: int
) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        for count, size in ((1, 1), (50, 1000), (20, 200_000), (2000, 3)):
            client.send(request(workload, f"/free/chunked/{count}/{size}"))
            answer = await client.answer()
            assert answer.is_whole
            assert answer["transfer-encoding"] == "chunked"
            assert answer.body == PIECE[:size] * count
            assert answer.trailers == (("x-trailer", "kept"),)
        client.send(request(workload, "/free/"))
        assert (await client.answer()).status == 200


async def test_a_chunked_body_arrives_whole_however_it_is_cut(
    installation: Installation, upstream: RecordingUpstream, port: int
) -> None:
    workload = await installation.workload()
    body = b"5;a=b\r\nhello\r\n1\r\n \r\nA\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n"
    async with wire(port) as client:
        client.send(request(workload, "/free/at-once", "Transfer-Encoding: chunked", method="POST") + body)
        assert json.loads((await client.answer()).body)["body_bytes"] == 16
        client.send(request(workload, "/free/in-pieces", "Transfer-Encoding: chunked", method="PUT"))
        for position in range(len(body)):
            client.send(body[position : position + 1])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert json.loads((await client.answer()).body)["body_bytes"] == 16
    first, second = upstream.of(workload.key)
    assert first.sha256 == second.sha256
    assert first.one("transfer-encoding") == second.one("transfer-encoding") == "chunked"
    assert first.trailers == second.trailers == [("X-Trailer", "1")]


async def test_a_body_with_a_length_keeps_it(
    installation: Installation, upstream: RecordingUpstream, port: int
) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        for body in (b"", b"x", PIECE * 3):
            length = () if body else ("Content-Length: 0",)
            client.send(request(workload, "/free/", *length, method="POST", body=body))
            assert json.loads((await client.answer()).body)["body_bytes"] == len(body)
    assert [seen.one("content-length") for seen in upstream.of(workload.key)] == [
        "0",
        "1",
        str(3 * len(PIECE)),
    ]


async def test_an_answer_that_ends_with_its_connection_arrives_whole(
    installation: Installation, port: int
) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        client.send(request(workload, "/free/until-close/100000"))
        answer = await client.answer()
        assert answer.is_whole
        assert answer.body == PIECE[:100_000]
        client.send(request(workload, "/free/"))
        assert (await client.answer()).status == 200


async def test_a_client_of_http_1_0_gets_what_it_can_read(installation: Installation, port: int) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        client.send(request(workload, "/free/chunked/3/100", version="1.0"))
        answer = await client.answer()
        assert answer.all("transfer-encoding") == []
        assert answer.body == PIECE[:100] * 3
    async with wire(port) as client:
        for _ in range(2):
            client.send(request(workload, "/free/", "Connection: keep-alive", version="1.0"))
            answer = await client.answer()
            assert (answer.status, answer["connection"]) == (200, "keep-alive")
        client.send(request(workload, "/free/", version="1.0"))
        assert (await client.answer())["connection"] == "close"
        assert await client.is_closed()


async def test_connection_close_is_obeyed(installation: Installation, port: int) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        client.send(request(workload, "/free/", "Connection: close"))
        assert (await client.answer())["connection"] == "close"
        assert await client.is_closed()


async def test_a_client_that_waits_for_100_continue_is_asked_for_its_body_once_it_may_pass(
    installation: Installation, upstream: RecordingUpstream, port: int
) -> None:
    workload = await installation.workload("0.10")
    head = request(workload, "/priced/", "Expect: 100-continue", "Content-Length: 5", method="PUT")
    async with wire(port) as client:
        client.send(head)
        assert (await client.answer(skip_interim=False)).status == 100
        client.send(b"hello")
        assert json.loads((await client.answer()).body)["body_bytes"] == 5
        client.send(head)
        assert (await client.answer(skip_interim=False)).status == 402
        assert await client.is_closed()
    assert len(upstream.of(workload.key)) == 1


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("GET /free/ HTTP/1.1\r\nHost: a\r\nX-A: " + "b" * 40_000 + "\r\n\r\n", 431),
        ("GET /free/ HTTP/1.1\r\nHost: a\r\n" + "X-A: b\r\n" * 150 + "\r\n", 431),
        ("GET /free/" + "a" * 9_000 + " HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        ("GET /free/" + "a" * 90_000, 414),
        ("GET /free/ HTTP/1.1\r\n\r\n", 400),
        ("GET /free/ HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("GET  /free/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /free/%2e%2e%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
        ("GET http://b/free/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x00" * 50, 400),
        ("SSH-2.0-OpenSSH_9.2\r\n", 400),
    ],
    ids=lambda value: str(value)[:24].encode("unicode_escape").decode() if isinstance(value, str) else None,
)  # fmt: skip
async def test_what_is_malformed_or_too_long_is_refused_and_the_connection_ends(
    port: int, what: str, status: int
) -> None:
    async with wire(port) as client:
        client.send(what.encode("latin-1"))
        answer = await client.answer()
        assert answer.status == status
        assert answer["connection"] == "close"
        assert json.loads(answer.body)["error"]["code"] == "bad_request"
        assert await client.is_closed()


async def test_a_body_that_is_too_large_is_refused_before_and_while_it_arrives(
    installation: Installation, upstream: RecordingUpstream, gateway_with: StartGateway
) -> None:
    workload = await installation.workload()
    gateway = gateway_with(body_bytes_max="100000")
    async with wire(gateway.port) as client:
        client.send(request(workload, "/free/", "Content-Length: 100001", method="POST"))
        assert (await client.answer()).status == 413
        assert await client.is_closed()
    assert upstream.of(workload.key) == []
    async with wire(gateway.port) as client:
        client.send(request(workload, "/free/", "Transfer-Encoding: chunked", method="POST"))
        client.send(
            b"10000\r\n" + PIECE[:0x10000] + b"\r\n" + b"10000\r\n" + PIECE[:0x10000] + b"\r\n0\r\n\r\n"
        )
        assert (await client.answer()).status == 413
    async with wire(gateway.port) as client:
        client.send(request(workload, "/free/", method="POST", body=PIECE[:100_000]))
        assert (await client.answer()).status == 200
    await installation.settled(workload.tag)


async def test_without_a_token_a_client_is_told_both_ways_to_give_one(port: int) -> None:
    async with wire(port) as client:
        client.send(request(None, "/free/"))
        answer = await client.answer()
        assert answer.status == 401
        challenges = answer.all("www-authenticate")
        assert [challenge.split()[0] for challenge in challenges] == ["Bearer", "Basic"]
        assert json.loads(answer.body)["code"] == "missing_token"
        client.send(request(None, "/free/", "Authorization: Bearer tk_nonsense"))
        answer = await client.answer()
        assert answer.status == 401
        assert 'error="invalid_token"' in answer.all("www-authenticate")[0]


async def test_what_no_route_serves_is_404_and_says_so_in_json(installation: Installation, port: int) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        for target in ("/", "/fre", "/-/", "/-/nothing", "/free/../nowhere", "/FREE/"):
            client.send(request(workload, target))
            answer = await client.answer()
            assert (answer.status, json.loads(answer.body)["code"]) == (404, "no_such_route"), target


async def test_dot_segments_cannot_leave_the_route(
    installation: Installation, upstream: RecordingUpstream, port: int
) -> None:
    workload = await installation.workload("0.10")
    async with wire(port) as client:
        client.send(request(workload, "/free/../priced/%7Eme//x/./y?q=%2e"))
        assert (await client.answer()).status == 200
    (seen,) = upstream.of(workload.key)
    assert seen.target == "/priced/~me/x/y?q=%2e"
    (row,) = await installation.settled(workload.tag)
    assert (row["route"], row["path"]) == ("priced", "/priced/~me/x/y")


async def test_an_answer_before_the_whole_body_is_passed_on(installation: Installation, port: int) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        client.send(request(workload, "/free/early", "Content-Length: 100000", method="POST") + b"x" * 10)
        answer = await client.answer()
        assert (answer.status, answer.body) == (403, b"no")
        assert await client.is_closed()


async def test_a_kept_connection_that_the_upstream_has_closed_is_not_the_clients_problem(
    installation: Installation, upstream: RecordingUpstream, port: int
) -> None:
    workload = await installation.workload()
    async with wire(port) as client:
        for number in range(10):
            client.send(request(workload, f"/free/{number}"))
            assert (await client.answer()).status == 200
            upstream.hang_up()
    assert len(await installation.settled(workload.tag)) == 10
