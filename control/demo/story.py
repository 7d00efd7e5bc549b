"""The demo's story: real requests through the gateway, told from what was really answered.

Every figure and name that is printed is read from an answer; an answer that is not what the story is about raises
DemoFailed. Called by ``control.cli.demo``.
"""

import asyncio
import json
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import aiohttp
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from control.demo.cast import Cast, ControlApi, DemoFailed, Json

DRAIN_TIMEOUT_S = 20.0
_REQUESTS_MAX = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway answered: status, JSON body."""

    status: int
    body: Json

    @property
    def error(self) -> Json:
        """The `error` object of a refusal, as OpenAI-style clients read it."""
        found = self.body.get("error")
        return found if isinstance(found, dict) else {}


@dataclass(slots=True)
class Story:
    """One telling: `tell` runs it from beginning to end."""

    out: Console
    http: aiohttp.ClientSession
    api: ControlApi
    gateway: str
    cast: Cast
    _admitted: dict[str, int] = field(default_factory=dict)
    """Key id -> how many of our requests passed."""

    async def tell(self) -> None:
        """Raises DemoFailed at the first thing that is not as told."""
        self._introduce()
        await self._a_good_key()
        await self._a_mistyped_token()
        await self._a_streamed_answer()
        await self._an_empty_budget()
        await self._the_ledger()

    def _introduce(self) -> None:
        cast = self.cast
        self._line(
            "Found" if cast.found else "Made",
            f"organization {cast.organization['name']}, service account {cast.account['name']} "
            f"({cast.account['display_name']}): {_budget(cast.account)}",
        )
        self._line(
            "Made", f"key {cast.small_key['name']} {cast.small_key['hint']}: {_budget(cast.small_key)}"
        )
        self._line(
            "Made", f"key {cast.roomy_key['name']} {cast.roomy_key['hint']}: {_budget(cast.roomy_key)}"
        )

    async def _a_good_key(self) -> None:
        self._heading("A request with a good key")
        answer = await self._send("GET", "/anything/hello", self.cast.small_token, self.cast.small_key)
        _expect(answer.status == 200, f"the request with a good key was answered {answer.status}")
        headers: Json = answer.body["headers"]
        seen = {name.lower(): value for name, value in headers.items()}
        principal = seen.get("x-principal")
        _expect(principal is not None, "the upstream saw no X-Principal")
        self._request(answer, "GET /anything/hello", self.cast.small_key)
        self._line("", f"the upstream saw   X-Principal: {principal}")
        token_seen = self.cast.small_token in json.dumps(answer.body)
        _expect(not token_seen, "the token reached the upstream")
        self._line("", "and of the token   nothing: it was taken off on the way")

    async def _a_mistyped_token(self) -> None:
        self._heading("The same with one character mistyped")
        answer = await self._send("GET", "/anything/hello", _mistyped(self.cast.small_token), None)
        _expect(answer.status == 401, f"a mistyped token was answered {answer.status}")
        self._request(answer, "GET /anything/hello", None)
        self._line("", _words(answer))

    async def _a_streamed_answer(self) -> None:
        self._heading("An answer like a model's, streamed, with the other key")
        body = {
            "model": "demo-1",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": "May I pass?"}],
        }
        text, pieces = "", 0
        usage: Json = {}
        async with self.http.post(
            f"{self.gateway}/v1/chat/completions", json=body, headers=_bearer(self.cast.roomy_token)
        ) as answer:
            _expect(answer.status == 200, f"the streamed request was answered {answer.status}")
            self._count(self.cast.roomy_key)
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk: Json = json.loads(line.removeprefix(b"data: "))
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content", "")
                pieces += 1
            self._request(Answer(answer.status, {}), "POST /v1/chat/completions", self.cast.roomy_key)
        _expect(bool(text) and bool(usage), "the streamed answer was not complete")
        self._line("", f"“{text.strip()}”")
        tokens = f"{usage.get('prompt_tokens')} input and {usage.get('completion_tokens')} output tokens"
        self._line(
            "", f"in {pieces} pieces; it says that it used {tokens}, which is what it costs (see the ledger)"
        )

    async def _an_empty_budget(self) -> None:
        self._heading("Again and again with the small key, until its limit is reached")
        for _ in range(_REQUESTS_MAX):
            answer = await self._send("GET", "/anything/again", self.cast.small_token, self.cast.small_key)
            self._request(answer, "GET /anything/again", self.cast.small_key)
            if answer.status != 200:
                break
        else:
            raise DemoFailed(f"{_REQUESTS_MAX} requests passed and the limit was not reached")
        _expect(answer.status == 402, f"the request over the limit was answered {answer.status}")
        facts: Json = answer.error.get("metadata") or answer.body
        _expect(facts.get("level") == "key", f"the refusal names level {facts.get('level')!r}, not the key")
        _expect(bool(facts.get("resets_at")), "the refusal does not say when the budget resets")
        self._line("", _words(answer))
        self._line(
            "",
            f"level {facts['level']}, limit {facts.get('limit')}, spent {facts.get('spent')}, "
            f"resets at {facts['resets_at']}",
        )

    async def _the_ledger(self) -> None:
        self._heading("The ledger: one row for each request that passed")
        usage = await self._drained_usage()
        names = {key["id"]: str(key["name"]) for key in (self.cast.small_key, self.cast.roomy_key)}
        organization = self.cast.organization["name"]
        latest = await self.api.get(f"/organizations/{organization}/usage/events?limit=200")
        rows = [row for row in latest["data"] if row["key"] in names]
        _expect(len(rows) == sum(self._admitted.values()), f"the ledger has {len(rows)} rows of this story")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("admitted at", "key", "request", "route", "status", "outcome", "held", "cost", "ms"):
            table.add_column(heading, justify="right" if heading in ("held", "cost", "ms") else "left")
        for row in reversed(rows):
            at = str(row["admitted_at"]).partition("T")[2].removesuffix("Z")
            request = f"{row['method']} {row['path']}"
            rest = (row[name] for name in ("route", "status", "outcome", "held", "cost", "total_ms"))
            table.add_row(at, names[row["key"]], request, *map(str, rest))
        self.out.print(table)
        for key in (self.cast.small_key, self.cast.roomy_key):
            sums = usage[key["id"]]
            self._line("Sum", f"key {key['name']}: {sums['requests']} requests, {sums['cost']} credits")
        account = await self.api.get(f"/service-accounts/{self.cast.account['id']}")
        self._line(
            "Left",
            f"{account['name']}: {account.get('remaining')} of {account['credit_limit']} {account['reset_period']}, "
            f"resets at {account.get('resets_at')}",
        )

    async def _drained_usage(self) -> dict[str, Json]:
        """The usage of our two keys once every admitted request is in the ledger."""
        deadline = monotonic() + DRAIN_TIMEOUT_S
        while True:
            report = await self.api.get(
                f"/organizations/{self.cast.organization['name']}/usage?group_by=key&limit=200"
            )
            rows = {str(row["key"]): row for row in report["data"]}
            found = {key: int(rows[key]["requests"]) if key in rows else 0 for key in self._admitted}
            if found == self._admitted:
                return rows
            if monotonic() > deadline:
                raise DemoFailed(
                    f"the ledger has {sum(found.values())} of our {sum(self._admitted.values())} requests "
                    f"after {DRAIN_TIMEOUT_S:g} s"
                )
            await asyncio.sleep(0.2)

    async def _send(self, method: str, path: str, token: str, key: Json | None) -> Answer:
        async with self.http.request(method, self.gateway + path, headers=_bearer(token)) as answer:
            body = json.loads(await answer.read())
            if answer.status == 200 and key is not None:
                self._count(key)
            return Answer(answer.status, body)

    def _count(self, key: Json) -> None:
        self._admitted[key["id"]] = self._admitted.get(key["id"], 0) + 1

    def _heading(self, words: str) -> None:
        self.out.print()
        self.out.print(Text(words, "bold"))

    def _request(self, answer: Answer, request: str, key: Json | None) -> None:
        style = "green" if answer.status < 400 else "yellow"
        whose = f"key {key['name']}" if key else ""
        self.out.print(Text.assemble("  ", (str(answer.status), style), f"  {request:<28}", (whose, "dim")))

    def _line(self, label: str, words: str) -> None:
        self.out.print(Text.assemble("  ", (f"{label:<6}", "dim"), words))


def _expect(as_told: bool, otherwise: str) -> None:
    if not as_told:
        raise DemoFailed(otherwise)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _mistyped(token: str) -> str:
    """The token with one character of its secret exchanged for another."""
    place = len(token) // 2
    return token[:place] + ("x" if token[place] != "x" else "y") + token[place + 1 :]


def _words(answer: Answer) -> str:
    """What the refusal says to people, and its code for programs."""
    body: dict[str, Any] = answer.body
    words = answer.error.get("message") or body.get("detail") or body.get("title")
    code = answer.error.get("code") or body.get("code")
    return f"{words} [{code}]"


def _budget(entity: Json) -> str:
    if entity.get("credit_limit") is None:
        return "no limit of its own"
    return f"limit {entity['credit_limit']} {entity['reset_period']}"
