"""The pipe on a real Valkey: every command has one end, in order, and nobody is handed somebody else's reply."""

import asyncio
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import hiredis
import pytest
import redis.asyncio
import structlog

from control.embedded import EmbeddedRedis
from gateway.redis_pipe import PipeLost, RedisPipe, encode_command
from tests.integration.gateway.world import Heard, kill_gateways, piped, until


def echo(pipe: RedisPipe, heard: Heard, number: int, *, may_wait: bool = False) -> bool:
    return pipe.send((encode_command("ECHO", f"n{number}"),), heard, may_wait=may_wait)


async def heard_all(heard: Heard, count: int) -> None:
    await until(lambda: len(heard.replies) == count)


def expected(count: int) -> list[bytes]:
    return [b"n%d" % number for number in range(count)]


async def test_replies_come_in_the_order_of_the_commands_whatever_may_wait(redis_url: str) -> None:
    async with piped(redis_url) as pipe:
        await until(lambda: pipe.is_connected)
        heard = Heard()
        for number in range(20_000):
            assert echo(pipe, heard, number, may_wait=number % 3 == 0)
            if number % 500 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(heard.replies) == 20_000)
        assert heard.replies == expected(20_000)
        assert pipe.depth == 0


async def test_a_command_that_may_wait_leaves_without_company_too(redis_url: str) -> None:
    async with piped(redis_url) as pipe:
        await until(lambda: pipe.is_connected)
        heard = Heard()
        echo(pipe, heard, 0, may_wait=True)
        await until(lambda: heard.replies == expected(1), 2)


async def test_large_replies_are_put_together_again(
    redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    large = bytes(range(256)) * 16_384  # 4 MB
    await redis_client.set("large", large)
    async with piped(redis_url) as pipe:
        await until(lambda: pipe.is_connected)
        heard = Heard()
        for _ in range(3):
            pipe.send((encode_command("GET", "large"),), heard)
            pipe.send((encode_command("MGET", "large", "nothing"),), heard)
        await until(lambda: len(heard.replies) == 6)
        assert heard.replies == [large, [large, None]] * 3


async def test_an_error_is_a_reply_like_any_other(redis_url: str) -> None:
    async with piped(redis_url) as pipe:
        await until(lambda: pipe.is_connected)
        with pytest.raises(hiredis.ReplyError, match="unknown command"):
            await pipe.call("NONSENSE")
        assert await pipe.call("ECHO", "still here") == b"still here"


async def test_a_lost_connection_ends_every_command_and_a_new_one_is_made(
    redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    async with piped(redis_url) as pipe:
        await until(lambda: pipe.is_connected)
        heard = Heard()
        sent = 0
        for _ in range(20):
            for _ in range(200):
                sent += echo(pipe, heard, sent)
            await kill_gateways(redis_client)
            await heard_all(heard, sent)
            await until(lambda: pipe.is_connected)
        answered = [reply for reply in heard.replies if isinstance(reply, bytes)]
        lost = [reply for reply in heard.replies if isinstance(reply, PipeLost)]
        assert len(answered) + len(lost) == sent
        # Whatever was answered was answered with its own reply.
        assert all(
            reply == b"n%d" % position
            for position, reply in enumerate(heard.replies) if isinstance(reply, bytes)
        )  # fmt: skip
        assert max(Counter(answered).values(), default=1) == 1
        assert pipe.losses >= 1


async def test_without_a_connection_nothing_is_taken(own_redis: EmbeddedRedis) -> None:
    async with piped(own_redis.url) as pipe:
        await until(lambda: pipe.is_connected)
        await own_redis.stop()
        await until(lambda: not pipe.is_connected)
        heard = Heard()
        assert not echo(pipe, heard, 0)
        with pytest.raises(PipeLost):
            await pipe.call("PING")
        await own_redis.start()
        await until(lambda: pipe.is_connected)
        assert await pipe.call("ECHO", "back") == b"back"
        assert heard.replies == []


async def test_a_wait_that_runs_out_ends_the_connection_and_its_late_replies_reach_nobody(
    redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    async with piped(redis_url, timeout_s=0.3) as pipe:
        await until(lambda: pipe.is_connected)
        first, second = Heard(), Heard()
        await redis_client.client_pause(1500)
        for number in range(10):
            echo(pipe, first, number)
        await until(lambda: len(first.replies) == 10, 1.4)
        assert all(isinstance(reply, PipeLost) for reply in first.replies)
        assert pipe.timeouts >= 1
        await redis_client.client_unpause()
        await until(lambda: pipe.is_connected)
        for number in range(10):
            echo(pipe, second, number)
        await until(lambda: len(second.replies) == 10)
        assert second.replies == expected(10)
        assert len(first.replies) == 10


async def test_a_steady_stream_is_not_a_wait_that_ran_out(redis_url: str) -> None:
    """Something is always unanswered, but nothing for long."""
    async with piped(redis_url, timeout_s=0.3) as pipe:
        await until(lambda: pipe.is_connected)
        heard, sent = Heard(), 0
        ends_at = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < ends_at:
            echo(pipe, heard, sent)
            sent += 1
            await asyncio.sleep(0.0005)
        await until(lambda: len(heard.replies) == sent)
        assert pipe.timeouts == pipe.losses == 0


async def test_a_wrong_password_is_said_once_in_words_that_do_not_repeat_it(redis_url: str) -> None:
    parts = urlsplit(redis_url)
    url = f"redis://:not-the-pa55word@{parts.hostname}:{parts.port}/0"
    with structlog.testing.capture_logs() as lines:
        async with piped(url) as pipe:
            await until(lambda: any(line["event"] == "redis_unreachable" for line in lines))
            await asyncio.sleep(0.3)  # several attempts
            assert not pipe.is_connected
            assert pipe.losses >= 2
    (line,) = (line for line in lines if line["event"] == "redis_unreachable")
    assert "AUTH: WRONGPASS" in line["error"]
    assert "not-the-pa55word" not in str(lines)


async def test_a_database_that_is_not_there_is_said_in_words(redis_url: str) -> None:
    with structlog.testing.capture_logs() as lines:
        async with piped(redis_url.removesuffix("/0") + "/4711"):
            await until(lambda: any("SELECT" in str(line.get("error")) for line in lines))


async def test_the_database_of_the_url_is_used(redis_url: str, redis_client: redis.asyncio.Redis) -> None:
    async with piped(redis_url.removesuffix("/0") + "/3") as pipe:
        await until(lambda: pipe.is_connected)
        await pipe.call("SET", "only-in-3", "1")
        assert await redis_client.get("only-in-3") is None
        assert await pipe.call("CLIENT", "GETNAME") == b"tollkeeper-test"
        await pipe.call("DEL", "only-in-3")


async def test_bytes_that_are_not_resp_end_the_connection(tmp_path: Path) -> None:
    greetings = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greetings
        greetings += 1
        await reader.read(100)
        writer.write(b"+OK\r\n" if greetings == 1 else b"HTTP/1.1 400 Bad Request\r\n\r\n")
        if greetings == 1:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    path = tmp_path / "not-redis"
    server = await asyncio.start_unix_server(speak, path)
    async with server, piped(f"unix://{path}") as pipe:
        await until(lambda: pipe.is_connected)
        heard = Heard()
        echo(pipe, heard, 0)
        await until(lambda: heard.replies)
        assert isinstance(heard.replies[0], PipeLost)
        await until(lambda: greetings >= 3)
        assert not pipe.is_connected
