"""Money: what people write and what is computed with are the same amount, exactly."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.money import (
    AMOUNT_MAX,
    MICROCREDITS_PER_CREDIT,
    MoneyError,
    format_credits,
    parse_credits,
)


@given(st.integers(0, AMOUNT_MAX))
def test_an_amount_written_and_read_again_is_the_same(amount: int) -> None:
    assert parse_credits(format_credits(amount)) == amount


@given(st.integers(-AMOUNT_MAX * 4, AMOUNT_MAX * 4))
def test_a_written_amount_is_exact_and_has_no_trailing_zeros(amount: int) -> None:
    text = format_credits(amount)
    assert Decimal(text) * MICROCREDITS_PER_CREDIT == amount
    assert "e" not in text.lower()
    assert "." not in text or text[-1] in "123456789"


@given(st.decimals(min_value=0, max_value=1_000_000_000, places=6, allow_nan=False, allow_infinity=False))
def test_every_decimal_of_credits_is_read_exactly(amount: Decimal) -> None:
    assert parse_credits(f"{amount:f}") == int(amount * MICROCREDITS_PER_CREDIT)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0), ("0.0", 0), ("0.000001", 1), ("12", 12_000_000), ("12.5", 12_500_000), ("12.50", 12_500_000),
        ("007", 7_000_000), ("1000000000", AMOUNT_MAX), ("999999999.999999", AMOUNT_MAX - 1),
    ],
)  # fmt: skip
def test_amounts_that_people_write(text: str, amount: int) -> None:
    assert parse_credits(text) == amount


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (1, "0.000001"), (-1, "-0.000001"), (1_500_000, "1.5"), (100_000_000, "100"), (-2_000_000, "-2"),
     (10_100_000, "10.1"), (AMOUNT_MAX, "1000000000")],
)  # fmt: skip
def test_amounts_that_people_read(amount: int, text: str) -> None:
    assert format_credits(amount) == text


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-1", "+1", "-0", "1e3", "1E3", "nan", "NaN", "inf", "Infinity", "1.", ".5", "1.0000001", "1,5",
        "1_000", "1 000", " 1", "1 ", "1\n", "1000000000.000001", "1000000001", "99999999999", "0x10", "١", "½", "1.٥",
        "$1", "1.2.3",
    ],
)  # fmt: skip
def test_what_is_not_an_amount_is_refused_with_words_for_people(text: str) -> None:
    with pytest.raises(MoneyError, match="credits"):
        parse_credits(text)


def test_the_message_does_not_repeat_a_long_input_whole() -> None:
    with pytest.raises(MoneyError) as raised:
        parse_credits("x" * 10_000)
    assert len(str(raised.value)) < 200


@given(st.text(max_size=20))
def test_any_text_is_an_amount_or_an_error_and_nothing_else(text: str) -> None:
    try:
        amount = parse_credits(text)
    except MoneyError:
        return
    assert 0 <= amount <= AMOUNT_MAX


def test_the_largest_amounts_can_be_added_three_times_and_stay_exact_in_lua() -> None:
    """spent + held + amount is the largest sum a script forms."""
    assert 3 * AMOUNT_MAX < 2**53
