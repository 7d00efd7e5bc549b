"""Prices: whole microcredits, rounded up once a part, never less for more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.pricing import Price

RATES = st.integers(0, 10**12).map(Microcredits)
PRICES = st.builds(Price, RATES, RATES, RATES, RATES)
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
    assert of.cost(*measures) == cost


@given(PRICES, BYTES, BYTES, MILLISECONDS)
def test_a_cost_is_what_was_measured_and_less_than_one_microcredit_a_part_more(
    of: Price, bytes_in: int, bytes_out: int, elapsed_ms: int
) -> None:
    # Exact, in units of 1/1 024 000 of a microcredit.
    exact = of.request * 1_024_000 + (bytes_in * of.kib_in + bytes_out * of.kib_out) * 1000
    exact += elapsed_ms * of.second * 1024
    cost = of.cost(bytes_in, bytes_out, elapsed_ms)
    if cost == AMOUNT_MAX:
        assert exact > (AMOUNT_MAX - 3) * 1_024_000
    else:
        assert exact <= cost * 1_024_000 < exact + 3 * 1_024_000


@given(PRICES, st.tuples(BYTES, BYTES, MILLISECONDS), st.tuples(BYTES, BYTES, MILLISECONDS))
def test_more_never_costs_less(of: Price, some: tuple[int, int, int], added: tuple[int, int, int]) -> None:
    more = (some[0] + added[0], some[1] + added[1], some[2] + added[2])
    assert of.request <= of.cost(*some) <= of.cost(*more) <= AMOUNT_MAX


@given(PRICES, st.tuples(BYTES, BYTES, MILLISECONDS), st.tuples(BYTES, BYTES, MILLISECONDS))
def test_a_request_cut_in_two_is_never_cheaper(
    of: Price, one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    both = of.cost(one[0] + other[0], one[1] + other[1], one[2] + other[2])
    assert of.cost(*one) + of.cost(*other) >= both


@given(PRICES, BYTES, BYTES, MILLISECONDS)
def test_a_fixed_price_is_known_before_the_request_is_forwarded(
    of: Price, bytes_in: int, bytes_out: int, elapsed_ms: int
) -> None:
    fixed = Price(of.request)
    assert fixed.is_fixed
    assert fixed.cost(bytes_in, bytes_out, elapsed_ms) == of.request
    assert of.is_fixed == (of.kib_in == of.kib_out == of.second == 0)
