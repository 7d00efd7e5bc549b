"""The control plane's REST API, as the commands call it: one synchronous request at a time, JSON both ways.

Standard library only, so that `tollkeeper keys list` starts quickly; no redirects, so the token goes only where it was
meant to. Called by the command modules through ``remote.py``.
"""

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from control.cli.credentials import Credentials
from control.cli.failures import CommandFailed, ExitCode, failure_of_problem

REQUEST_TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024
PAGE_ROWS_MAX = 200

Json = dict[str, Any]


def path_of(*parts: str) -> str:
    """``/v1/`` and the parts, each quoted whole: a name with a slash in it stays one part."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


class ControlPlane:
    """One control plane, spoken to as one operator."""

    def __init__(self, credentials: Credentials) -> None:
        parts = urlsplit(credentials.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandFailed(
                f"{credentials.url!r} is not an address: write http:// or https://, a host and a port.",
                ExitCode.USAGE,
            )
        self.url = credentials.url
        self._token = credentials.token
        self._parts = parts

    def get(self, path: str, **query: str | int | None) -> Json:
        return self.request("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> Json:
        """`headers`: names with underscores for hyphens."""
        return self.request("POST", path, body=body, headers=headers)

    def patch(self, path: str, body: Mapping[str, Any]) -> Json:
        return self.request("PATCH", path, body=body)

    def delete(self, path: str) -> Json:
        return self.request("DELETE", path)

    def rows(self, path: str, limit: int, **query: str | int | None) -> Json:
        """The first ``limit`` rows of a list, page after page: ``{"data": […], "next": cursor or null}``."""
        data: list[Any] = []
        cursor: str | None = None
        while True:
            page_size = min(PAGE_ROWS_MAX, limit - len(data))
            answer = self.get(path, limit=page_size, cursor=cursor, **query)
            data += answer["data"]
            cursor = answer.get("next")
            if cursor is None or len(data) >= limit:
                return {**answer, "data": data, "next": cursor}

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        """One request; the answer's JSON object (empty for 204).

        Raises CommandFailed: the problem the server answered (exit 1, or 4 for 404), or that it cannot be reached (3).
        """
        chosen = {name: value for name, value in (query or {}).items() if value is not None}
        target = self._parts.path + path + ("?" + urlencode(chosen) if chosen else "")
        said = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        said |= {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        content = None
        if method != "GET":
            content = json.dumps(body or {}).encode() if body is not None else None
            if content is not None:
                said["Content-Type"] = "application/json"
        status, answer = self._exchange(method, target, said, content)
        return self._read(status, answer)

    def _exchange(
        self, method: str, target: str, headers: dict[str, str], content: bytes | None
    ) -> tuple[int, bytes]:
        try:
            connection = self._connect()
            try:
                connection.request(method, target, body=content, headers=headers)
                response = connection.getresponse()
                return response.status, response.read(ANSWER_BYTES_MAX)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise CommandFailed(
                f"The control plane at {self.url} cannot be reached: {reason}.\n"
                "Is it running? `tollkeeper up` starts one here; --url names another.",
                ExitCode.UNREACHABLE,
            ) from error

    def _connect(self) -> http.client.HTTPConnection:
        assert self._parts.hostname is not None
        host, port = self._parts.hostname, self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(
                host, port, timeout=REQUEST_TIMEOUT_S, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(host, port, timeout=REQUEST_TIMEOUT_S)

    def _read(self, status: int, answer: bytes) -> Json:
        try:
            fields: Any = json.loads(answer) if answer else {}
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise CommandFailed(
                f"{self.url} answered {status} with something that is not the control plane's JSON.",
                ExitCode.UNREACHABLE,
            )
        if not 200 <= status < 300:
            raise failure_of_problem(status, fields)
        return fields
