"""TLS on both sides: who is let in, who is believed, and that certificates change under open connections."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from control.embedded import wait_until
from gateway.routing import UpstreamTls
from gateway.tls import ListenerTls, TlsFilesError, listener_context, upstream_context
from tests.certificates import (
    Authority,
    Pair,
    client_context,
    issue,
    make_authority,
    server_context,
    write_file,
    write_pair,
)
from tests.system.conftest import StartGateway
from tests.system.installation import Addresses, Gateway, Installation, another_gateway
from tests.system.loop_thread import LoopThread
from tests.system.recording_upstream import PIECE, RecordingUpstream
from tests.system.running import environment
from tests.system.wire import Answer, Wire, event_count, request, wire

HEAD_TIMEOUT_S = 2.0
MIB = 1024**2
SIZE = 307_200
"""Of an answer so large, a part lies below TLS when the connection closes."""

HANDSHAKE = b"\x16"
"""How every record of a handshake begins."""

ROUTES = """
[[route]]
name = "free"
path = "/free/"
upstream = "{plain}"

[[route]]
name = "private"
path = "/private/"
upstream = "{plain}"
client_certificate = true

[[route]]
name = "both"
path = "/both/"
upstream = "{tls}"
tls.ca = "client-ca.pem"
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(directory: Path) -> Authority:
    """Of the gateway's certificate and of its clients'."""
    made = make_authority("gateway and clients")
    write_file(directory / "client-ca.pem", made.pem)
    return made


@pytest.fixture(scope="module")
def tls_upstream(
    loop_thread: LoopThread, directory: Path, authority: Authority
) -> Iterator[RecordingUpstream]:
    running = RecordingUpstream(loop_thread, tls=server_context(write_pair(directory, "upstream", authority)))
    yield running
    running.close()


@pytest.fixture(scope="module")
def routes_of_tls(directory: Path, upstream: RecordingUpstream, tls_upstream: RecordingUpstream) -> Path:
    path = directory / "routes.toml"
    path.write_text(ROUTES.format(plain=upstream.url, tls=tls_upstream.url))
    return path


@pytest.fixture(scope="module")
def gateway(
    addresses: Addresses, data_dir: Path, routes_of_tls: Path, directory: Path, authority: Authority
) -> Iterator[Gateway]:
    pair = write_pair(directory, "gateway", authority)
    with another_gateway(
        addresses.redis, data_dir / "pepper", data_dir / "tls.log", routes_of_tls,
        tls_certificate=str(pair.certificate), tls_key=str(pair.key), head_timeout_s=str(HEAD_TIMEOUT_S),
        tls_client_ca=str(directory / "client-ca.pem"),
    ) as started:  # fmt: skip
        yield started


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    """A client's: it trusts the gateway's authority and has no certificate."""
    return client_context(authority)


async def asked(gateway: Gateway, tls: ssl.SSLContext, data: bytes) -> Answer:
    """The answer to one request on a connection of its own."""
    async with wire(gateway.port, tls=tls) as client:
        client.send(data)
        return await client.answer()


async def shown_certificate(gateway: Gateway, tls: ssl.SSLContext) -> bytes:
    """What the next handshake is shown."""
    async with wire(gateway.port, tls=tls) as client:
        return certificate_of(client)


def certificate_of(client: Wire) -> bytes:
    shown: bytes = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return shown


@asynccontextmanager
async def failed_handshakes(gateway: Gateway, count: int) -> AsyncIterator[None]:
    """So many are counted of what is done inside, and no more."""

    async def counted() -> int:
        return await event_count(gateway.management_port, "tls_handshake_failed")

    before = await counted()
    yield

    async def are_counted() -> bool:
        return await counted() >= before + count

    await wait_until(are_counted, 10, "the handshakes to be counted")
    assert await counted() == before + count


# -- the listener


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_speaks_http_over_tls_as_it_would_without(
    installation: Installation, upstream: RecordingUpstream, gateway: Gateway, trusting: ssl.SSLContext,
    version: ssl.TLSVersion,
) -> None:  # fmt: skip
    workload = await installation.workload()
    trusting.minimum_version = trusting.maximum_version = version
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    async with wire(gateway.port, tls=trusting) as client:
        spoken = client.writer.get_extra_info("ssl_object")
        assert spoken.version() == version.name.replace("_", ".")
        assert spoken.selected_alpn_protocol() == "http/1.1"
        client.send(
            request(workload, "/free/one") + request(workload, "/free/two", method="POST", body=b"abc")
        )
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    for seen in upstream.of(workload.key):
        assert (seen.one("x-forwarded-proto"), seen.one("x-forwarded-for")) == ("https", "127.0.0.1")


def hello(version: ssl.TLSVersion) -> bytes:
    """What a client says first that knows this version only; skips where OpenSSL has no such client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    said = ssl.MemoryBIO()
    try:
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = context.maximum_version = version
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return said.read()
    except (ssl.SSLError, ValueError):
        pytest.skip("OpenSSL is built without this version")
    raise AssertionError("a handshake with nobody")


async def test_a_client_that_knows_only_an_old_version_is_hung_up_on(gateway: Gateway) -> None:
    async with failed_handshakes(gateway, 2), asyncio.timeout(10):
        async with wire(gateway.port) as client:
            client.send(hello(ssl.TLSVersion.TLSv1_2))
            assert await client.reader.read(1) == HANDSHAKE
        async with wire(gateway.port) as client:
            client.send(hello(ssl.TLSVersion.TLSv1_1))
            assert not (await client.reader.read(-1)).startswith(HANDSHAKE)


async def test_plain_http_is_hung_up_on_where_tls_is_spoken(gateway: Gateway) -> None:
    async with failed_handshakes(gateway, 1), asyncio.timeout(10), wire(gateway.port) as client:
        client.send(b"GET /free/ HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
        assert b"HTTP" not in await client.reader.read(-1)


async def test_a_handshake_that_does_not_come_to_its_end_is_not_waited_for(gateway: Gateway) -> None:
    async def wait_for_the_end(beginning: bytes) -> float:
        began = time.monotonic()
        async with wire(gateway.port) as client:
            client.send(beginning)
            await client.reader.read(-1)
            return time.monotonic() - began

    beginnings = (b"", HANDSHAKE, hello(ssl.TLSVersion.TLSv1_2)[:-1])
    async with failed_handshakes(gateway, len(beginnings)), asyncio.timeout(15):
        waited_s = await asyncio.gather(*map(wait_for_the_end, beginnings))
    assert min(waited_s) > HEAD_TIMEOUT_S * 0.9


async def test_large_bodies_arrive_whole_over_tls_on_both_sides(
    installation: Installation, tls_upstream: RecordingUpstream, gateway: Gateway, trusting: ssl.SSLContext
) -> None:
    workload = await installation.workload()
    body = random.Random(3).randbytes(8 * MIB)
    async with wire(gateway.port, tls=trusting) as client:
        client.send(request(workload, "/both/", method="POST", body=body))
        assert json.loads((await client.answer()).body)["sha256"] == hashlib.sha256(body).hexdigest()
        client.send(request(workload, "/both/", "Transfer-Encoding: chunked", method="POST"))
        for start in range(0, len(body), 100_000):
            piece = body[start : start + 100_000]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await client.writer.drain()
        client.send(b"0\r\n\r\n")
        assert json.loads((await client.answer()).body)["sha256"] == hashlib.sha256(body).hexdigest()
        client.send(request(workload, f"/both/bytes/{16 * MIB}"))
        assert (await client.answer()).body == PIECE * 64
        client.send(request(workload, "/both/chunked/64/250000"))
        assert (await client.answer()).body == PIECE[:250_000] * 64
    assert len({seen.connection for seen in tls_upstream.of(workload.key)}) == 1


def read_slowly(port: int, context: ssl.SSLContext, data: bytes) -> bytes:
    """Say something, read nothing for a while, and then what comes to its end; the system buffers little of it."""
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        plain.settimeout(20)
        plain.connect(("127.0.0.1", port))
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(data)
            received = b""
            time.sleep(1.5)  # many looks of the gateway's at a connection that it has closed
            while piece := client.recv(65_536):
                received += piece
            return received


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_slow_reader_of_the_last_answer_on_a_connection_gets_it_whole(
    installation: Installation, gateway: Gateway, trusting: ssl.SSLContext, version: str
) -> None:
    """Below TLS there are bytes that nobody counts: closing must wait for them."""
    workload = await installation.workload()
    data = request(workload, f"/free/bytes/{SIZE}", "Connection: close", version=version)
    received = await asyncio.to_thread(read_slowly, gateway.port, trusting, data)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == (PIECE * 4)[:SIZE]


# -- clients' certificates


async def test_a_route_may_require_a_client_certificate_and_others_do_not(
    installation: Installation, upstream: RecordingUpstream, gateway: Gateway, trusting: ssl.SSLContext,
    authority: Authority, directory: Path,
) -> None:  # fmt: skip
    workload = await installation.workload()
    known = client_context(authority, write_pair(directory, "client", authority, ("client",), client=True))
    answer = await asked(gateway, trusting, request(workload, "/private/"))
    assert (answer.status, json.loads(answer.body)["code"]) == (403, "certificate_required")
    for tls, path in ((known, "/private/"), (known, "/free/"), (trusting, "/free/")):
        assert (await asked(gateway, tls, request(workload, path))).status == 200
    assert (await asked(gateway, known, request(None, "/private/"))).status == 401
    assert [seen.target for seen in upstream.of(workload.key)] == ["/private/", "/free/", "/free/"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("fault", ["issued by somebody else", "not a client's"])
async def test_a_client_certificate_that_does_not_prove_anything_ends_the_handshake(
    installation: Installation, upstream: RecordingUpstream, gateway: Gateway, authority: Authority, directory: Path,
    version: ssl.TLSVersion, fault: str,
) -> None:  # fmt: skip
    workload = await installation.workload()
    issuer = make_authority("nobody") if fault == "issued by somebody else" else authority
    pair = write_pair(directory, "wrong-client", issuer, ("client",), client=issuer is not authority)
    tls = client_context(authority, pair)
    tls.minimum_version = tls.maximum_version = version
    async with failed_handshakes(gateway, 1):
        with pytest.raises((OSError, EOFError)):  # in TLS 1.3 a client learns of it only when it reads
            await asked(gateway, tls, request(workload, "/free/"))
    assert upstream.of(workload.key) == []


# -- files that change, and files that are not good


async def test_a_new_certificate_is_shown_to_new_connections_and_no_open_one_is_dropped(
    installation: Installation, gateway_with: StartGateway, routes_of_tls: Path, directory: Path, authority: Authority,
    trusting: ssl.SSLContext,
) -> None:  # fmt: skip
    workload = await installation.workload()
    old = write_pair(directory, "renewed", authority)
    gateway = gateway_with(
        config=str(routes_of_tls), tls_certificate=str(old.certificate), tls_key=str(old.key),
        tls_client_ca=str(directory / "client-ca.pem"),
    )  # fmt: skip

    async def shows(pair: Pair) -> bool:
        return await shown_certificate(gateway, trusting) == pair.issued.der

    async with wire(gateway.port, tls=trusting) as client, wire(gateway.port, tls=trusting) as busy:
        assert await shows(old)
        client.send(request(workload, "/free/before"))
        assert (await client.answer()).status == 200
        busy.send(request(workload, "/free/stream/10000/0.02"))
        await busy.reader.readuntil(b"data: 2\n\n")
        new = write_pair(directory, "renewed", authority)
        await wait_until(lambda: shows(new), 20, "the new certificate")
        write_file(new.key, old.issued.key)
        gateway.process.send_signal(signal.SIGHUP)

        async def is_refused() -> bool:
            return await event_count(gateway.management_port, "reload_refused") > 0

        await wait_until(is_refused, 20, "the key to be complained of")
        assert await shows(new)
        client.send(request(workload, "/free/after"))
        assert (await client.answer()).status == 200
        assert certificate_of(client) == old.issued.der
        await busy.reader.readuntil(b"data: 40\n\n")


def test_every_bad_file_is_listed_before_a_gateway_starts(
    tmp_path: Path, data_dir: Path, authority: Authority
) -> None:
    own, other = (write_pair(tmp_path, name, authority) for name in ("own", "other"))
    route = '[[route]]\nname = "{0}"\npath = "/{0}/"\nupstream = "https://127.0.0.1:9"\ntls = {{ {1} }}\n'
    first = route.format("first", 'certificate = "other.pem", key = "own.key"')
    routes = write_file(
        tmp_path / "routes.toml", (first + route.format("second", 'ca = "no-ca.pem"')).encode()
    )
    settings = {
        "CONFIG": routes, "PEPPER_FILE": data_dir / "pepper", "TLS_CERTIFICATE": own.certificate, "TLS_KEY": other.key,
    }  # fmt: skip
    checked = subprocess.run(
        [sys.executable, "-P", "-m", "gateway", "--check-config"], capture_output=True, text=True, timeout=30,
        env=environment(**{f"TOLLKEEPER_{name}": str(value) for name, value in settings.items()}), cwd="/", check=False,
    )  # fmt: skip
    assert checked.returncode == 2
    problems = checked.stderr.splitlines()
    assert [problem.split(":")[0] for problem in problems] == [
        "TOLLKEEPER_TLS_…",
        "route first",
        "route second",
    ]
    for problem, file in zip(problems, ("other.key", "own.key", "no-ca.pem"), strict=True):
        assert file in problem
        assert "PRIVATE" not in problem


def encrypted(key: bytes) -> bytes:
    loaded = load_pem_private_key(key, None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))


@pytest.mark.parametrize("fault", ["missing", "of another certificate", "no PEM", "encrypted", "a directory"])
@pytest.mark.timeout(20)
def test_a_key_that_cannot_be_used_is_a_problem_and_no_question(
    tmp_path: Path, authority: Authority, fault: str
) -> None:
    pair = write_pair(tmp_path, "good", authority)
    bad = tmp_path / "bad.key"
    if fault == "a directory":
        bad.mkdir()
    elif fault != "missing":
        content = {
            "of another certificate": issue(authority).key, "no PEM": b"\0\xff" * 100,
            "encrypted": encrypted(pair.issued.key),
        }  # fmt: skip
        write_file(bad, content[fault])
    listener_context(ListenerTls(pair.certificate, pair.key))
    with pytest.raises(TlsFilesError, match=r"bad\.key"):
        listener_context(ListenerTls(pair.certificate, bad))
    with pytest.raises(TlsFilesError, match=r"bad\.key"):
        upstream_context(UpstreamTls(certificate=str(pair.certificate), key=str(bad)))
    with pytest.raises(TlsFilesError, match=r"bad\.key"):
        listener_context(ListenerTls(pair.certificate, pair.key, bad))
    with pytest.raises(TlsFilesError, match=r"bad\.key"):
        upstream_context(UpstreamTls(ca=str(bad)))
