"""Many clients that mean no good, in a process of their own:

    python -m tests.faults.crowd KIND PORT COUNT SOURCE [TOKEN TARGET]

    heads     each sends a head, a byte a second, and never ends it
    readers   each asks for TARGET with TOKEN, and reads nothing
    idlers    each connects, and says nothing

It prints `ready` when all have connected and begun, and on the end of its standard input a line of JSON: how many connections
it has, and how many answers of each status it was given. All connections come from the address SOURCE of the loopback network.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
from collections import Counter

CONNECTING_AT_ONCE = 50
BYTE_EVERY_S = 1.0
RECEIVE_BUFFER = 4096


class Crowd:
    def __init__(self, kind: str, port: int, count: int, source: str, token: str, target: str) -> None:
        self.kind = kind
        self.port = port
        self.count = count
        self.source = source
        self.request = (
            f"GET {target} HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        self.head = b"GET /slow HTTP/1.1\r\nHost: gateway.test\r\nX-Slow: " + b"a" * 3600
        self.statuses: Counter[str] = Counter()
        self.connected = 0
        self.refused = 0
        self.all_there = asyncio.Event()

    async def play(self) -> None:
        gate = asyncio.Semaphore(CONNECTING_AT_ONCE)
        clients = [asyncio.create_task(self.one(gate)) for _ in range(self.count)]
        await self.all_there.wait()
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        print(
            json.dumps({"connected": self.connected, "refused": self.refused, "statuses": self.statuses}),
            flush=True,
        )
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def one(self, gate: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            async with gate:
                if self.kind == "readers":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                connection.bind((self.source, 0))
                await loop.sock_connect(connection, ("127.0.0.1", self.port))
                if self.kind == "readers":
                    await loop.sock_sendall(connection, self.request)
            self.connected += 1
            self.count_in()
            if self.kind == "readers":
                await asyncio.sleep(3600)
            await asyncio.gather(self.listen(connection), self.talk(connection))
        except OSError:
            self.refused += 1
            self.count_in()
        finally:
            connection.close()

    def count_in(self) -> None:
        if self.connected + self.refused >= self.count:
            self.all_there.set()

    async def listen(self, connection: socket.socket) -> None:
        data = await asyncio.get_running_loop().sock_recv(connection, 65_536)
        self.statuses[data[9:12].decode("ascii", "replace") or "closed"] += 1

    async def talk(self, connection: socket.socket) -> None:
        if self.kind != "heads":
            return
        for position in range(len(self.head)):
            await asyncio.get_running_loop().sock_sendall(connection, self.head[position : position + 1])
            await asyncio.sleep(BYTE_EVERY_S)


def main() -> None:
    kind, port, count, source, *more = sys.argv[1:]
    token, target = more or ("", "/")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(Crowd(kind, int(port), int(count), source, token, target).play())


if __name__ == "__main__":
    main()
