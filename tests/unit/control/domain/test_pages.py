"""Cursors: what a list answered with is read back exactly, anything else is refused."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.domain.pages import Page, listing, page
from control.domain.refusals import Invalid

AT = datetime(2031, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


@given(
    st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.text("0123456789abcXYZ", min_size=1, max_size=20),
)
def test_a_cursor_leads_to_the_row_after_the_last_one_shown(at: datetime, identifier: str) -> None:
    cursor = listing([1, 2], Page(1), lambda _: (at, identifier)).next

    assert page(7, cursor) == Page(7, at, identifier)


def test_the_last_page_has_no_cursor() -> None:
    assert listing([1, 2], Page(2), lambda _: (AT, "x")).next is None
    assert listing([], Page(2), lambda _: (AT, "x")).rows == []


def test_the_row_that_was_read_beyond_the_page_is_not_shown() -> None:
    assert listing([1, 2, 3], Page(2), lambda _: (AT, "x")).rows == [1, 2]


@given(st.text(max_size=300))
def test_whatever_is_sent_as_a_cursor_is_a_place_or_refused(text: str) -> None:
    with contextlib.suppress(Invalid):
        assert isinstance(page(1, text).before, datetime)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "e30", "WzEsMl0", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5LCJhIl0", "WzEsImFcdTAwMDAiXQ", "a" * 201],
)
def test_a_cursor_of_another_shape_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid) as raised:
        page(1, cursor)
    assert raised.value.code == "invalid_cursor"
