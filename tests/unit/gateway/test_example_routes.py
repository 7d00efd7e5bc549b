"""The example of a route table is one that a gateway takes, and shows every word that a table may use."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import gateway
from gateway.contract.money import parse_credits
from gateway.pricing import Price
from gateway.route_table import load_routes
from gateway.routing import Ejection, HealthCheck, Route, Timeouts

EXAMPLE = Path(gateway.__file__).parents[1] / "deploy/routes.example.toml"


def test_the_example_loads_without_a_problem() -> None:
    assert [route.name for route in load_routes(EXAMPLE).routes] == ["echo", "models", "artifacts"]


def test_the_example_uses_every_word_of_a_route() -> None:
    entries = tomllib.loads(EXAMPLE.read_text("utf-8"))["route"]
    used = {word for entry in entries for word in entry}
    assert used == {field.name for field in fields(Route)} - {"upstreams"} | {"upstream"}
    words_of: dict[str, type[Any]] = {
        "price": Price,
        "timeouts": Timeouts,
        "ejection": Ejection,
        "health": HealthCheck,
    }
    for words, kind in words_of.items():
        used = {word for entry in entries for word in entry.get(words, ())}
        assert used == {field.name for field in fields(kind)}, words


def test_the_example_routes_as_its_comments_say() -> None:
    table = load_routes(EXAMPLE)

    def route(method: bytes, host: bytes, path: bytes) -> str | None:
        found = table.match(method, host, path)
        return found.name if found else None

    assert route(b"GET", b"any.example", b"/v1") == "models"
    assert route(b"POST", b"any.example", b"/v1/chat/completions") == "models"
    assert route(b"GET", b"any.example", b"/v10") == "echo"
    assert route(b"DELETE", b"any.example", b"/v1/models/old") == "echo"
    assert route(b"GET", b"files.internal.example:8080", b"/artifacts/a/b") == "artifacts"
    assert route(b"GET", b"any.example", b"/artifacts/a/b") == "echo"


def test_an_amount_that_the_example_leaves_out_is_its_default() -> None:
    echo, models, artifacts = load_routes(EXAMPLE).routes
    assert echo.hold == echo.price.request == parse_credits("0.01")
    assert models.hold == parse_credits("0.05")
    assert models.quota_status == 429
    assert artifacts.hold == parse_credits("0.10")
    assert artifacts.upstreams[0].path == b"/store"
