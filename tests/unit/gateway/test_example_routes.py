"""The example of a route table is one that a gateway takes, and shows every word that a table may use."""

import tomllib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import gateway
from gateway.contract.money import parse_credits
from gateway.pricing import Rate
from gateway.route_prices import EstimateEntry, MeterEntry, PriceEntry, RatesEntry
from gateway.route_table import load_routes
from gateway.routing import Ejection, HealthCheck, Route, Timeouts

EXAMPLE = Path(gateway.__file__).parents[1] / "deploy/routes.example.toml"
ENTRIES: list[dict[str, Any]] = tomllib.loads(EXAMPLE.read_text("utf-8"))["route"]


def words_of(entry: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in entry.model_fields.items()}


def used_in(entries: Iterable[dict[str, Any]]) -> set[str]:
    return {word for entry in entries for word in entry}


def prices() -> list[dict[str, Any]]:
    return [entry["price"] for entry in ENTRIES if "price" in entry]


def test_the_example_loads_without_a_problem() -> None:
    names = [route.name for route in load_routes(EXAMPLE).routes]
    assert names == ["echo", "chat", "agents", "models", "artifacts"]


def test_the_example_uses_every_word_of_a_route() -> None:
    of_a_route = {field.name for field in fields(Route)} - {"upstreams", "meters"} | {"upstream"}
    assert used_in(ENTRIES) == of_a_route
    words: dict[str, type[Any]] = {"timeouts": Timeouts, "ejection": Ejection, "health": HealthCheck}
    for word, kind in words.items():
        assert used_in(entry.get(word, {}) for entry in ENTRIES) == {field.name for field in fields(kind)}, (
            word
        )


def test_the_example_uses_every_word_of_a_price() -> None:
    assert used_in(prices()) == words_of(PriceEntry)
    assert used_in(meter for price in prices() for meter in price.get("meters", ())) == words_of(MeterEntry)
    assert used_in(price["rates"] for price in prices() if "rates" in price) == words_of(RatesEntry)
    assert used_in(entry["estimate"] for entry in ENTRIES if "estimate" in entry) == words_of(EstimateEntry)


@pytest.mark.parametrize(
    "word",
    ["problem", "openai", "anthropic", "plain", '"each"', '"last"', '"free"', '"charge"', '"refuse"', "402", "429",
     "server_name", "certificate", "ca,"],
)  # fmt: skip
def test_the_example_names_every_choice(word: str) -> None:
    assert word in EXAMPLE.read_text("utf-8")


def test_the_example_routes_as_its_comments_say() -> None:
    table = load_routes(EXAMPLE)

    def route(method: bytes, host: bytes, path: bytes) -> str | None:
        found = table.match(method, host, path)
        return found.name if found else None

    assert route(b"GET", b"any.example", b"/v1") == "models"
    assert route(b"GET", b"any.example", b"/v1/models") == "models"
    assert route(b"POST", b"any.example", b"/v1/chat/completions") == "chat"
    assert route(b"GET", b"any.example", b"/v1/chat/completions") == "models"
    assert route(b"POST", b"any.example", b"/agents/runs") == "agents"
    assert route(b"GET", b"any.example", b"/v10") == "echo"
    assert route(b"DELETE", b"any.example", b"/v1/models/old") == "echo"
    assert route(b"GET", b"files.internal.example:8080", b"/artifacts/a/b") == "artifacts"
    assert route(b"GET", b"any.example", b"/artifacts/a/b") == "echo"


def test_an_amount_that_the_example_leaves_out_is_its_default() -> None:
    echo, chat, agents, models, artifacts = load_routes(EXAMPLE).routes
    assert echo.hold == echo.hold_step == echo.price.request == parse_credits("0.01")
    assert chat.hold_step == parse_credits("0.05")
    assert agents.hold == agents.hold_step == parse_credits("0.20")
    assert models.hold == parse_credits("0.05")
    assert models.quota_status == 429
    assert artifacts.hold == parse_credits("0.10")
    assert artifacts.upstreams[0].path == b"/store"


def test_a_chat_is_held_and_priced_as_the_comments_say() -> None:
    chat = next(route for route in load_routes(EXAMPLE).routes if route.name == "chat")
    estimate, table = chat.estimate, chat.price.table
    assert estimate is not None
    assert table is not None
    assert (table.rates("unheard-of"), table.rates(None)) == (None, None)
    large = table.rates("large-1")
    assert large is not None
    assert large["searches"] == Rate(parse_credits("0.01"), 1)
    # a request of 2 KiB for 1000 tokens of the large model: 0.001 + 2 x 0.0008 + 1000 x 10 / 1 000 000
    assert estimate.amount(2048, 1000, large, chat.price.cap) == parse_credits("0.0126")
    assert estimate.amount(2048, None, large, chat.price.cap) == parse_credits("0.04356")
    counts = {"input_tokens": 500, "output_tokens": 1000, "searches": 2}
    assert chat.price.total(2048, 9000, 1500, counts, large) == parse_credits("0.03125")
    assert chat.price.cap == parse_credits("2")
