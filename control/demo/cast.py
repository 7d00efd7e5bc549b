"""Who plays in the demo: an organization, a service account with a budget, and two keys, made through the REST API.

The organization and the account are found again at a second start; the keys are made anew (their tokens are kept
nowhere) and those of the last start deleted. Called by ``control.cli.demo``.
"""

from dataclasses import dataclass
from typing import Any

import aiohttp

ORGANIZATION = "acme"
ACCOUNT = "production-worker"
SMALL_KEY = "demo"
SMALL_LIMIT = "0.05"
ROOMY_KEY = "try-it"

Json = dict[str, Any]


class DemoFailed(Exception):
    """Something did not turn out as the demo tells it. The text says what, for people."""


class ControlApi:
    """The REST API, asked as the operator."""

    def __init__(self, http: aiohttp.ClientSession, url: str, operator_token: str) -> None:
        self._http = http
        self._url = url
        self._headers = {"Authorization": f"Bearer {operator_token}"}

    async def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        """Status and JSON of one call; a refusal is an answer like any other."""
        async with self._http.request(
            method, f"{self._url}/v1{path}", json=body, headers=self._headers
        ) as answer:
            text = await answer.text()
            return answer.status, await answer.json() if text else {}

    async def get(self, path: str) -> Json:
        return await self._expect("GET", path, None)

    async def post(self, path: str, body: Json) -> Json:
        return await self._expect("POST", path, body)

    async def delete(self, path: str) -> None:
        await self._expect("DELETE", path, None)

    async def _expect(self, method: str, path: str, body: Json | None) -> Json:
        status, answer = await self.ask(method, path, body)
        if not 200 <= status < 300:
            raise DemoFailed(
                f"{method} {path} answered {status}: {answer.get('detail') or answer.get('title')}"
            )
        return answer


@dataclass(frozen=True, slots=True)
class Cast:
    """The API's own records of those who play, and the tokens of the two keys."""

    organization: Json
    account: Json
    small_key: Json
    small_token: str
    roomy_key: Json
    roomy_token: str
    found: bool
    """Whether organization and account were there from an earlier start."""


async def assemble(api: ControlApi) -> Cast:
    """Make or find everyone. Raises DemoFailed where the API refuses."""
    status, organization = await api.ask("GET", f"/organizations/{ORGANIZATION}")
    found = status == 200
    if not found:
        organization = await api.post("/organizations", {"name": ORGANIZATION, "display_name": "Acme, Inc."})
    account = await _account(api)
    await _delete_old_keys(api, account["id"])
    small = await api.post(
        f"/service-accounts/{account['id']}/keys",
        {"name": SMALL_KEY, "credit_limit": SMALL_LIMIT, "reset_period": "daily"},
    )
    roomy = await api.post(f"/service-accounts/{account['id']}/keys", {"name": ROOMY_KEY})
    return Cast(organization, account, small["key"], small["token"], roomy["key"], roomy["token"], found)


async def _account(api: ControlApi) -> Json:
    path = f"/organizations/{ORGANIZATION}/service-accounts"
    for account in (await api.get(f"{path}?limit=200"))["data"]:
        if account["name"] == ACCOUNT:
            return dict(account)
    return await api.post(
        path,
        {
            "name": ACCOUNT,
            "display_name": "Production Worker",
            "description": "The demo's workload",
            "credit_limit": "500",
            "reset_period": "monthly",
        },
    )


async def _delete_old_keys(api: ControlApi, account_id: str) -> None:
    for key in (await api.get(f"/service-accounts/{account_id}/keys?limit=200"))["data"]:
        if key["name"] in (SMALL_KEY, ROOMY_KEY):
            await api.delete(f"/keys/{key['id']}")
