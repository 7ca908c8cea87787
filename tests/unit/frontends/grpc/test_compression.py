"""Compressed messages: both formats both ways, and bounds on what they unpack to."""

from __future__ import annotations

import pytest

from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.compression import (
    MessageError,
    chosen_encoding,
    compressed,
    decompressed,
    is_known,
)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_is_compressed_is_read_again(encoding: str) -> None:
    packed = compressed(b"abc" * 100, encoding, 6)
    assert len(packed) < 100
    assert decompressed(packed, encoding, 300) == b"abc" * 100


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_unpacks_to_too_much_is_refused(encoding: str) -> None:
    with pytest.raises(MessageError, match="more than the 299 bytes") as refused:
        decompressed(compressed(b"abc" * 100, encoding, 6), encoding, 299)
    assert refused.value.code == codes.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        (b"nothing", "gzip", "cannot be decompressed"),
        (compressed(b"abc" * 100, "gzip", 6)[:-9], "gzip", "ends too early"),
        (b"x", "", "names no grpc-encoding"),
    ],
)
def test_what_is_not_compressed_is_an_error(data: bytes, encoding: str, text: str) -> None:
    with pytest.raises(MessageError, match=text) as refused:
        decompressed(data, encoding, 1000)
    assert refused.value.code == codes.INTERNAL


def test_encodings_are_chosen_among_those_that_the_client_reads() -> None:
    assert chosen_encoding(("identity", "deflate", "gzip")) == "gzip"
    assert chosen_encoding(("identity", "deflate")) == "deflate"
    assert chosen_encoding(("identity", "zstd")) == ""
    assert [is_known(name) for name in ("", "identity", "gzip", "zstd")] == [True, True, True, False]
