"""curl in every way that people use it: what it prints straight, it prints through the gateway."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from tests.system.conftest import serve
from tests.system.installation import Addresses, Gateway, Installation, Workload, another_gateway
from tests.system.loop_thread import LoopThread

MIB = 1 << 20
SIZE = 5 * MIB
CONTENT = random.Random(1).randbytes(SIZE)
CONTENT_SHA256 = hashlib.sha256(CONTENT).hexdigest().encode()
CLIENT_TIMEOUT_S = 60.0
CHANGED_ON_THE_WAY = ("connection", "date", "x-request-id")
FRAMING = ("content-length", "transfer-encoding", "keep-alive")
TEXT = "So that it compresses, it says the same again and again. " * 2_000

ROUTE = """
[[route]]
name = "curl"
path = "/curl/"
upstream = ["{url}"]
price.request = "0.01"
"""


async def echo(request: web.Request) -> web.Response:
    """What was received, as far as it is the client's."""
    body, digest = 0, hashlib.sha256()
    async for piece in request.content.iter_any():
        body += len(piece)
        digest.update(piece)
    kept = {
        name: request.headers.getall(name, [])
        for name in ("Accept", "Content-Type", "Cookie", "Range", "User-Agent")
    }
    received = {
        "method": request.method,
        "target": request.raw_path,
        "size": body,
        "sha256": digest.hexdigest(),
        **kept,
    }
    answer = web.json_response(received)
    answer.set_cookie("a", "1")
    answer.set_cookie("b", "2")
    return answer


async def chunks(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for number in range(200):
        await answer.write(b"%d\n" % number * 500)
    return answer


async def text(request: web.Request) -> web.Response:
    answer = web.Response(text=TEXT)
    answer.enable_compression()
    return answer


async def refuse(_request: web.Request) -> web.Response:
    """Without having read the body."""
    return web.Response(status=403, text="no\n")


async def redirect(_request: web.Request) -> web.Response:
    raise web.HTTPTemporaryRedirect("/curl/echo?redirected")


async def nothing(_request: web.Request) -> web.Response:
    return web.Response(status=204)


async def say_no_100(_request: web.Request) -> None:
    """What aiohttp calls in place of answering `Expect: 100-continue` with 100."""


def application(file: Path) -> web.Application:
    async def static(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(file)

    made = web.Application(client_max_size=0)
    made.router.add_route("*", "/curl/echo", echo)
    made.router.add_put("/curl/mute", echo, expect_handler=say_no_100)
    made.router.add_put("/curl/refuse", refuse, expect_handler=say_no_100)
    made.router.add_route("*", "/curl/redirect", redirect)
    for path, handler in (("chunks", chunks), ("text", text), ("nothing", nothing)):
        made.router.add_get(f"/curl/{path}", handler)
    made.router.add_get("/curl/file", static)
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curl") / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(scope="module")
def straight_url(loop_thread: LoopThread, file: Path) -> Iterator[str]:
    runner, url = serve(loop_thread, application(file))
    yield f"{url}/curl/"
    loop_thread.run(runner.cleanup())


@pytest.fixture(scope="module")
def gateway(addresses: Addresses, data_dir: Path, straight_url: str) -> Iterator[Gateway]:
    routes = data_dir / "curl.toml"
    routes.write_text(ROUTE.format(url=straight_url.removesuffix("/curl/")))
    with another_gateway(addresses.redis, data_dir / "pepper", data_dir / "gateways.log", routes) as started:
        yield started


@dataclass(frozen=True, slots=True)
class Curl:
    """curl on one way to the upstream."""

    base: str
    token: str

    async def __call__(self, paths: str, *options: str, stdin: bytes = b"") -> bytes:
        """What it prints; fails if it fails. `paths` are separated by spaces."""
        process = await asyncio.create_subprocess_exec(
            "curl", "--silent", "--show-error", "--max-time", "40", "--header", f"Authorization: Bearer {self.token}",
            *options, *(self.base + path for path in paths.split()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT_S):
                out, errors = await process.communicate(stdin)
        except TimeoutError:
            process.kill()
            raise
        assert process.returncode == 0, f"{options}: {errors.decode()}"
        return out


@pytest.fixture
async def workload(installation: Installation) -> Workload:
    return await installation.workload()


@pytest.fixture
def straight(straight_url: str, workload: Workload) -> Curl:
    return Curl(straight_url, workload.token)


@pytest.fixture
def through(gateway: Gateway, workload: Workload) -> Curl:
    return Curl(f"{gateway.url}/curl/", workload.token)


@dataclass(frozen=True, slots=True)
class Printed:
    """What `curl --include` prints: the status of every answer, the fields of the last, and its body."""

    statuses: list[str]
    fields: list[str]
    body: bytes

    @classmethod
    def read(cls, out: bytes, ignored: tuple[str, ...]) -> Printed:
        statuses: list[str] = []
        fields: list[str] = []
        while out.startswith(b"HTTP/1."):
            head, _, out = out.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            statuses.append(first.partition(" ")[2])
            named = [(line.partition(":")[0].lower(), line) for line in lines]
            fields = sorted(line for name, line in named if name not in ignored)
        return cls(statuses, fields, out)


UPLOAD = ("--upload-file", "{file}")
PIPED = ("--upload-file", "-")
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "a GET": ("echo?q=1&r=%C3%A9", (), "200"),
    "a POST": ("echo", ("--data", "a=1&b=2"), "200"),
    "an empty POST": ("echo", ("--data", ""), "200"),
    "a GET with a body": ("echo", ("--request", "GET", "--data-urlencode", "q=ü&ö"), "200"),
    "a method of its own": ("echo", ("--request", "PURGE"), "200"),
    "OPTIONS": ("echo", ("--request", "OPTIONS"), "200"),
    "cookies": ("echo", ("--cookie", "a=b; c=d"), "200"),
    "HTTP/1.0": ("echo", ("--http1.0",), "200"),
    "HTTP/1.0, of unknown length": ("chunks", ("--http1.0",), "200"),
    "HTTP/1.0, a file": ("file", ("--http1.0",), "200"),
    "HTTP/1.0, a POST": ("echo", ("--http1.0", "--data", "a=1"), "200"),
    "HTTP/1.0, an upload": ("echo", ("--http1.0", *UPLOAD), "200"),
    "h2c offered": ("echo", ("--http2",), "200"),
    "h2c offered, a POST": ("echo", ("--http2", "--data", "a=1"), "200"),
    "chunks": ("chunks", (), "200"),
    "an upload": ("echo", UPLOAD, "200"),
    "an upload that is piped": ("echo", PIPED, "200"),
    "an upload that is piped as it comes": ("echo", ("--upload-file", "."), "200"),
    "an upload that expects nothing": ("echo", (*UPLOAD, "--header", "Expect:"), "200"),
    "a patient upload": ("echo", (*UPLOAD, "--expect100-timeout", "30"), "200"),
    "a patient upload that is piped": ("echo", (*PIPED, "--expect100-timeout", "30"), "200"),
    "an upload to who never says 100": ("mute", (*UPLOAD, "--expect100-timeout", "0.2"), "200"),
    "an upload that is refused": ("refuse", (*UPLOAD, "--expect100-timeout", "30"), "403"),
    "a piped upload that is refused": ("refuse", (*PIPED, "--expect100-timeout", "30"), "403"),
    "a file": ("file", (), "200"),
    "its head": ("file", ("--head",), "200"),
    "its first bytes": ("file", ("--range", "0-99"), "206"),
    "its first byte": ("file", ("--range", "0-0"), "206"),
    "its last bytes": ("file", ("--range", "-1000"), "206"),
    "what is behind it": ("file", ("--range", f"{SIZE}-"), "416"),
    "the rest of it": ("file", ("--continue-at", f"{SIZE - 1000}"), "206"),
    "no newer one": ("file", ("--time-cond", "Tue, 19 Jan 2038 00:00:00 GMT"), "304"),
    "compressed": ("text", ("--compressed",), "200"),
    "compressed and left so": ("text", ("--compressed", "--raw"), "200"),
    "compressed on the way, if that were known": ("text", ("--tr-encoding",), "200"),
    "a redirect": ("redirect", (), "307"),
    "a redirect that is followed": ("redirect", ("--location",), "200"),
    "a POST that is redirected": ("redirect", ("--location", "--data", "a=1"), "200"),
    "no content": ("nothing", (), "204"),
    "what is not there": ("nowhere", (), "404"),
}


@pytest.mark.parametrize(("path", "options", "status"), CASES.values(), ids=CASES.keys())
async def test_curl_prints_the_same(
    straight: Curl, through: Curl, file: Path, path: str, options: tuple[str, ...], status: str
) -> None:
    given = [option.format(file=file) for option in options]
    stdin = CONTENT if "--upload-file" in given and str(file) not in given else b""
    is_old = "--http1.0" in given
    ignored = (*CHANGED_ON_THE_WAY, *(FRAMING if is_old else ()))
    outputs = await asyncio.gather(
        *(way(path, "--include", *given, stdin=stdin) for way in (straight, through))
    )
    expected, found = (Printed.read(out, ignored) for out in outputs)
    is_patient = "30" in given  # else curl may have given up waiting for 100 just before it came
    assert found.statuses[-1] == expected.statuses[-1]
    assert found.statuses == expected.statuses or not is_patient
    assert found.statuses[-1].startswith(status)
    assert found.fields == expected.fields
    assert found.body == expected.body
    if status == "200" and "upload" in str(options):
        assert CONTENT_SHA256 in found.body


async def test_a_patient_upload_does_not_wait_long_for_an_upstream_that_never_says_100(
    through: Curl, file: Path
) -> None:
    began = time.monotonic()
    out = await through("mute", "--upload-file", str(file), "--expect100-timeout", "35")
    assert time.monotonic() - began < 20
    assert CONTENT_SHA256 in out


async def test_nothing_of_an_upload_is_sent_to_a_gateway_that_refuses_it(
    installation: Installation, gateway: Gateway, file: Path
) -> None:
    workload = await installation.workload("0.005")
    curl = Curl(f"{gateway.url}/curl/", workload.token)
    for upload in (["--upload-file", str(file)], ["--upload-file", "-"]):
        options = [*upload, "--expect100-timeout", "30", "--output", "/dev/null"]
        printed = await curl("echo", *options, "--write-out", "%{http_code} %{size_upload}", stdin=CONTENT)
        assert printed == b"402 0"


async def test_one_invocation_uses_one_connection_for_everything(straight: Curl, through: Curl) -> None:
    paths = "echo chunks text nothing file echo?again chunks redirect nowhere echo?last"
    count = len(paths.split())
    options = [
        "--write-out",
        "%{http_code} %{num_connects} %{size_download}\n",
        *["--output", "/dev/null"] * count,
    ]
    expected, found = await asyncio.gather(straight(paths, *options), through(paths, *options))
    assert found == expected
    assert [line.split()[1] for line in found.splitlines()] == [b"1"] + [b"0"] * (count - 1)


async def test_many_transfers_at_once_are_the_same(straight: Curl, through: Curl, tmp_path: Path) -> None:
    kinds = ["echo?{}", "chunks?{}", "text?{}", "file?{}"]
    paths = " ".join(kind.format(number) for number in range(5) for kind in kinds)
    digests = []
    for name, way in (("straight", straight), ("through", through)):
        files = [tmp_path / f"{name}-{number}" for number in range(len(paths.split()))]
        options = [word for path in files for word in ("--output", str(path))]
        await way(paths, "--parallel", "--parallel-max", "8", *options)
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 5 + 3
