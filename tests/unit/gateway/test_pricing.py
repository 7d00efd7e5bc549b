"""Prices: whole microcredits, rounded up once a part, never less for more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.json_pointer import parse_pointer
from gateway.pricing import Estimate, Price, Rate, RateTable

RATES = st.integers(0, 10**12).map(Microcredits)
PRICES = st.builds(Price, RATES, RATES, RATES, RATES)
UNIT_RATES = st.builds(Rate, RATES, st.sampled_from([1, 1_000, 1_000_000]))
COUNTS = st.integers(0, 2**53)
UNITS = st.sampled_from(["input_tokens", "output_tokens", "searches", "calls"])
RATES_BY_UNIT = st.dictionaries(UNITS, UNIT_RATES, max_size=4)
COUNTS_BY_UNIT = st.dictionaries(UNITS, COUNTS, max_size=4)
CAPPED = st.builds(Price, RATES, RATES, RATES, RATES, cap=st.integers(0, AMOUNT_MAX).map(Microcredits))
MODEL = parse_pointer("/model")
BYTES = st.integers(0, 2**40)
MILLISECONDS = st.integers(0, 10**9)


def price(request: int = 0, kib_in: int = 0, kib_out: int = 0, second: int = 0) -> Price:
    return Price(Microcredits(request), Microcredits(kib_in), Microcredits(kib_out), Microcredits(second))


@pytest.mark.parametrize(
    ("of", "measures", "cost"),
    [
        (price(), (10**9, 10**9, 10**9), 0),
        (price(request=1500), (10**9, 10**9, 10**9), 1500),
        (price(kib_in=1), (0, 5, 5), 0), (price(kib_in=1), (1, 0, 0), 1), (price(kib_in=1), (1024, 0, 0), 1),
        (price(kib_in=1), (1025, 0, 0), 2), (price(kib_in=1000), (512, 0, 0), 500), (price(kib_in=1000), (1, 0, 0), 1),
        (price(kib_out=3), (9, 2048, 9), 6), (price(kib_out=3), (9, 2049, 9), 7),
        (price(second=1000), (9, 9, 1), 1), (price(second=1), (9, 9, 1), 1), (price(second=7), (0, 0, 60_000), 420),
        (price(10, 1, 1, 1), (1, 1, 1), 13), (price(10, 1, 1, 1), (0, 0, 0), 10),
    ],
)  # fmt: skip
def test_each_part_is_rounded_up_by_itself(of: Price, measures: tuple[int, int, int], cost: int) -> None:
    assert of.total(*measures) == cost


@given(PRICES, BYTES, BYTES, MILLISECONDS)
def test_a_cost_is_what_was_measured_and_less_than_one_microcredit_a_part_more(
    of: Price, bytes_in: int, bytes_out: int, elapsed_ms: int
) -> None:
    # Exact, in units of 1/1 024 000 of a microcredit.
    exact = of.request * 1_024_000 + (bytes_in * of.kib_in + bytes_out * of.kib_out) * 1000
    exact += elapsed_ms * of.second * 1024
    cost = of.total(bytes_in, bytes_out, elapsed_ms)
    assert exact <= cost * 1_024_000 < exact + 3 * 1_024_000


@given(PRICES, st.tuples(BYTES, BYTES, MILLISECONDS), st.tuples(BYTES, BYTES, MILLISECONDS))
def test_more_never_costs_less(of: Price, some: tuple[int, int, int], added: tuple[int, int, int]) -> None:
    more = (some[0] + added[0], some[1] + added[1], some[2] + added[2])
    assert of.request <= of.total(*some) <= of.total(*more)


@given(PRICES, st.tuples(BYTES, BYTES, MILLISECONDS), st.tuples(BYTES, BYTES, MILLISECONDS))
def test_a_request_cut_in_two_is_never_cheaper(
    of: Price, one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    both = of.total(one[0] + other[0], one[1] + other[1], one[2] + other[2])
    assert of.total(*one) + of.total(*other) >= both


@given(PRICES, BYTES, BYTES, MILLISECONDS)
def test_a_fixed_price_is_known_before_the_request_is_forwarded(
    of: Price, bytes_in: int, bytes_out: int, elapsed_ms: int
) -> None:
    fixed = Price(of.request)
    assert fixed.is_fixed
    assert fixed.total(bytes_in, bytes_out, elapsed_ms) == of.request
    assert of.is_fixed == (of.kib_in == of.kib_out == of.second == 0)


# -- units that the answer reports


@pytest.mark.parametrize(
    ("rate", "count", "cost"),
    [
        (Rate(Microcredits(600_000), 1_000), 1, 600), (Rate(Microcredits(600_001), 1_000), 1, 601),
        (Rate(Microcredits(1), 1_000_000), 1, 1), (Rate(Microcredits(1), 1_000_000), 1_000_001, 2),
        (Rate(Microcredits(5), 1), 3, 15), (Rate(Microcredits(0), 1), 10**9, 0), (Rate(Microcredits(5), 1), 0, 0),
    ],
)  # fmt: skip
def test_units_are_rounded_up_once_for_all_of_them(rate: Rate, count: int, cost: int) -> None:
    assert rate.cost(count) == cost


@given(UNIT_RATES, COUNTS)
def test_units_cost_what_their_rate_says_and_less_than_one_microcredit_more(rate: Rate, count: int) -> None:
    assert count * rate.microcredits <= rate.cost(count) * rate.per < count * rate.microcredits + rate.per


@given(CAPPED, BYTES, BYTES, MILLISECONDS, COUNTS_BY_UNIT, RATES_BY_UNIT)
def test_a_total_is_the_sum_of_its_parts_whatever_the_cap(
    of: Price, bytes_in: int, bytes_out: int, elapsed_ms: int, counts: dict[str, int], rates: dict[str, Rate]
) -> None:
    measured = of.total(bytes_in, bytes_out, elapsed_ms)
    total = of.total(bytes_in, bytes_out, elapsed_ms, counts, rates)
    assert total == measured + sum(rates[unit].cost(counts[unit]) for unit in counts.keys() & rates.keys())


@given(COUNTS_BY_UNIT, COUNTS_BY_UNIT, RATES_BY_UNIT)
def test_more_units_never_cost_less(
    some: dict[str, int], added: dict[str, int], rates: dict[str, Rate]
) -> None:
    more = {unit: some.get(unit, 0) + added.get(unit, 0) for unit in some.keys() | added.keys()}
    of = Price(units=rates)
    assert of.total(0, 0, 0, some, rates) <= of.total(0, 0, 0, more, rates)


def test_zero_units_cost_nothing_and_so_do_units_without_a_rate() -> None:
    rates = {"output_tokens": Rate(Microcredits(5), 1)}
    of = Price(Microcredits(7), units=rates)
    assert of.total(0, 0, 0, {"output_tokens": 0}, rates) == of.total(0, 0, 0, {"seats": 9}, rates) == 7


@given(CAPPED, BYTES, st.integers(0, 10**12), st.integers(0, 2**20))
def test_what_may_still_be_sent_costs_no_more_than_is_covered(
    of: Price, sent: int, amount: int, more: int
) -> None:
    already = of.total(0, sent, 0)
    within = of.bytes_out_within(amount, already)
    if amount >= already and more <= within:
        assert of.total(0, sent + more, 0) <= amount
    if not of.kib_out:
        assert within == float("inf")
    elif amount <= already:
        assert within == 0


# -- rates by a field


def test_rates_are_those_of_the_row_or_else_those_for_everything_else() -> None:
    small, other = {"tokens": Rate(Microcredits(1))}, {"tokens": Rate(Microcredits(9))}
    strict = RateTable({"small": small}, None, request=(MODEL,))
    open_to_all = RateTable({"small": small}, other, request=(MODEL,))
    assert [strict.rates(value) for value in ("small", "Small", "", None)] == [small, None, None, None]
    assert [open_to_all.rates(value) for value in ("small", "Small", "", None)] == [
        small,
        other,
        other,
        other,
    ]


def test_a_price_with_a_table_is_metered_whatever_else_it_has() -> None:
    table = RateTable({"small": {"tokens": Rate(Microcredits(1))}}, None, request=(MODEL,))
    assert not Price(Microcredits(5), table=table).is_fixed
    assert not Price(Microcredits(5), units={"tokens": Rate(Microcredits(1))}).is_fixed
    assert Price(Microcredits(5), cap=Microcredits(5), charges_failures=True).is_fixed


# -- estimates


@pytest.mark.parametrize(
    ("estimate", "length", "wanted", "amount"),
    [
        (Estimate(Microcredits(100)), 5_000, None, 100), (Estimate(per_kib=Microcredits(10)), 0, None, 0),
        (Estimate(per_kib=Microcredits(10)), 1, None, 1), (Estimate(per_kib=Microcredits(10)), 1_025, None, 11),
        (Estimate(Microcredits(100), json=(MODEL,), unit="tokens", missing=50), 9, None, 100 + 25),
        (Estimate(Microcredits(100), json=(MODEL,), unit="tokens", missing=50), 9, 0, 100),
        (Estimate(Microcredits(100), json=(MODEL,), unit="tokens", missing=50), 9, 3, 100 + 2),
        (Estimate(Microcredits(100), Microcredits(1), (MODEL,), "tokens", 50), 2_048, 10**9, 1_000),
    ],
)  # fmt: skip
def test_an_estimate_is_its_fixed_part_and_what_length_and_field_add(
    estimate: Estimate, length: int, wanted: int | None, amount: int
) -> None:
    assert estimate.amount(length, wanted, {"tokens": Rate(Microcredits(500), 1_000)}, 1_000) == amount


@given(
    st.builds(Estimate, RATES, RATES, st.just((MODEL,)), st.just("tokens"), COUNTS), UNIT_RATES, BYTES, BYTES, COUNTS, COUNTS,
    st.integers(0, AMOUNT_MAX),
)  # fmt: skip
def test_who_asks_for_more_or_sends_more_is_held_no_less_and_never_more_than_the_cap(
    estimate: Estimate, rate: Rate, length: int, longer: int, wanted: int, more: int, cap: int
) -> None:
    rates = {"tokens": rate}
    some = estimate.amount(length, wanted, rates, cap)
    assert 0 <= some <= estimate.amount(length + longer, wanted + more, rates, cap) <= cap
    assert estimate.amount(length, None, rates, cap) == estimate.amount(length, estimate.missing, rates, cap)
