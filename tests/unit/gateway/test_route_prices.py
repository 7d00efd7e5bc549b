"""What a table says of money: read whole, and nothing that is free by accident, ambiguous or never applied gets through."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.json_pointer import parse_pointer
from gateway.metering import MeterPlan
from gateway.pricing import Estimate, Price, Rate, RateTable
from gateway.routing import Route
from tests.unit.gateway.test_route_table import SMALLEST, problems, table

METERS = """
[[route.price.meters]]
unit = "input_tokens"
json = "/usage/input"
[[route.price.meters]]
unit = "output_tokens"
json = ["/usage/output", "/usage/completion"]
"""
RATES = """
[route.price.rates]
request = ["/model", "/engine"]
per = 1000000
otherwise = "refuse"
table = { small = { input_tokens = "1", output_tokens = "2" }, "vendor/large.v1" = { input_tokens = "3", output_tokens = "4" } }
"""
METER = "price.meters = [{ unit = 'tokens', json = '/usage', %s }]"
METERED = "hold = '1'\n" + METER % "per_1000 = '1'"


def route(tmp_path: Path, words: str) -> Route:
    return table(tmp_path, SMALLEST + words).routes[0]


def problem(tmp_path: Path, words: str) -> str:
    (said,) = problems(tmp_path, SMALLEST + words)
    assert said.startswith("route a: ")
    return said


def credits_of(microcredits: int, per: int) -> Rate:
    return Rate(Microcredits(microcredits), per)


# -- what is read


def test_a_meters_own_rate_is_for_so_many_units(tmp_path: Path) -> None:
    for word, per in (("per_1", 1), ("per_1000", 1_000), ("per_1000000", 1_000_000)):
        price = route(tmp_path, "hold = '1'\n" + METER % f"{word} = '0.6'").price
        assert price == Price(units={"tokens": credits_of(600_000, per)})
        assert (price.is_fixed, price.is_metered) == (False, True)


def test_a_route_with_meters_has_a_plan_to_read_its_answers_by(tmp_path: Path) -> None:
    plan = route(tmp_path, METERED).meters
    assert isinstance(plan, MeterPlan)
    assert plan.units == ("tokens",)
    assert route(tmp_path, "").meters is None


def test_a_meter_reads_events_where_it_reads_an_answer_unless_it_says_where(tmp_path: Path) -> None:
    lines = b"Content-Type: text/event-stream\r\n"
    for words, data, count in (
        ("per_1 = '1'", b'data: {"usage": 3}\n\ndata: {"usage": 5}\n\n', 5),
        ("per_1 = '1', event = '/delta'", b'data: {"usage": 3}\n\ndata: {"delta": 5}\n\n', 5),
        (
            "per_1 = '1', event = ['/a', '/b'], events = 'each'",
            b'data: {"b": 3}\n\ndata: {"a": 4, "b": 9}\n\n',
            7,
        ),
    ):
        plan = route(tmp_path, "hold = '1'\n" + METER % words).meters
        assert plan is not None
        reading = plan.begin(lines)
        reading.feed(data)
        assert reading.counts == {"tokens": count}


def test_a_header_meter_has_its_name_in_any_case(tmp_path: Path) -> None:
    words = "hold = '1'\nprice.meters = [{ unit = 'tokens', header = 'X-Tokens', per_1 = '1' }]"
    plan = route(tmp_path, words).meters
    assert plan is not None
    assert plan.begin(b"x-TOKENS: 12\r\n").counts == {"tokens": 12}


def test_rates_by_a_field_of_the_request_are_read_whole(tmp_path: Path) -> None:
    read = route(tmp_path, "hold = '1'\n" + METERS + RATES)
    model, engine = parse_pointer("/model"), parse_pointer("/engine")
    rows = {
        value: {"input_tokens": credits_of(first, 1_000_000), "output_tokens": credits_of(second, 1_000_000)}
        for value, first, second in (
            ("small", 1_000_000, 2_000_000),
            ("vendor/large.v1", 3_000_000, 4_000_000),
        )
    }
    assert read.price == Price(table=RateTable(rows, None, request=(model, engine)))
    assert read.reads_ahead


def test_a_unit_with_a_rate_of_its_own_has_it_in_every_row(tmp_path: Path) -> None:
    own = "[[route.price.meters]]\nunit = 'calls'\nheader = 'x-calls'\nper_1 = '0.5'\n"
    price = route(tmp_path, "hold = '1'\n" + METERS + own + RATES).price
    assert price.table is not None
    assert price.units == {"calls": credits_of(500_000, 1)}
    for row in price.table.rows.values():
        assert row["calls"] == credits_of(500_000, 1)
        assert set(row) == {"input_tokens", "output_tokens", "calls"}


def test_rates_by_a_field_of_the_answer_have_rates_for_what_is_not_in_the_table(tmp_path: Path) -> None:
    by_answer = RATES.replace('request = ["/model", "/engine"]', 'answer = "/model"').replace(
        '"refuse"', '{ input_tokens = "9", output_tokens = "8" }'
    )
    read = route(tmp_path, "hold = '1'\n" + METERS + by_answer)
    assert read.price.table is not None
    otherwise = {
        "input_tokens": credits_of(9_000_000, 1_000_000),
        "output_tokens": credits_of(8_000_000, 1_000_000),
    }
    assert (
        read.price.table.otherwise == read.price.table.rates("?") == read.price.table.rates(None) == otherwise
    )
    assert not read.reads_ahead
    assert read.meters is not None
    reading = read.meters.begin(b"Content-Type: application/json\r\n")
    reading.feed(b'{"model": "small"}')
    reading.end()
    assert reading.field == "small"


def test_an_estimate_is_read_whole(tmp_path: Path) -> None:
    words = (
        "estimate = { per_kib = '0.002', json = ['/max', '/most'], unit = 'tokens', missing = 7 }\n" + METERED
    )
    read = route(tmp_path, words)
    assert read.estimate == Estimate(
        Microcredits(1_000_000),
        Microcredits(2_000),
        (parse_pointer("/max"), parse_pointer("/most")),
        "tokens",
        7,
    )
    assert read.reads_ahead
    assert not route(tmp_path, "estimate.per_kib = '1'").reads_ahead


def test_an_estimate_alone_has_the_price_of_a_request_as_its_fixed_part(tmp_path: Path) -> None:
    estimate = route(tmp_path, "price.request = '0.5'\nestimate.per_kib = '1'").estimate
    assert estimate is not None
    assert estimate.base == 500_000


def test_what_is_not_said_of_money_has_a_default(tmp_path: Path) -> None:
    read = route(tmp_path, "hold = '2'")
    assert (read.hold_step, read.read_ahead_bytes, read.estimate) == (2_000_000, 65_536, None)
    assert (read.price.cap, read.price.charges_failures) == (AMOUNT_MAX, False)


def test_what_is_said_of_money_is_read(tmp_path: Path) -> None:
    words = "hold = '2'\nhold_step = '0.5'\nread_ahead_bytes = 1048576\nprice.cap_per_request = '3'\n"
    read = route(tmp_path, words + "price.upstream_failure = 'charge'")
    assert (read.hold, read.hold_step, read.read_ahead_bytes) == (2_000_000, 500_000, 1_048_576)
    assert (read.price.cap, read.price.charges_failures) == (3_000_000, True)


def test_no_more_is_held_than_a_request_may_cost(tmp_path: Path) -> None:
    assert route(tmp_path, "hold = '2'\nprice.cap_per_request = '0.5'").hold == 500_000


# -- what is wrong


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (METER % "per_1 = '1'", "give hold or estimate"),
        ("hold = '1'\n" + METER % "per_1 = '1', per_1000 = '1'", "give one of per_1, per_1000 and per_1000000"),
        ("hold = '1'\nprice.meters = [{ unit = 'tokens', json = '/usage' }]", "tokens has no rate"),
        ("hold = '1'\nprice.meters = [{ unit = 'tokens', per_1 = '1' }]", "a header, or json"),
        ("hold = '1'\n" + METER % "per_1 = '1', header = 'x-tokens'", "a header, or json"),
        ("hold = '1'\nprice.meters = [{ unit = 'Tokens', json = '/usage', per_1 = '1' }]", "lower-case letters"),
        ("hold = '1'\nprice.meters = [{ unit = '', json = '/usage', per_1 = '1' }]", "lower-case letters"),
        ("hold = '1'\nprice.meters = [{ json = '/usage', per_1 = '1' }]", "unit"),
        ("hold = '1'\nprice.meters = [{ unit = 'tokens', header = 'a b', per_1 = '1' }]", "not the name of a header field"),
        ("hold = '1'\nprice.meters = [{ unit = 'tokens', json = 'usage.tokens', per_1 = '1' }]", '"/usage/tokens"'),
        ("hold = '1'\nprice.meters = [{ unit = 'tokens', json = [], per_1 = '1' }]", "a JSON pointer such as"),
        ("hold = '1'\nprice.meters = [{ unit = 'tokens', json = ['/a', 5], per_1 = '1' }]", "a JSON pointer such as"),
        (f"hold = '1'\nprice.meters = [{{ unit = 'tokens', json = {['/a'] * 9}, per_1 = '1' }}]", "at most 8 pointers"),
        ("hold = '1'\n" + METER % "per_1 = 1", "decimal string"), ("hold = '1'\n" + METER % "per_10 = '1'", "per_10"),
        ("hold = '1'\n" + METER % "per_1 = '1', events = 'first'", "events"),
        ("hold = '1'\n" + METERED.partition("\n")[2].replace("]", ", { unit = 'tokens', header = 'x', per_1 = '1' }]"),
         "metered twice"),
        ("price.request = '2'\nprice.cap_per_request = '1'", "cap_per_request is less than request"),
        ("price.upstream_failure = 'maybe'", "upstream_failure"), ("price.cap = '1'", "price.cap"),
        ("read_ahead_bytes = -1", "read_ahead_bytes"), ("read_ahead_bytes = 1048577", "read_ahead_bytes"),
        ("hold_step = 1", "decimal string"), ("estimate = {}", "an estimate has per_kib, or json"),
        ("estimate = { json = '/max' }\n" + METERED, "json needs unit, and missing"),
        ("estimate = { json = '/max', unit = 'tokens' }\n" + METERED, "json needs unit, and missing"),
        ("estimate = { json = '/max', missing = 5 }\n" + METERED, "json needs unit, and missing"),
        ("estimate = { per_kib = '1', missing = 5 }", "unit and missing go with json"),
        ("estimate = { json = '/max', unit = 'seats', missing = 5 }\n" + METERED, "no meter has the unit 'seats'"),
        ("estimate = { json = '/max', unit = 'tokens', missing = -1 }\n" + METERED, "estimate.missing"),
        ("estimate = { json = '/max', unit = 'tokens', missing = 1.5 }\n" + METERED, "estimate.missing"),
    ],
)  # fmt: skip
def test_a_wrong_word_about_money_is_named(tmp_path: Path, words: str, says: str) -> None:
    assert says in problem(tmp_path, words)


@pytest.mark.parametrize(
    ("change", "to", "says"),
    [
        ('request = ["/model", "/engine"]\n', "", "give request or answer"),
        ("per =", 'answer = "/model"\nper =', "give request or answer"),
        ('request = ["/model", "/engine"]', 'answer = "/model"', "an answer is too late to refuse"),
        ('otherwise = "refuse"\n', "", "otherwise"), ('"refuse"', '"free"', "otherwise"),
        ('"refuse"', '{ input_tokens = "1" }', "rates.otherwise must have a rate for each of input_tokens, output_tokens"),
        (', output_tokens = "2"', "", "rates.table.small must have a rate for each"),
        (', output_tokens = "2"', ', output_tokens = "2", seats = "3"', "and no other"),
        ("per = 1000000", "per = 100", "per"), ('input_tokens = "1"', "input_tokens = 1", "decimal string"),
        ("small =", f'"{"x" * 257}" =', "longer than 256 characters"),
        ('"/model"', '"model"', '"/model"'),
    ],
)  # fmt: skip
def test_a_wrong_word_about_rates_is_named(tmp_path: Path, change: str, to: str, says: str) -> None:
    assert change in RATES
    said = problems(tmp_path, SMALLEST + "hold = '1'\n" + METERS + RATES.replace(change, to))
    assert any(says in sentence for sentence in said), said


def test_rates_without_a_unit_would_never_be_used(tmp_path: Path) -> None:
    assert "has no unit" in problem(tmp_path, METERED + "\n" + RATES)


def test_an_empty_table_of_rates_prices_nothing(tmp_path: Path) -> None:
    start = RATES.index("table = ")
    assert "table" in problem(tmp_path, "hold = '1'\n" + METERS + RATES[:start] + "table = {}\n")


def test_meters_and_rows_have_a_bound(tmp_path: Path) -> None:
    def meters(count: int) -> str:
        each = ", ".join(f"{{ unit = 'u{number}', header = 'x', per_1 = '1' }}" for number in range(count))
        return f"hold = '1'\nprice.meters = [{each}]"

    assert len(route(tmp_path, meters(16)).price.units) == 16
    assert "price.meters" in problem(tmp_path, meters(17))
