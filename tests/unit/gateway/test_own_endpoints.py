"""`/-/key`: a key asks about itself. Nothing is held, forwarded or written down for it, and the connection goes on as ever."""

import asyncio
import base64
from itertools import pairwise
from typing import Any

import hiredis
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import layout, token
from gateway.contract.ids import OrganizationTag
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget
from gateway.http1.client_end import DISCARD_BYTES_MAX
from gateway.key_report import RECORD_FIELDS
from gateway.own_endpoints import ANSWERED_WITHIN_S
from gateway.refusals import Refusal
from gateway.routing import Route, Upstream
from tests.unit.gateway.http1.referee import read_answers
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ACCOUNT, AUTHORIZATION, HOST, KEY, TOKEN, World, get

ASK = get(b"/-/key")
NAMES = layout.Layout(16)
RECORD = NAMES.key(KEY).encode()
BUDGET = Budget(Microcredits(5_000_000)).fields()


class Records:
    """What Redis holds of the chain, read by the names of fields; everything else is as in any other world."""

    def __init__(self, world: World) -> None:
        self.world = world
        rules = dict(zip(map(str, BUDGET[::2]), BUDGET[1::2], strict=True))
        given = {"status": "active", "window": 0, "spent": 1_500_000, "held": 500_000, **rules}
        digest, hash_, *identity = world.redis.records[RECORD]
        named = ("account", "account_name", "account_kind", "organization", "organization_name")
        self.digest = digest
        self.key: dict[str, Any] = {
            **given, "digest": digest, "hash": hash_, **dict(zip(named, identity, strict=True)),
        }  # fmt: skip
        self.account, self.organization = dict(given), dict(given)
        self.error: Exception | None = None
        self.read: list[bytes] = []
        world.redis.replies = self.answer

    def answer(self, command: list[bytes]) -> Any:
        name, *arguments = command
        record = {
            RECORD: self.key,
            NAMES.account(ACCOUNT).encode(): self.account,
            NAMES.organization(OrganizationTag("Acme01")).encode(): self.organization,
        }.get(arguments[0] if arguments else b"")
        if name != b"HMGET" or record is None:
            return self.world.redis.run(command)
        self.read.append(arguments[0])
        if self.error is not None and arguments[1] == RECORD_FIELDS[0].encode():
            return self.error
        return [self._encoded(record.get(field.decode())) for field in arguments[1:]]

    @staticmethod
    def _encoded(value: Any) -> bytes | None:
        return value if value is None or isinstance(value, bytes) else str(value).encode()


def answers(client: Line) -> list[tuple[int, dict[str, str], Any]]:
    """What a client was sent: status, fields in lower case, and the JSON of the body."""
    return [
        (read.status, {name.decode().lower(): value.decode() for name, value in read.fields}, orjson.loads(read.body))
        for read in read_answers(bytes(client.sent)) or ()
        if read.is_whole
    ]  # fmt: skip


def asked(world: World, request: bytes = ASK) -> tuple[int, dict[str, str], Any]:
    """What one request on a connection of its own is answered."""
    client = world.client()
    client.say(request)
    world.settle_down()
    (answer,) = answers(client)
    client.lose()
    world.settle_down()
    return answer


def with_body(framing: bytes, method: bytes = b"GET") -> bytes:
    """A question with a body: its framing, an empty line, and what of it there is."""
    return b"%b /-/key HTTP/1.1\r\n%b%b%b" % (method, HOST, AUTHORIZATION, framing)


def check_nothing_happened(world: World) -> None:
    assert world.upstream.all_requests == []
    assert world.redis.events == []
    assert world.redis.admitted == []
    world.check_books()


def test_a_key_is_told_where_it_stands_and_nothing_is_held_forwarded_or_written_for_it() -> None:
    with World() as world:
        Records(world)
        status, fields, told = asked(world)
        assert (status, fields["content-type"], fields["cache-control"]) == (
            200,
            "application/json",
            "no-store",
        )
        assert len(fields["x-request-id"]) == 24
        assert "connection" not in fields
        assert (told["id"], told["status"], told["binding"]) == (KEY, "active", "key")
        assert (told["principal"], told["account"]["name"]) == ("service-account/acme/build-bot", "build-bot")
        assert told["organization"]["id"] == "org_Acme01"
        for level in ("key", "account", "organization"):
            assert {name: told[level][name] for name in ("limit", "spent", "held", "remaining")} == {
                "limit": "5", "spent": "1.5", "held": "0.5", "remaining": "3",
            }  # fmt: skip
        assert world.proxy.metrics.events["own_key"] == 1
        check_nothing_happened(world)


def test_a_token_that_was_never_seen_before_is_recognised() -> None:
    with World(knows_caller=False) as world:
        Records(world)
        assert asked(world)[0] == 200
        assert world.proxy.directory.known_count == 1
        check_nothing_happened(world)


@pytest.mark.parametrize(
    "credentials",
    [AUTHORIZATION, b"X-Api-Key: " + TOKEN, b"Authorization: Basic " + base64.b64encode(b"anybody:" + TOKEN)],
)
def test_a_token_is_sent_in_any_of_the_three_ways(credentials: bytes) -> None:
    with World() as world:
        Records(world)
        request = b"GET /-/key HTTP/1.1\r\n%b%b\r\n\r\n" % (HOST, credentials.strip())
        assert asked(world, request)[2]["id"] == KEY


def test_an_answer_to_head_is_its_head() -> None:
    with World() as world:
        Records(world)
        client = world.client()
        client.say(get(b"/-/key", b"X-Request-Id: mine"))
        world.settle_down()
        whole, end = bytes(client.sent), len(client.sent)
        client.say(get(b"/-/key", b"X-Request-Id: mine").replace(b"GET", b"HEAD"))
        world.settle_down()
        assert bytes(client.sent[end:]) == whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert b"X-Request-Id: mine\r\n" in whole


@pytest.mark.parametrize("path", [b"/-/key?verbose=1", b"/-//key", b"/x/../-/key", b"/%2D/key", b"/-/./key"])
def test_the_path_is_read_in_its_normal_form(path: bytes) -> None:
    with World() as world:
        Records(world)
        assert asked(world, get(path))[0] == 200


# -- who asks


def other_token() -> bytes:
    """A well-formed token of the same key, with another secret."""
    body = TOKEN[:20] + b"0th3r" * 8 + b"abc"
    return body + token.checksum(body).encode()


@pytest.mark.parametrize(
    ("credentials", "code"),
    [
        (b"", "missing_token"),
        (b"Authorization: Bearer nonsense\r\n", "invalid_token"),
        (b"Authorization: Bearer " + TOKEN[:-1] + b"x\r\n", "invalid_token"),
        (b"Authorization: Bearer " + other_token() + b"\r\n", "invalid_token"),
    ],
)  # fmt: skip
def test_who_does_not_know_the_secret_is_told_nothing(credentials: bytes, code: str) -> None:
    with World() as world:
        Records(world)
        status, fields, told = asked(world, b"GET /-/key HTTP/1.1\r\n%b%b\r\n" % (HOST, credentials))
        assert (status, told["code"]) == (401, code)
        assert fields["www-authenticate"].startswith("Basic ")  # the second of two
        assert KEY not in str(told)
        assert world.proxy.metrics.refusals[("", code)] == 1
        check_nothing_happened(world)


@pytest.mark.parametrize(
    ("level", "given", "status"),
    [
        ("key", {"status": "disabled"}, "disabled"), ("key", {"status": "revoked"}, "revoked"),
        ("key", {"expires_at": 1}, "expired"), ("account", {"status": "inactive"}, "account_inactive"),
        ("organization", {"status": "deleted"}, "organization_deleted"),
    ],
)  # fmt: skip
def test_a_key_that_is_not_in_force_is_answered_why(level: str, given: dict[str, Any], status: str) -> None:
    with World() as world:
        getattr(Records(world), level).update(given)
        answered, _, told = asked(world)
        assert (answered, told["status"]) == (200, status)
        assert told["detail"]


def test_a_key_whose_record_has_another_digest_now_is_not_known_any_more() -> None:
    with World() as world:
        Records(world).key["digest"] = b"another"
        assert asked(world)[0] == 401
        assert world.proxy.directory.known_count == 0


def test_a_record_that_has_lost_its_digest_is_given_it_again() -> None:
    with World() as world:
        records = Records(world)
        records.key["digest"] = None
        answer = records.answer

        def adopting(command: list[bytes]) -> Any:
            if world.redis.name_of(command) == "adopt":
                records.key["digest"] = command[-1]
                return 1
            return answer(command)

        world.redis.replies = adopting
        assert asked(world)[0] == 200
        assert records.key["digest"] == records.digest


@pytest.mark.parametrize(("is_loaded", "status"), [(True, 401), (False, 503)])
def test_a_key_that_is_gone_is_unknown_only_to_a_redis_that_is_loaded(is_loaded: bool, status: int) -> None:
    with World() as world:
        Records(world).key.clear()
        world.redis.is_loaded = is_loaded
        assert asked(world)[0] == status


@pytest.mark.parametrize("level", ["account", "organization"])
def test_half_a_chain_is_not_shown(level: str) -> None:
    with World() as world:
        getattr(Records(world), level).clear()
        assert asked(world)[0] == 503


# -- other questions


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"BREW"])
def test_other_methods_are_not_allowed_and_the_connection_goes_on(method: bytes) -> None:
    with World() as world:
        Records(world)
        client = world.client()
        client.say(with_body(b"Content-Length: 3\r\n\r\nabc", method) + ASK)
        world.settle_down()
        (status, fields, told), (after, _, _) = answers(client)
        assert (status, fields["allow"], told["code"]) == (405, "GET, HEAD", "method_not_allowed")
        assert after == 200
        check_nothing_happened(world)


@pytest.mark.parametrize("path", [b"/-/", b"/-/keys", b"/-/key/", b"/-/key/x", b"/-/KEY", b"/-/key;x"])
def test_nothing_else_is_under_the_prefix_and_nothing_is_forwarded_from_there(path: bytes) -> None:
    with World() as world:
        Records(world)
        status, _, told = asked(world, get(path))
        assert (status, told["code"]) == (404, "no_such_route")
        check_nothing_happened(world)


def test_the_prefix_is_the_operators_to_choose() -> None:
    with World(own_prefix="/.tollkeeper/") as world:
        Records(world)
        assert asked(world, get(b"/.tollkeeper/key"))[2]["id"] == KEY
        assert asked(world, get(b"/.tollkeeper/x"))[0] == 404
        client = world.client()
        client.say(ASK)
        world.settle_down()
        assert [read.target for read in world.upstream.all_requests] == [b"/-/key"]


def test_a_path_that_an_upstream_could_read_as_the_gateways_own_is_refused() -> None:
    everything = Route("raw", b"/", (Upstream("http", "up.example", 80),), raw_path=True)
    with World([everything]) as world:
        Records(world)
        for path in (b"/-%2Fkey", b"/-%2fx", b"/%2F-/key", b"/x%2f..%2f-/key"):
            assert asked(world, get(path))[0] == 400
        assert world.upstream.all_requests == []
        client = world.client()
        client.say(get(b"/x%2Fkey"))
        world.settle_down()
        assert [read.target for read in world.upstream.all_requests] == [b"/x%2Fkey"]


# -- the connection


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 3\r\n\r\nabc", b"Content-Length: 0\r\n\r\n",
        b"Content-Length: %d\r\n\r\n%b" % (DISCARD_BYTES_MAX, b"x" * DISCARD_BYTES_MAX),
    ],
)  # fmt: skip
def test_a_body_is_read_and_thrown_away(framing: bytes) -> None:
    with World() as world:
        Records(world)
        client = world.client()
        client.say(with_body(framing) + ASK)
        world.settle_down()
        assert [status for status, _, _ in answers(client)] == [200, 200]
        assert not client.is_lost
        check_nothing_happened(world)


@pytest.mark.parametrize("framing", [b"Content-Length: 3\r\n\r\na", b"Content-Length: 3\r\n\r\n"])
def test_a_body_that_comes_behind_the_answer_is_thrown_away_too(framing: bytes) -> None:
    with World() as world:
        Records(world)
        client = world.client()
        client.say(with_body(framing))
        world.settle_down()
        assert [status for status, _, _ in answers(client)] == [200]
        client.say(b"abc"[len(framing.partition(b"\r\n\r\n")[2]) :] + ASK)
        world.settle_down()
        assert [status for status, _, _ in answers(client)] == [200, 200]


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: %d\r\n\r\n" % (DISCARD_BYTES_MAX + 1),
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    ],
)
def test_what_is_not_worth_waiting_for_ends_the_connection_behind_the_answer(framing: bytes) -> None:
    with World() as world:
        Records(world)
        client = world.client()
        client.say(with_body(framing))
        world.settle_down()
        ((status, fields, _),) = answers(client)
        assert (status, fields["connection"]) == (200, "close")
        assert client.has_ended
        world.advance(3)
        assert client.is_lost


def test_a_malformed_body_is_told_so() -> None:
    with World() as world:
        Records(world)
        world.is_prompt = False
        client = world.client()
        client.say(with_body(b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"))
        world.is_prompt = True
        world.settle_down()
        ((status, fields, told),) = answers(client)
        assert (status, fields["connection"], told["code"]) == (400, "close", "bad_request")


def test_questions_and_requests_in_a_pipeline_are_answered_in_their_order() -> None:
    with World() as world:
        Records(world)
        client = world.client()
        client.say(
            ASK + get(b"/x") + ASK + b"GET /-/key HTTP/1.1\r\n" + HOST + b"\r\n" + get(b"/-/no") + get(b"/y")
        )
        world.settle_down()
        world.settle_down()
        said = [read.status for read in read_answers(bytes(client.sent)) or ()]
        assert said == [200, 200, 200, 401, 404, 200]
        assert [read.target for read in world.upstream.all_requests] == [b"/x", b"/y"]
        world.check_books()


def test_connections_end_as_they_would_with_any_request() -> None:
    with World(connection_requests_max=2) as world:
        Records(world)
        _, fields, _ = asked(world, get(b"/-/key", b"Connection: close"))
        assert fields["connection"] == "close"
        _, fields, _ = asked(
            world, get(b"/-/key", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
        )
        assert fields["connection"] == "keep-alive"
        client = world.client()
        client.say(ASK * 3)
        world.settle_down()
        assert [fields.get("connection") for _, fields, _ in answers(client)] == [None, "close"]


WELL_FORMED = (
    ASK, ASK, get(b"/x"), get(b"/-/nothing"), with_body(b"Content-Length: 3\r\n\r\nabc"),
    with_body(b"Content-Length: 3\r\n\r\nabc", b"POST"), b"GET /-/key HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /x HTTP/1.1\r\n%b%bContent-Length: 2\r\n\r\nhi" % (HOST, AUTHORIZATION),
)  # fmt: skip


def serve(reads: list[tuple[bytes, bool]]) -> tuple[bytes, list[bytes]]:
    """What a client is sent that sends these reads (True: and waits until nothing moves), and what was forwarded."""
    with World() as world:
        Records(world)
        client = world.client()
        for data, waits in reads:
            client.say(data)
            if waits:
                world.settle_down()
        for _ in range(4):
            world.settle_down()
        received, requests = world.plain(client.sent), [read.target for read in world.upstream.all_requests]
        client.lose()
        world.settle_down()
        world.check_books()
        return received, requests


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[tuple[bytes, bool]]]:
    """What a client says, and the same in any split, at any pace."""
    data = b"".join(draw(st.lists(st.sampled_from(WELL_FORMED), min_size=1, max_size=5)))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    bounds = [0, *cuts, len(data)]
    return data, [(data[start:end], draw(st.booleans())) for start, end in pairwise(bounds) if start != end]


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_any_split_at_any_pace_gives_the_same_answers(
    conversation: tuple[bytes, list[tuple[bytes, bool]]],
) -> None:
    data, reads = conversation
    assert serve(reads) == serve([(data, True)])


# -- when things go wrong


def test_a_client_that_goes_while_redis_is_asked_is_missed_by_nobody() -> None:
    with World() as world:
        Records(world)
        world.is_prompt = False
        for request in (ASK, ASK + get(b"/x")):
            client = world.client()
            client.say(request)
            world.turn(3)
            client.lose()
            world.turn(3)
        assert {task.get_name() for task in asyncio.all_tasks(world.loop)} & {"own key"} == set()
        world.is_prompt = True
        world.settle_down()
        assert asked(world)[0] == 200
        check_nothing_happened(world)


def test_a_client_that_ends_behind_its_question_is_answered() -> None:
    with World() as world:
        Records(world)
        client = world.client()
        client.say(ASK)
        client.end()
        world.settle_down()
        assert [status for status, _, _ in answers(client)] == [200]
        assert client.is_lost


def test_without_redis_nothing_is_known() -> None:
    with World() as world:
        Records(world)
        assert world.redis.line is not None
        world.redis.line.lose()
        world.turn(2)
        status, fields, told = asked(world)
        assert (status, fields["retry-after"], told["code"]) == (503, "1", "not_ready")
        world.advance(2.0)
        assert asked(world)[0] == 200


@pytest.mark.parametrize("loses", [True, False], ids=["lost", "silent"])
def test_a_redis_that_goes_while_it_is_asked_is_not_ready(loses: bool) -> None:
    with World() as world:
        Records(world)
        world.is_prompt = False
        client = world.client()
        client.say(ASK)
        world.turn(3)
        assert world.redis.line is not None
        if loses:
            world.redis.line.lose()
        world.advance(2.0)
        ((status, _, told),) = answers(client)
        assert (status, told["code"]) == (503, "not_ready")
        assert world.loop.failures == []


@pytest.mark.parametrize(
    "error", ["LOADING Redis is loading the dataset", "WRONGTYPE Operation against a key", "ERR no"]
)
def test_an_error_of_redis_is_not_ready(error: str) -> None:
    with World() as world:
        Records(world).error = hiredis.ReplyError(error)
        status, _, told = asked(world)
        assert (status, told["code"]) == (503, "not_ready")
        assert world.loop.failures == []


def test_a_record_that_cannot_be_read_is_not_ready() -> None:
    with World() as world:
        Records(world).account["limit"] = "much"
        assert asked(world)[0] == 503


def test_more_than_redis_may_be_asked_at_once_is_too_much() -> None:
    with World(redis_depth_max=8) as world:
        Records(world)
        world.is_prompt = False
        clients = [world.client() for _ in range(5)]
        for client in clients:
            client.say(ASK)
            world.turn(2)
        world.is_prompt = True
        world.settle_down()
        said = [answers(client)[0] for client in clients]
        assert [status for status, _, _ in said] == [200, 200, 503, 503, 503]
        assert said[-1][2]["code"] == "overloaded"


def test_a_question_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with World() as world:
        Records(world)

        async def never(*_: object) -> Refusal:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(world.proxy.directory, "recognise", never)
        client = world.client()
        client.say(ASK)
        world.advance(ANSWERED_WITHIN_S - 1)
        assert answers(client) == []
        world.advance(2.0)
        assert [status for status, _, _ in answers(client)] == [503]
        assert world.loop.failures == []


def test_a_gateway_that_stops_says_so_to_who_waits() -> None:
    with World() as world:
        Records(world)
        world.is_prompt = False
        line = world.client()
        line.say(ASK)
        world.turn(3)
        (client,) = world.proxy.clients
        client.cut("The gateway is stopping.")
        world.is_prompt = True
        world.settle_down()
        ((status, fields, told),) = answers(line)
        assert (status, fields["connection"], told["detail"]) == (503, "close", "The gateway is stopping.")
        assert world.loop.failures == []


def test_a_failure_that_nobody_foresaw_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with World() as world:
        Records(world)
        monkeypatch.setattr("gateway.own_endpoints.key_report", lambda _: {})  # asked with more
        assert asked(world)[0] == 503
        monkeypatch.undo()
        assert asked(world)[0] == 200


def test_the_token_is_in_no_answer_and_goes_nowhere() -> None:
    with World(knows_caller=False) as world:
        records = Records(world)
        client = world.client()
        client.say(ASK + with_body(b"Content-Length: 0\r\n\r\n", b"POST") + get(b"/-/no"))
        world.settle_down()
        assert [status for status, _, _ in answers(client)] == [200, 405, 404]
        everything = bytes(client.sent) + bytes(world.redis.line.sent if world.redis.line else b"")
        assert TOKEN not in everything
        assert TOKEN[20:63] not in everything
        assert isinstance(records.digest, bytes)
        assert records.digest not in client.sent
        assert b"hash" not in client.sent
