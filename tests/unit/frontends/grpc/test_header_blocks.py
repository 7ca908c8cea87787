"""HPACK against the `hpack` package: what it encodes we decode, what we encode it decodes, and refusals."""

from __future__ import annotations

from contextlib import suppress

import hpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cantata.runtime.frontends.grpc.http2.header_blocks import (
    HeaderBlockError,
    HeaderDecoder,
    HeaderListTooLargeError,
    encode_integer,
    kept_literal,
    literal,
)

NAMES = st.sampled_from([b":path", b":method", b"content-type", b"te", b"x-trace", b"user-agent", b"x-bin"])
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=5)


# Generating lists of lists is slow on a busy machine, which says nothing of what is tested.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(HEADERS, st.booleans()), max_size=4), st.sampled_from([0, 64, 200, 4096]))
def test_what_another_encoder_writes_is_read_block_after_block(
    blocks: list[tuple[list[tuple[bytes, bytes]], bool]], table_size: int
) -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder(1 << 16)
    encoder.header_table_size = table_size
    for headers, with_huffman in blocks:
        assert decoder.decode(encoder.encode(headers, huffman=with_huffman)) == headers


@given(st.lists(st.tuples(NAMES, st.binary(max_size=300), st.booleans()), max_size=8))
def test_what_is_written_another_decoder_reads(headers: list[tuple[bytes, bytes, bool]]) -> None:
    block = b"".join((kept_literal if kept else literal)(name, value) for name, value, kept in headers)
    decoded = hpack.Decoder().decode(block, raw=True)
    assert [tuple(header) for header in decoded] == [(name, value) for name, value, _ in headers]


@given(st.integers(0, 1 << 20), st.integers(4, 7))
def test_an_integer_is_read_as_it_was_written(value: int, bits: int) -> None:
    block = bytearray(encode_integer(value, bits))
    # As the length of a name, in a literal that is too short: the error shows that the length was understood.
    if bits == 7 and value > 10:
        with pytest.raises(HeaderBlockError, match="ends after its block"):
            HeaderDecoder(1 << 16).decode(b"\x00" + bytes(block))
    assert hpack.hpack.decode_integer(bytes(block), bits) == (value, len(block))


def test_only_blocks_that_change_the_table_count_as_changes() -> None:
    decoder = HeaderDecoder(1 << 16)
    decoder.decode(literal(b"a", b"b"))
    assert decoder.changes == 0
    decoder.decode(kept_literal(b"a", b"b"))
    assert decoder.changes == 1
    assert decoder.decode(bytes((0x80 | 62,))) == [(b"a", b"b")]
    assert decoder.changes == 1


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        bytes((0x80 | 62,)),
        b"\xff\xff\xff\xff\xff\xff\x7f",
        b"\x00\x05ab",
        b"\x00",
        b"\x3f\xe2\x1f",
        literal(b"a", b"b") + b"\x20",
        b"\x00\x81\x00\x01b",
    ],
    ids=[
        "zero",
        "unknown",
        "long integer",
        "short name",
        "nothing",
        "large table",
        "late size",
        "bad huffman",
    ],
)
def test_what_is_no_header_block_is_refused(block: bytes) -> None:
    with pytest.raises(HeaderBlockError):
        HeaderDecoder(1 << 16).decode(block)


def test_a_list_that_is_too_large_is_refused_and_the_table_stays_right() -> None:
    decoder = HeaderDecoder(200)
    bomb = kept_literal(b"x", b"y" * 100) + bytes((0x80 | 62,)) * 50
    with pytest.raises(HeaderListTooLargeError, match="more than the 200 allowed"):
        decoder.decode(bomb)
    assert decoder.decode(bytes((0x80 | 62,))) == [(b"x", b"y" * 100)]


@given(st.binary(max_size=80))
def test_any_bytes_are_headers_or_an_error(block: bytes) -> None:
    with suppress(HeaderBlockError, HeaderListTooLargeError):
        assert isinstance(HeaderDecoder(1 << 16).decode(block), list)
