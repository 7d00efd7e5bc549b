"""P4: whatever is made to be read in two ways is refused at the door, or reaches the upstream as one message with one reading.

Every case of `smuggling_cases` and `smuggling_heads` is sent over a connection of its own, all to one gateway, before an
upstream that keeps every byte and reads them as llhttp does.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import run_apart
from tests.system import smuggling_cases, smuggling_heads
from tests.system.installation import Addresses, Gateway, Row, Workload, another_gateway, opened
from tests.system.smuggling_cases import CASE, FORGED, TOKEN, Case
from tests.unit.gateway.http1.referee import Read, Reading

ROUTES = """
[[route]]
name = "raw"
path = "/raw/"
upstream = ["http://127.0.0.1:{port}"]
price.request = "0.01"

[[route]]
name = "asis"
path = "/asis/"
raw_path = true
upstream = ["http://127.0.0.1:{port}"]
"""
CASES = [
    case
    for cases in (
        smuggling_cases.transfer_codings, smuggling_cases.lengths, smuggling_cases.bodies_in_chunks, smuggling_cases.upgrades,
        smuggling_cases.expectations, smuggling_heads.characters, smuggling_heads.line_ends, smuggling_heads.request_lines,
        smuggling_heads.hosts, smuggling_heads.paths, smuggling_heads.identities, smuggling_heads.sequences,
    )
    for case in cases()
]  # fmt: skip
AT_ONCE_MAX = 40
STEP_TIMEOUT_S = 20.0
SILENCE_S = "3"
"""How long the gateway waits for what does not come."""


@dataclass(slots=True, eq=False)
class Received:
    """One connection to the upstream: its bytes, and what llhttp makes of them."""

    raw: bytearray = field(default_factory=bytearray)
    reading: Reading = field(default_factory=Reading)
    answered: int = 0

    @property
    def whole(self) -> list[Read]:
        return [read for read in self.reading.messages if read.is_whole]


class RawUpstream:
    """Answers each whole request with 200, keeps everything, and never switches protocols."""

    def __init__(self) -> None:
        self.connections: list[Received] = []
        self._server: asyncio.Server | None = None
        self._news = asyncio.Condition()

    async def listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def begun(self, mark: bytes) -> None:
        """Wait until something with this in its bytes has arrived."""
        async with asyncio.timeout(STEP_TIMEOUT_S), self._news:
            await self._news.wait_for(lambda: any(mark in each.raw for each in self.connections))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = Received()
        self.connections.append(received)
        try:
            while data := await reader.read(65_536):
                received.raw += data
                received.reading.feed(data)
                async with self._news:
                    self._news.notify_all()
                if received.reading.is_refused:
                    break
                self._answer(received, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    @staticmethod
    def _answer(received: Received, writer: asyncio.StreamWriter) -> None:
        for read in received.whole[received.answered :]:
            received.answered += 1
            body = b"" if read.method == b"HEAD" else b"ok"
            last = b"Connection: close\r\n" if read.leaves_http else b""
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), last, body))


@dataclass(frozen=True, slots=True)
class Heard:
    """What a client of one case was told until its connection ended."""

    answers: list[Read]
    is_well_formed: bool

    @property
    def statuses(self) -> tuple[int, ...]:
        return tuple(answer.status for answer in self.answers if answer.status >= 200)


@dataclass(slots=True)
class Findings:
    """Everything that came of all cases."""

    workload: Workload
    heard: list[Heard]
    connections: list[Received]
    rows: list[Row]

    @property
    def messages(self) -> list[Read]:
        return [read for each in self.connections for read in each.whole]

    def of(self, number: int) -> list[Read]:
        """The messages that name this case in their target."""
        return [read for read in self.messages if mark(number) in read.target]


def mark(number: int) -> bytes:
    return b"case-%04d" % number


async def converse(
    gateway: Gateway, upstream: RawUpstream, workload: Workload, number: int, case: Case
) -> Heard:
    """Say it, and listen until the gateway ends the connection."""
    first, rest = (
        data.replace(TOKEN, workload.token.encode()).replace(CASE, mark(number))
        for data in (case.data + case.behind, case.rest)
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    reading = Reading(of_answers=True)
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            writer.write(first)
            if rest:
                await upstream.begun(mark(number))
                writer.write(rest)
            if case.hangs_up:
                writer.write_eof()
            while data := await reader.read(65_536):
                reading.feed(data)
    except TimeoutError:
        return Heard(reading.messages, is_well_formed=False)
    finally:
        writer.transport.abort()
    return Heard(reading.messages, not reading.is_refused and all(read.is_whole for read in reading.messages))


async def find_out(addresses: Addresses, data_dir: Path) -> Findings:
    upstream = RawUpstream()
    routes = data_dir / "smuggling.toml"
    routes.write_text(ROUTES.format(port=await upstream.listen()))
    at_once = asyncio.Semaphore(AT_ONCE_MAX)
    log = data_dir / "gateways.log"
    with another_gateway(
        addresses.redis, data_dir / "pepper", log, routes,
        head_timeout_s=SILENCE_S, body_timeout_s=SILENCE_S, idle_timeout_s=SILENCE_S,
    ) as gateway:  # fmt: skip
        async with opened(addresses) as installation:
            workload = await installation.workload()

            async def take_turns(number: int, case: Case) -> Heard:
                async with at_once:
                    return await converse(gateway, upstream, workload, number, case)

            heard = await asyncio.gather(*(take_turns(number, case) for number, case in enumerate(CASES)))
            rows = await installation.settled(workload.tag)
    upstream.close()
    return Findings(workload, heard, upstream.connections, rows)


@pytest.fixture(scope="module")
def findings(addresses: Addresses, data_dir: Path) -> Findings:
    found: list[Findings] = []

    async def run() -> None:
        found.append(await find_out(addresses, data_dir))

    run_apart(run)
    return found[0]


def test_the_cases_are_many_and_no_two_are_the_same() -> None:
    assert len(CASES) >= 250
    assert Counter(case.name for case in CASES).most_common(1)[0][1] == 1
    assert len({(case.data, case.behind, case.rest, case.hangs_up) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_it_is_refused_and_the_connection_ends_or_it_arrives_as_one_message(
    findings: Findings, number: int
) -> None:
    case, heard, arrived = CASES[number], findings.heard[number], findings.of(number)
    assert heard.statuses == case.statuses
    assert heard.is_well_formed
    assert not heard.answers or not heard.answers[-1].keeps_alive
    assert len(arrived) == case.statuses.count(200)
    if case.body is not None:
        assert arrived[0].body == case.body
    if case.target is not None:
        target = case.target.replace(CASE, mark(number)).replace(TOKEN, findings.workload.token.encode())
        assert arrived[0].target == target


def test_the_upstream_saw_whole_messages_only_and_as_many_as_were_answered_well(findings: Findings) -> None:
    answered = sum(heard.statuses.count(200) for heard in findings.heard)
    assert len(findings.messages) == answered > 100
    assert not any(b"poison" in read.target for read in findings.messages)
    for each in findings.connections:
        assert not each.reading.is_refused
        unfinished = [read for read in each.reading.messages if not read.is_whole]
        assert len(unfinished) <= 1, "something came behind a message that was broken off"
        if each.whole and each.whole[-1].leaves_http:
            assert each.raw.endswith(b"\r\n\r\n"), "what was sent for a tunnel was passed on without one"


def test_an_upgrade_is_passed_on_only_for_a_get_without_a_body_whose_handshake_is_sane(
    findings: Findings,
) -> None:
    asking = [read for read in findings.messages if read.leaves_http]
    assert {dict(read.fields)[b"Upgrade"] for read in asking} == {b"echo", b"websocket"}
    for read in asking:
        names = Counter(folded(name) for name, _ in read.fields)
        assert (read.method, read.body, names[b"content-length"], names[b"transfer-encoding"]) == (
            b"GET",
            b"",
            0,
            0,
        )
        if dict(read.fields)[b"Upgrade"] == b"websocket":
            assert names[b"sec-websocket-key"] == names[b"sec-websocket-version"] == 1
    others = [read for read in findings.messages if not read.leaves_http]
    assert not any(
        folded(name) in (b"upgrade", b"http2-settings") for read in others for name, _ in read.fields
    )


def folded(name: bytes) -> bytes:
    return re.sub(rb"[^0-9a-z]", b"-", name.lower())


def test_every_message_says_truly_who_is_calling_and_once(findings: Findings) -> None:
    workload = findings.workload
    truth = {
        b"x-principal": workload.principal, b"x-principal-id": workload.account, b"x-principal-key-id": workload.key,
        b"x-principal-organization": workload.organization_name,
    }  # fmt: skip
    for read in findings.messages:
        said = sorted(
            (folded(name), value.decode()) for name, value in read.fields if b"rincipal" in name.lower()
        )
        assert said == sorted(truth.items()), read.target


def test_no_message_has_a_framing_or_a_host_that_can_be_read_in_two_ways(findings: Findings) -> None:
    for read in findings.messages:
        names = Counter(folded(name) for name, _ in read.fields)
        assert names[b"content-length"] + names[b"transfer-encoding"] <= 1, read.target
        assert names[b"host"] == names[b"x-request-id"] == 1, read.target
        assert all(
            name == b"Transfer-Encoding" for name, _ in read.fields if folded(name) == b"transfer-encoding"
        )
        assert not (names[b"connection"] and not names[b"upgrade"]), read.target


def test_nothing_forged_and_no_token_arrives_anywhere(findings: Findings) -> None:
    token = findings.workload.token.encode()
    for each in findings.connections:
        assert FORGED not in each.raw
        assert token not in each.raw
    for read in findings.messages:
        names = {folded(name) for name, _ in read.fields}
        assert not names & {b"authorization", b"x-api-key", b"proxy-authorization"}, read.target


def test_what_was_answered_well_is_in_the_ledger_once(findings: Findings) -> None:
    """And what was broken off too; what was refused at the door is not."""
    completed = [row for row in findings.rows if row["outcome"] == "completed"]
    assert len(completed) == len(findings.messages)
    assert {row["outcome"] for row in findings.rows} <= {"completed", "client_gone"}
