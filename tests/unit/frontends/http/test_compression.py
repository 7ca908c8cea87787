"""Content codings: what is unpacked, what is refused, and which one an answer gets."""

from __future__ import annotations

import gzip
import zlib

import pytest

from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.frontends.http.compression import accepted_encoding, compressed, decompressed

TEXT = b'{"inputs":[]}' * 10


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", gzip.compress(TEXT)),
        (b"deflate", zlib.compress(TEXT)),
        (b"deflate", gzip.compress(TEXT)),
        (b"identity", TEXT),
        (b"", TEXT),
    ],
)
def test_known_codings_are_undone(encoding: bytes, body: bytes) -> None:
    assert decompressed(body, encoding, len(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("encoding", "body", "code", "message"),
    [
        (b"br", TEXT, StatusCode.UNSUPPORTED, "Unsupported compression type"),
        (b"gzip, deflate", TEXT, StatusCode.UNSUPPORTED, "Unsupported compression type"),
        (b"gzip", b"", StatusCode.INVALID_ARG, "nothing to be decompressed"),
        (b"gzip", b"abc", StatusCode.INVALID_ARG, "failed to decompress the request body: Error -3"),
        (b"gzip", gzip.compress(TEXT)[:-9], StatusCode.INVALID_ARG, "it ends too early"),
        (b"gzip", gzip.compress(TEXT) * 2, StatusCode.INVALID_ARG, "something follows its end"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(
    encoding: bytes, body: bytes, code: StatusCode, message: str
) -> None:
    with pytest.raises(InferenceError) as caught:
        decompressed(body, encoding, 1 << 20)
    assert caught.value.code is code
    assert message in caught.value.message


def test_a_small_body_cannot_become_larger_than_the_limit() -> None:
    bomb = gzip.compress(bytes(1 << 20))
    assert len(bomb) < 2000
    with pytest.raises(InferenceError, match="exceeds the maximum allowed input size of 1000 bytes"):
        decompressed(bomb, b"gzip", 1000)


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        (None, b""),
        (b"", b""),
        (b"gzip", b"gzip"),
        (b"deflate, gzip", b"deflate"),
        (b"gzip, deflate", b"gzip"),
        (b"deflate;q=0.5, gzip;q=0.8", b"gzip"),
        (b"identity;q=0.5, gzip;q=0.1", b""),
        (b"gzip;q=0.1, identity;q=0.5", b""),
        (b"identity, gzip", b""),
        (b"gzip ; q=1", b"gzip"),
        (b"gzip;q=0", b""),
        (b"gzip;q=abc", b""),
        (b"br, *", b""),
    ],
)
def test_the_heaviest_known_coding_is_answered_with(accept: bytes | None, encoding: bytes) -> None:
    assert accepted_encoding(accept) == encoding


def test_parts_are_compressed_as_one_body() -> None:
    parts: list[bytes | memoryview] = [TEXT, memoryview(TEXT)]
    assert gzip.decompress(compressed(parts, b"gzip")) == TEXT * 2
    assert zlib.decompress(compressed(parts, b"deflate")) == TEXT * 2
