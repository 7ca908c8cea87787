"""Heads of calls: read once and remembered, but never beyond the table that they were read with."""

from __future__ import annotations

import hpack
import pytest

from cantata.runtime.frontends.grpc.call_heads import CallHeads
from cantata.runtime.frontends.grpc.http2.frames import END_HEADERS, PADDED, ConnectionFailure, ErrorCode
from cantata.runtime.frontends.grpc.http2.header_blocks import HeaderListTooLargeError, kept_literal, literal

PREFIX = (
    literal(b":method", b"POST")
    + literal(b":path", b"/a.B/C")
    + literal(b"content-type", b"application/grpc")
)
NEWEST = bytes((0x80 | 62,))


def test_a_block_that_changes_nothing_is_read_once() -> None:
    heads = CallHeads(1 << 14)
    assert heads.head(PREFIX) is heads.head(bytes(bytearray(PREFIX)))


@pytest.mark.parametrize("changed_by", ["head", "trailers", "metadata"])
def test_the_same_bytes_mean_something_else_when_the_table_has_changed(changed_by: str) -> None:
    heads = CallHeads(200)
    heads.head(PREFIX + kept_literal(b"x", b"1"))
    assert heads.head(PREFIX + NEWEST).metadata == (("x", "1"),)
    match changed_by:
        case "head":
            heads.head(PREFIX + kept_literal(b"x", b"2"))
        case "trailers":
            heads.skip(kept_literal(b"x", b"2"))
        case "metadata":
            with pytest.raises(HeaderListTooLargeError):
                heads.head(PREFIX + literal(b"y", b"z" * 300) + kept_literal(b"x", b"2"))
    assert heads.head(PREFIX + NEWEST).metadata == (("x", "2"),)


def test_many_different_heads_are_not_all_remembered() -> None:
    heads = CallHeads(1 << 14)
    first = heads.head(PREFIX)
    for number in range(100):
        heads.head(PREFIX + literal(b"x", b"%d" % number))
    again = heads.head(PREFIX)
    assert again == first
    assert again is not first


def test_a_clients_own_encoder_is_followed() -> None:
    heads, encoder = CallHeads(1 << 14), hpack.Encoder()
    headers = [(b":method", b"POST"), (b":path", b"/a.B/C"), (b"content-type", b"application/grpc")]
    blocks = [encoder.encode([*headers, (b"x", value)]) for value in (b"1", b"1", b"2", b"1", b"2", b"2")]
    found = [heads.head(block).metadata for block in blocks]
    assert found == [(("x", value),) for value in ("1", "1", "2", "1", "2", "2")]


def test_a_block_in_parts_is_whole_at_its_end() -> None:
    heads = CallHeads(1 << 14)
    assert heads.begin(1, PADDED | 1, b"\x02abc\0\0") is None
    assert heads.has_open_block
    assert heads.go_on(1, 0, b"de") is None
    assert heads.go_on(1, END_HEADERS, b"f") == (1, PADDED | 1, b"abcdef")
    assert not heads.has_open_block


def test_a_block_that_cannot_be_read_ends_the_connection() -> None:
    with pytest.raises(ConnectionFailure) as failure:
        CallHeads(1 << 14).head(b"\x80")
    assert failure.value.code is ErrorCode.COMPRESSION_ERROR
    with pytest.raises(ConnectionFailure):
        CallHeads(1 << 14).skip(b"\x80")
