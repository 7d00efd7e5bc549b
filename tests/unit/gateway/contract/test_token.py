"""The token: recognised by shape and checksum without I/O, found in a leak, told apart only by its keyed digest."""

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import token
from gateway.contract.ids import BASE62, OrganizationTag
from gateway.contract.token import Pepper, Token

TAG = OrganizationTag("Acme01")
PEPPER = Pepper(bytes(range(32)))
BODIES = st.text(alphabet=BASE62, min_size=59, max_size=59)


def _token_of(body: str) -> bytes:
    """A well-formed token with these 16 + 43 characters."""
    start = f"tk_{body[:16]}_{body[16:]}"
    return (start + token.checksum(start.encode())).encode()


def test_a_minted_token_is_recognised_and_names_its_key_and_organization() -> None:
    key_id, minted = token.mint(TAG)
    assert token.key_id_of(minted.encode()) == key_id
    assert key_id.startswith(TAG)
    assert len(minted) == token.TOKEN_LENGTH
    assert re.fullmatch(r"tk_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}", minted)


def test_two_tokens_of_one_organization_share_no_secret_and_no_key() -> None:
    (first_key, first), (second_key, second) = token.mint(TAG), token.mint(TAG)
    assert first_key != second_key
    assert first[20:63] != second[20:63]


@given(BODIES)
def test_every_well_formed_token_is_recognised(body: str) -> None:
    assert token.key_id_of(_token_of(body)) == body[:16]


def test_a_token_with_any_one_bit_flipped_is_refused() -> None:
    _, minted = token.mint(TAG)
    good = minted.encode()
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            assert token.key_id_of(bytes(bad)) is None, (position, bit)


def test_a_token_with_two_neighbours_exchanged_is_refused() -> None:
    _, minted = token.mint(TAG)
    for position in range(len(minted) - 1):
        swapped = minted[:position] + minted[position + 1] + minted[position] + minted[position + 2 :]
        if swapped != minted:
            assert token.key_id_of(swapped.encode()) is None, position


def test_a_token_cut_short_or_with_anything_around_it_is_refused() -> None:
    _, minted = token.mint(TAG)
    good = minted.encode()
    for length in range(len(good)):
        assert token.key_id_of(good[:length]) is None
    for bad in (good + b"\n", good + b"0", b" " + good, b"Bearer " + good, good + good, good.upper()):
        assert token.key_id_of(bad) is None


@given(st.binary(max_size=80))
def test_junk_is_refused_and_never_raises(junk: bytes) -> None:
    assert token.key_id_of(junk) is None


@given(st.binary(max_size=200))
def test_the_checksum_is_crc_32_in_six_base62_digits(body: bytes) -> None:
    digits = token.checksum(body)
    value = 0
    for digit in digits:
        value = value * 62 + BASE62.index(digit)
    assert len(digits) == 6
    assert value == _crc32_bit_by_bit(body)


def _crc32_bit_by_bit(data: bytes) -> int:
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0xEDB88320 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def test_the_digest_depends_on_the_pepper_and_on_every_character_of_the_token() -> None:
    _, minted = token.mint(TAG)
    good = minted.encode()
    digest = token.digest(PEPPER, good)
    assert digest == token.digest(PEPPER, good)
    assert len(digest) == token.DIGEST_LENGTH
    others = {token.digest(PEPPER, good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :]) for n in range(len(good))}
    others.add(token.digest(Pepper(bytes(range(1, 33))), good))
    assert len(others) == len(good) + 1
    assert digest not in others


def test_the_digest_is_not_the_unkeyed_hash_of_the_token() -> None:
    _, minted = token.mint(TAG)
    unkeyed = hashlib.blake2b(minted.encode(), digest_size=32).digest()
    assert token.digest(PEPPER, minted.encode()) != unkeyed


def test_a_pepper_of_every_allowed_length_is_used_whole() -> None:
    _, minted = token.mint(TAG)
    for length in (token.PEPPER_LENGTH_MIN, token.PEPPER_LENGTH_MAX):
        pepper = bytes(length)
        last_byte_differs = bytes(length - 1) + b"\x01"
        first, second = (token.digest(Pepper(p), minted.encode()) for p in (pepper, last_byte_differs))
        assert first != second


def test_a_hint_shows_checksum_characters_and_no_secret_one() -> None:
    _, minted = token.mint(TAG)
    hint = token.hint(minted)
    assert hint == "tk_…" + minted[-4:]
    assert token.CHECKSUM_LENGTH >= 4
    assert token.hint(Token("tk_" + "a" * 61 + "wxyz")) == "tk_…wxyz"


@given(before=st.binary(max_size=60), body=BODIES, after=st.binary(max_size=60))
def test_the_pattern_finds_a_token_in_any_noise(before: bytes, body: str, after: bytes) -> None:
    leaked = _token_of(body)
    assert leaked in token.PATTERN.findall(before + leaked + after)


def test_the_pattern_finds_a_token_in_a_header_a_url_and_json() -> None:
    _, minted = token.mint(TAG)
    for text in (
        f"Authorization: Bearer {minted}\r\n",
        f"https://x:{minted}@host/p?t={minted}",
        f'{{"key":"{minted}"}}',
    ):
        assert minted.encode() in token.PATTERN.findall(text.encode())


def test_the_pattern_does_not_take_a_hint_or_a_key_id_for_a_token() -> None:
    key_id, minted = token.mint(TAG)
    assert token.PATTERN.search(f"{token.hint(minted)} {key_id} tk_{key_id}_short".encode()) is None


def test_a_token_is_found_wherever_it_stands() -> None:
    _, minted = token.mint(TAG)
    assert token.holds_token(b"/files/" + minted.encode() + b"/x?y")
    assert not token.holds_token(b"/files/tk_short/x")
    assert not token.holds_token(minted.encode()[:-1])
