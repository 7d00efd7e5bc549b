"""How the tests speak to the REST API, as the operator does, and to Redis, as a gateway would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from redis.asyncio import Redis

from control.api.services import Services
from gateway.contract import scripts, token
from gateway.contract.ids import AccountId, KeyId, OrganizationTag, tag_of_key
from gateway.contract.layout import Layout
from gateway.contract.token import Pepper

Json = dict[str, Any]

PEPPER = Pepper(b"0123456789abcdef")
LAYOUT = Layout()


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the API: its status, its headers, and its JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def code(self) -> str:
        """What a problem says to programs."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), self.headers[
            "Content-Type"
        ]
        assert self.body["status"] == self.status
        assert self.body["type"] == f"urn:tollkeeper:problem:{self.body['code']}"
        return str(self.body["code"])

    @property
    def fields(self) -> list[str]:
        """The fields that a problem names."""
        return [error["field"] for error in self.body.get("errors", [])]


class Api:
    """The API, called by the operator unless another token (or None) is given."""

    def __init__(self, client: TestClient[Any, Any], operator_token: str, deps: Services) -> None:
        self.client = client
        self.operator_token = operator_token
        self.deps = deps

    async def call(
        self, method: str, path: str, body: Any = None, *, bearer: str | None = "", **more: Any
    ) -> Answer:
        headers = dict(more.pop("headers", {}))
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer or self.operator_token}"
        async with self.client.request(method, path, json=body, headers=headers, **more) as response:
            return await _read(response)

    async def get(self, path: str) -> Answer:
        return await self.call("GET", path)

    async def post(self, path: str, body: Any = None) -> Answer:
        return await self.call("POST", path, body)

    async def patch(self, path: str, body: Any) -> Answer:
        return await self.call("PATCH", path, body)

    async def delete(self, path: str) -> Answer:
        return await self.call("DELETE", path)

    async def organization(self, name: str = "acme", **fields: Any) -> Json:
        return await self._created("/v1/organizations", {"name": name, **fields})

    async def account(self, organization: str = "acme", name: str = "nightly-report", **fields: Any) -> Json:
        return await self._created(
            f"/v1/organizations/{organization}/service-accounts", {"name": name, **fields}
        )

    async def key(self, account: Json, name: str = "production", **fields: Any) -> Json:
        """{"key": …, "token": …}"""
        return await self._created(f"/v1/service-accounts/{account['id']}/keys", {"name": name, **fields})

    async def _created(self, path: str, body: Json) -> Json:
        answer = await self.post(path, body)
        assert answer.status == 201, answer.body
        return dict(answer.body)


async def _read(response: ClientResponse) -> Answer:
    kind = response.headers.get("Content-Type", "")
    body = await response.json(content_type=None) if "json" in kind else await response.text()
    return Answer(response.status, response.headers, body)


class Gateway:
    """What a gateway would do with Redis, through the contract's own scripts."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._requests = 0

    async def admit(self, secret: str, amount: int = 0, *, digest: bytes | None = None) -> Any:
        """The hold as bytes, or the refusal as a list: [b"status", b"account", b"inactive"]…"""
        key = token.key_id_of(secret.encode())
        assert key is not None
        tag = tag_of_key(key)
        assert tag is not None
        owner = cast("bytes | None", await self.redis.hget(LAYOUT.key(key), "account"))
        account = AccountId(owner.decode() if owner else f"sa_{key}")
        names = [self.holds(tag), LAYOUT.key(key), LAYOUT.account(account), LAYOUT.organization(tag)]
        self._requests += 1
        head = f"request-{self._requests}|{key}|{account}|{tag}|default"
        proof = token.digest(PEPPER, secret.encode()) if digest is None else digest
        (answer,) = await self.redis.eval(scripts.ADMIT.text, 4, *names, "", 60_000, proof, amount, head)
        # An answer that says more than the hold: it is one of a bounded number, or a level only observes.
        return answer[1] if isinstance(answer, list) and answer[0] == b"placed" else answer

    async def spend(self, secret: str, amount: int, *, hold: int | None = None) -> None:
        """One request that costs `amount` microcredits, admitted with a hold of as much unless given, and settled."""
        held = await self.admit(secret, amount if hold is None else hold)
        assert isinstance(held, bytes), f"refused: {held!r}"
        await self.settle(held, amount)

    async def settle(self, hold: bytes, cost: int, event: bytes = b"{}") -> None:
        _, key, account, tag, *_ = hold.decode().split("|")
        organization = OrganizationTag(tag)
        names = [
            self.holds(organization),
            LAYOUT.events(LAYOUT.shard_of(organization)),
            LAYOUT.key(KeyId(key)),
            LAYOUT.account(AccountId(account)),
            LAYOUT.organization(organization),
        ]
        assert await self.redis.eval(scripts.SETTLE.text, 5, *names, "", hold, cost, event) == [1]

    def holds(self, tag: OrganizationTag) -> str:
        return LAYOUT.holds(LAYOUT.shard_of(tag))
