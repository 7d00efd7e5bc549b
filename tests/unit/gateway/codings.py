"""Content codings as servers make them: in one go, flushed often, in several members."""

import gzip
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import zstandard

from gateway.decoding import Decoding, codings_of

Coder = Callable[[list[bytes]], bytes]


def _raw_deflate(pieces: list[bytes]) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return b"".join(deflate.compress(piece) for piece in pieces) + deflate.flush()


def _flushed_gzip(pieces: list[bytes]) -> bytes:
    deflate = zlib.compressobj(wbits=31)
    return (
        b"".join(deflate.compress(piece) + deflate.flush(zlib.Z_SYNC_FLUSH) for piece in pieces)
        + deflate.flush()
    )


def _flushed_brotli(pieces: list[bytes]) -> bytes:
    compressor = brotli.Compressor(quality=4)
    return b"".join(compressor.process(piece) + compressor.flush() for piece in pieces) + bytes(
        compressor.finish()
    )


def _flushed_zstd(pieces: list[bytes]) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    flushed = (
        compressor.compress(piece) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for piece in pieces
    )
    return b"".join(flushed) + compressor.flush()


def _three(pieces: list[bytes]) -> bytes:
    return gzip.compress(zstandard.compress(zlib.compress(b"".join(pieces))))


CODERS: dict[str, tuple[str, Coder]] = {
    "gzip": ("gzip", lambda pieces: gzip.compress(b"".join(pieces))),
    "gzip, flushed": ("x-gzip", _flushed_gzip),
    "gzip, in members": ("GZIP", lambda pieces: b"".join(map(gzip.compress, pieces)) or gzip.compress(b"")),
    "deflate": ("deflate", lambda pieces: zlib.compress(b"".join(pieces))),
    "deflate, bare": ("deflate", _raw_deflate),
    "br": ("br", lambda pieces: brotli.compress(b"".join(pieces))),
    "br, flushed": ("br", _flushed_brotli),
    "zstd": ("zstd", lambda pieces: zstandard.compress(b"".join(pieces))),
    "zstd, flushed": ("zstd", _flushed_zstd),
    "zstd, in frames": ("zstd", lambda pieces: b"".join(map(zstandard.compress, pieces)) or zstandard.compress(b"")),
    "two": ("gzip, br", lambda pieces: brotli.compress(gzip.compress(b"".join(pieces)))),
    "three": ("deflate,identity , zstd,gzip", _three),
    "none": ("identity", b"".join),
}  # fmt: skip
"""What it is → Content-Encoding, and what makes it of pieces."""


def take_off(named: str, reads: list[bytes]) -> list[bytes]:
    """The steps that come out. Raises DecodingError."""
    codings = codings_of(named)
    assert codings is not None
    decoding = Decoding(codings)
    steps: list[bytes] = []
    for data in reads:
        decoding.feed(data, steps.append)
    return steps
