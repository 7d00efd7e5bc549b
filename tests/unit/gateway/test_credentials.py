"""Where a request may carry its token, in the spellings that clients have."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import token
from gateway.credentials import CREDENTIALS_LENGTH_MAX, token_in
from gateway.http1.head import RequestHead, parse_request

BODY = b"tk_Acme010123456789_" + b"s3cr3t" * 7 + b"x"
TOKEN = BODY + token.checksum(BODY).encode()


def basic(words: bytes) -> bytes:
    return base64.b64encode(words)


def head_with(line: bytes) -> RequestHead:
    data = b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n"
    return parse_request(data, field_count_max=9, target_length_max=99)


def token_from(line: bytes) -> bytes | None:
    head = head_with(line)
    return token_in(head.scheme, head.token)


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer " + TOKEN, b"authorization:Bearer " + TOKEN + b" \t", b"AUTHORIZATION: BEARER " + TOKEN,
        b"Authorization: bearer " + TOKEN, b"Authorization: bEARER   " + TOKEN, b"Authorization: Bearer   " + TOKEN,
        b"Authorization: Basic " + basic(b"x:" + TOKEN), b"Authorization: basic  " + basic(b":" + TOKEN),
        b"Authorization: BASIC " + basic(b"x-access-token:" + TOKEN), b"X-Api-Key: " + TOKEN, b"x-api-key:" + TOKEN + b" ",
    ],
)  # fmt: skip
def test_each_of_these_carries_the_token(line: bytes) -> None:
    assert token_from(line) == TOKEN


def test_a_colon_in_the_password_belongs_to_the_password() -> None:
    assert token_from(b"Authorization: Basic " + basic(b"user:pass:word")) == b"pass:word"


@pytest.mark.parametrize("line", [b"Accept: a", b"Cookie: token=" + TOKEN, b"X-Token: " + TOKEN])
def test_a_token_elsewhere_is_not_looked_at(line: bytes) -> None:
    assert token_from(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization:", b"Authorization: Bearer", b"Authorization: Bearer ", b"Authorization: " + TOKEN,
        b"Authorization: Bearer" + TOKEN, b"Authorization: Bearer:" + TOKEN, b"Authorization: Token " + TOKEN,
        b"Authorization: Digest username=" + TOKEN, b"Authorization: Negotiate YII=", b"Authorization: Basic",
        b"Authorization: Basic " + TOKEN, b"Authorization: Basic " + basic(TOKEN), b"Authorization: Basic =",
        b"Authorization: Basic " + basic(b"x:" + TOKEN)[:-3] + b"\xff\xff\xff",
        b"Authorization: Basic " + basic(b"x:" + TOKEN).replace(b"e", b"\xe9", 1),
        b"Authorization: Bearer " + TOKEN * (CREDENTIALS_LENGTH_MAX // len(TOKEN) + 1),
        b"X-Api-Key: " + b"a" * (CREDENTIALS_LENGTH_MAX + 1), b"X-Api-Key:", b"Authorization: Basic " + basic(b"x:"),
    ],
)  # fmt: skip
def test_what_carries_no_token_is_refused_as_a_wrong_one_and_not_as_a_missing_one(line: bytes) -> None:
    found = token_from(line)
    assert found is not None
    assert token.key_id_of(found) is None


@given(st.binary(max_size=600))
def test_any_value_has_an_answer_and_it_is_bounded(value: bytes) -> None:
    clean = bytes(byte for byte in value if 32 <= byte != 127)
    for name in (b"Authorization: ", b"Authorization: Basic ", b"Authorization: bearer ", b"X-Api-Key: "):
        found = token_from(name + clean)
        assert found is not None
        assert len(found) <= CREDENTIALS_LENGTH_MAX


@given(st.binary(max_size=200))
def test_the_password_of_basic_is_what_stands_behind_the_first_colon(words: bytes) -> None:
    assert token_from(b"Authorization: Basic " + basic(words)) == words.partition(b":")[2]
