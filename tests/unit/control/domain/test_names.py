"""Names: slugs, suggestions, advice, and free text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.domain.names import advice, clean_text, is_slug, name_and_display_name, slug_of
from control.domain.refusals import Invalid


@pytest.mark.parametrize("name", ["a", "0", "production-worker", "a--b", "a" * 63, "9lives"])
def test_a_slug_is_a_name(name: str) -> None:
    assert is_slug(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a b", "a_b", "a.b", "é", "a" * 64, "a\n", "٣"])
def test_anything_else_is_not(name: str) -> None:
    assert not is_slug(name)


@given(st.text(max_size=300))
def test_what_is_suggested_is_always_a_name_or_nothing(text: str) -> None:
    suggestion = slug_of(text)
    assert suggestion == "" or is_slug(suggestion)


@given(st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"))
def test_a_name_with_single_hyphens_is_its_own_suggestion(name: str) -> None:
    if "--" not in name:
        assert slug_of(name) == name


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("Production Worker", "production-worker"),
        ("  Ünïcode! (2) ", "unicode-2"),
        ("日本", ""),
        ("a" * 80, "a" * 63),
    ],
)
def test_free_text_becomes_the_nearest_name(text: str, slug: str) -> None:
    assert slug_of(text) == slug


def test_each_name_is_derived_from_the_other_where_it_is_missing() -> None:
    assert name_and_display_name("worker", None) == ("worker", "worker")
    assert name_and_display_name(None, "The Worker") == ("the-worker", "The Worker")
    assert name_and_display_name("w", "The Worker") == ("w", "The Worker")


@pytest.mark.parametrize(("name", "display_name"), [(None, None), (None, "日本"), ("A B", None), ("", None)])
def test_a_name_that_is_none_and_cannot_be_derived_is_refused(
    name: str | None, display_name: str | None
) -> None:
    with pytest.raises(Invalid) as raised:
        name_and_display_name(name, display_name)
    assert [error.field for error in raised.value.errors] == ["name"]


@pytest.mark.parametrize(
    "name", ["sa1", "SA1", "Test", "test-2", "a", "42", "service-account-3", "my-key", "key1"]
)
def test_a_poor_name_is_advised_against(name: str) -> None:
    assert len(advice(name)) == 1


@pytest.mark.parametrize(
    "name", ["nightly-report", "production-worker", "testing-pipeline", "prod", "dev", "keyboard"]
)
def test_a_good_name_is_not(name: str) -> None:
    assert advice(name) == []


def test_free_text_loses_the_space_around_it() -> None:
    assert clean_text("  The Worker \n", length_max=200) == "The Worker"


@pytest.mark.parametrize(
    "text", ["", " ", "a\x00b", "a\x7fb", "a\nb", "a" * 201, "a\ud800", "a\u2028b", "a\u2029b", "a\x85b"]
)
def test_free_text_that_cannot_be_shown_on_a_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is empty|characters"):
        clean_text(text, length_max=200)


def test_a_description_may_have_lines() -> None:
    assert clean_text("one\n\ttwo", length_max=200, multiline=True) == "one\n\ttwo"


@pytest.mark.parametrize("secret", [f"tk_{'aB3' * 5}a_{'x1' * 24}z", "tko_" + "Ab1" * 14 + "x"])
def test_a_token_is_neither_name_nor_text_and_is_not_repeated(secret: str) -> None:
    for refused in (
        lambda: clean_text(f"key {secret} of mine", length_max=200),
        lambda: name_and_display_name(secret, None),
    ):
        with pytest.raises((ValueError, Invalid), match="holds a token") as failure:
            refused()
        assert secret[10:30].lower() not in str(failure.value).lower()
