"""Sealing: what is kept says nothing, and opens for its own row and pepper only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.sealing import SealBroken, Sealing
from gateway.contract.token import Pepper

PEPPER = Pepper(b"0123456789abcdef")
SEALING = Sealing(PEPPER, "test")


@given(st.text(max_size=2_000), st.text(max_size=80))
def test_what_was_sealed_for_a_row_opens_for_it(secret: str, row: str) -> None:
    assert SEALING.open(SEALING.seal(secret, row), row) == secret


def test_nothing_of_the_secret_is_in_what_is_kept_and_no_two_are_alike() -> None:
    first, second = (SEALING.seal("whsec_secret-of-theirs", "row") for _ in range(2))

    assert first != second
    assert b"secret-of-theirs" not in first + second


@pytest.mark.parametrize(
    "other", [Sealing(Pepper(b"another pepper, "), "test"), Sealing(PEPPER, "another-purpose")]
)
def test_another_pepper_or_purpose_does_not_open_it(other: Sealing) -> None:
    with pytest.raises(SealBroken):
        other.open(SEALING.seal("secret", "row"), "row")


def test_moved_to_another_row_it_does_not_open() -> None:
    with pytest.raises(SealBroken):
        SEALING.open(SEALING.seal("secret", "row 1"), "row 2")


@given(st.binary(max_size=80))
def test_what_was_never_sealed_does_not_open(sealed: bytes) -> None:
    with pytest.raises(SealBroken):
        SEALING.open(sealed, "row")


def test_a_changed_bit_anywhere_breaks_the_seal() -> None:
    sealed = SEALING.seal("secret", "row")
    for place in range(len(sealed)):
        with pytest.raises(SealBroken):
            SEALING.open(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :], "row")
