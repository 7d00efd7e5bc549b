"""Real clients, as workloads use them: curl, git, the OpenAI SDK, aiohttp."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from tests.system.git_host import GitHost
from tests.system.installation import Installation, Workload
from tests.system.recording_upstream import RecordingUpstream

CLIENT_TIMEOUT_S = 60.0
QUESTION = ChatCompletionUserMessageParam(role="user", content="May I pass?")


async def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a client to its end and give what it printed; fails if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=cwd, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        async with asyncio.timeout(CLIENT_TIMEOUT_S):
            out, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, f"{command[:2]}: {errors.decode()} {out.decode()[-2000:]}"
    return out.decode()


async def curl(installation: Installation, workload: Workload, path: str, *options: str) -> str:
    return await run(
        "curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "30",
        "--header", f"Authorization: Bearer {workload.token}", *options, f"{installation.addresses.gateway}{path}",
    )  # fmt: skip


async def test_curl_gets_and_posts(installation: Installation) -> None:
    workload = await installation.workload()
    got = json.loads(await curl(installation, workload, "/free/echo?q=1"))
    assert (got["method"], got["target"]) == ("GET", "/free/echo?q=1")
    posted = json.loads(await curl(installation, workload, "/free/", "--data", "a=1&b=2"))
    assert (posted["method"], posted["body_bytes"]) == ("POST", 7)


async def test_curl_uploads_20_mib_unchanged_with_a_length_and_in_chunks(
    installation: Installation, tmp_path: Path
) -> None:
    workload = await installation.workload()
    data = os.urandom(20 * 1024 * 1024)
    file = tmp_path / "upload"
    file.write_bytes(data)
    for options in (
        ["--upload-file", str(file)],
        ["--upload-file", str(file), "--header", "Transfer-Encoding: chunked"],
    ):
        seen = json.loads(await curl(installation, workload, "/free/", *options))
        assert seen["sha256"] == hashlib.sha256(data).hexdigest()
    rows = await installation.settled(workload.tag)
    assert [row["bytes_in"] for row in rows] == [len(data), len(data)]


async def test_curl_is_told_to_continue_before_it_gives_up_waiting(installation: Installation) -> None:
    workload = await installation.workload()
    options = [
        "--header",
        "Expect: 100-continue",
        "--expect100-timeout",
        "20",
        "--data",
        "x" * 1000,
        "--max-time",
        "10",
    ]
    seen = json.loads(await curl(installation, workload, "/free/", *options))
    assert seen["body_bytes"] == 1000


async def test_curl_speaks_http_1_0_and_asks_for_heads(installation: Installation) -> None:
    workload = await installation.workload()
    assert len(await curl(installation, workload, "/free/chunked/10/100", "--http1.0")) == 1000
    head = await curl(installation, workload, "/free/bytes/12345", "--head")
    assert head.startswith("HTTP/1.1 200")
    assert "content-length: 12345" in head.lower()


async def test_curl_reuses_its_connection(installation: Installation, upstream: RecordingUpstream) -> None:
    workload = await installation.workload()
    url = f"{installation.addresses.gateway}/free/b"
    quietly = ["--output", "/dev/null"] * 2
    said = await curl(installation, workload, "/free/a", url, "--write-out", "%{num_connects}\n", *quietly)
    assert said.split() == ["1", "0"]
    assert len(upstream.of(workload.key)) == 2


async def test_the_openai_sdk_completes_and_streams(installation: Installation) -> None:
    workload = await installation.workload()
    base_url = f"{installation.addresses.gateway}/v1"
    async with openai.AsyncOpenAI(api_key=workload.token, base_url=base_url, max_retries=0) as client:
        whole = await client.chat.completions.create(model="demo", messages=[QUESTION])
        said = whole.choices[0].message.content
        assert said is not None
        assert said.startswith("Yes.")
        assert whole.usage is not None
        assert whole.usage.completion_tokens > 0
        stream = await client.chat.completions.create(model="demo", messages=[QUESTION], stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces).strip() == said
    rows = await installation.settled(workload.tag)
    assert [(row["route"], row["status"], row["cost"]) for row in rows] == [("models", 200, 100_000)] * 2


async def test_the_openai_sdk_reads_our_refusals_as_its_own_errors(installation: Installation) -> None:
    workload = await installation.workload("0.05")
    base_url = f"{installation.addresses.gateway}/v1"
    async with openai.AsyncOpenAI(api_key=workload.token, base_url=base_url, max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as refusal:
            await client.chat.completions.create(model="demo", messages=[QUESTION])
        assert refusal.value.status_code == 402
        assert refusal.value.code == "budget_exceeded"
        assert refusal.value.type == "insufficient_quota"
        assert "0.05" in refusal.value.message
    wrong = workload.token[:-1] + ("0" if workload.token[-1] != "0" else "1")
    async with openai.AsyncOpenAI(api_key=wrong, base_url=base_url, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.models.list()
        assert wrong not in str(refused.value)


async def test_aiohttp_keeps_its_connection(installation: Installation, upstream: RecordingUpstream) -> None:
    workload = await installation.workload()
    for number in range(50):
        method = ("GET", "POST", "PUT", "DELETE", "PATCH")[number % 5]
        status, body = await installation.ask(workload, f"/free/{number}", method=method, data=b"x" * number)
        assert (status, json.loads(body)["body_bytes"]) == (200, number)
    assert len(upstream.of(workload.key)) == 50


GIT_IDENTITY = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")
GIT_CREDENTIALS = (
    "-c",
    "credential.helper=",
    "-c",
    'credential.helper=!f() { echo username=git; echo "password=$TOKEN"; }; f',
)


async def git(workload: Workload, cwd: Path, *arguments: str) -> str:
    """git with nothing of this machine's configuration; the token reaches it by a credential helper."""
    return await run(
        "git", *GIT_IDENTITY, *GIT_CREDENTIALS, *arguments, cwd=cwd,
        TOKEN=workload.token, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1", GIT_TERMINAL_PROMPT="0",
    )  # fmt: skip


async def test_git_clones_pushes_and_fetches_with_the_token_as_password(
    installation: Installation, git_host: GitHost, tmp_path: Path
) -> None:
    workload = await installation.workload()
    name = f"{workload.key}.git"
    await git(workload, git_host.root, "init", "--bare", name)
    await git(workload, git_host.root / name, "config", "http.receivepack", "true")
    url = f"{installation.addresses.gateway}/git/{name}"

    await git(workload, tmp_path, "clone", url, "first")
    (tmp_path / "first" / "large").write_bytes(os.urandom(3 * 1024 * 1024))  # so that git sends it in chunks
    await git(workload, tmp_path / "first", "add", "large")
    await git(workload, tmp_path / "first", "commit", "-m", "Add a large file")
    await git(workload, tmp_path / "first", "push", "origin", "HEAD:main")

    await git(workload, tmp_path, "clone", "--branch", "main", url, "second")
    assert (tmp_path / "second" / "large").read_bytes() == (tmp_path / "first" / "large").read_bytes()
    (tmp_path / "first" / "small").write_text("small")
    await git(workload, tmp_path / "first", "add", "small")
    await git(workload, tmp_path / "first", "commit", "-m", "Add a small file")
    await git(workload, tmp_path / "first", "push", "origin", "HEAD:main")
    await git(workload, tmp_path / "second", "fetch", "origin")
    log = await git(workload, tmp_path / "second", "log", "--format=%s", "origin/main")
    assert log.splitlines() == ["Add a small file", "Add a large file"]

    assert workload.principal in git_host.principals
    assert git_host.credentials == []
    rows = await installation.settled(workload.tag)
    assert {row["outcome"] for row in rows} == {"completed"}
    assert sum(row["bytes_in"] for row in rows) > 3 * 1024 * 1024


async def test_git_is_refused_without_a_key_in_force(
    installation: Installation, git_host: GitHost, tmp_path: Path
) -> None:
    workload = await installation.workload()
    await git(workload, git_host.root, "init", "--bare", f"{workload.key}.git")
    await installation.call("POST", f"/v1/keys/{workload.key}/revoke")
    with pytest.raises(AssertionError, match="Authentication failed"):
        await git(
            workload, tmp_path, "clone", f"{installation.addresses.gateway}/git/{workload.key}.git", "copy"
        )
