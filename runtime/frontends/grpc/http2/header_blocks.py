"""HPACK (RFC 7541): header blocks to headers, and headers to blocks that leave the other side's table alone.

The static table and the Huffman code are the `hpack` package's. Decoding is here because a block must say whether it
changed the table: one that did not means the same the next time, and its caller may remember it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

Header = tuple[bytes, bytes]

_STATIC: Final[tuple[Header, ...]] = tuple(HeaderTable.STATIC_TABLE)
# What an entry counts beside its bytes (RFC 7541, section 4.1).
_ENTRY_OVERHEAD: Final = 32
# The size of the table that a peer may use; HTTP/2's default, and what gRPC's clients expect.
TABLE_SIZE: Final = 4096


class HeaderBlockError(ValueError):
    """Bytes that are no header block: the connection cannot go on, for its table is lost."""


class HeaderListTooLargeError(ValueError):
    """The block is well-formed, and its headers are more than is allowed; the table is intact."""


class HeaderDecoder:
    """One connection's decoder. `changes` counts what has changed its table so far."""

    __slots__ = ("_entries", "_max_list_size", "_max_table_size", "_size", "changes")

    def __init__(self, max_list_size: int) -> None:
        self._max_list_size = max_list_size
        # The newest first, as they are numbered.
        self._entries: deque[Header] = deque()
        self._size = 0
        self._max_table_size = TABLE_SIZE
        self.changes = 0

    def decode(self, block: bytes) -> list[Header]:
        """The headers in their order. Raises HeaderBlockError and HeaderListTooLargeError."""
        try:
            headers, size = self._decode(block)
        except (IndexError, HPACKDecodingError) as error:
            raise HeaderBlockError(f"a header block that cannot be read: {error}") from None
        if size > self._max_list_size:
            raise HeaderListTooLargeError(
                f"the headers have {size} bytes, more than the {self._max_list_size} allowed"
            )
        return headers

    def _decode(self, block: bytes) -> tuple[list[Header], int]:
        headers: list[Header] = []
        total = 0
        position, end = 0, len(block)
        while position < end:
            first = block[position]
            if first & 0x80:
                index, position = _integer(block, position, 7)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:
                size, position = _integer(block, position, 5)
                self._resize(size, is_first=not headers)
                continue
            else:
                is_kept = bool(first & 0x40)
                index, position = _integer(block, position, 6 if is_kept else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                header = (name, value)
                if is_kept:
                    self._add(header)
            total += len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD
            # What is too much is decoded to its end, for the table's sake, but not kept.
            if total <= self._max_list_size:
                headers.append(header)
        return headers, total

    def _entry(self, index: int) -> Header:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        if index == 0:
            raise HeaderBlockError("a header block names the header 0")
        return self._entries[index - len(_STATIC) - 1]

    def _resize(self, size: int, *, is_first: bool) -> None:
        if size > TABLE_SIZE or not is_first:
            raise HeaderBlockError("a header block changes the table's size where it may not")
        self._max_table_size = size
        self.changes += 1
        self._evict()

    def _add(self, header: Header) -> None:
        self.changes += 1
        self._entries.appendleft(header)
        self._size += len(header[0]) + len(header[1]) + _ENTRY_OVERHEAD
        self._evict()

    def _evict(self) -> None:
        while self._size > self._max_table_size:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + _ENTRY_OVERHEAD


def literal(name: bytes, value: bytes) -> bytes:
    """A header as it is, kept in no table."""
    return b"\x00" + encode_integer(len(name), 7) + name + encode_integer(len(value), 7) + value


def kept_literal(name: bytes, value: bytes) -> bytes:
    """A header that the other side adds to its table, as its newest entry: number 62."""
    return b"\x40" + encode_integer(len(name), 7) + name + encode_integer(len(value), 7) + value


def encode_integer(value: int, bits: int) -> bytes:
    """An integer that begins in the low `bits` of a byte whose other bits are 0 (RFC 7541, section 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    encoded = bytearray((most,))
    value -= most
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    """The integer at `position`, and the position after it."""
    most = (1 << bits) - 1
    value = block[position] & most
    position += 1
    if value < most:
        return value, position
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 28:
            raise HeaderBlockError("an integer that is too long")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    is_huffman = block[position] & 0x80
    length, position = _integer(block, position, 7)
    end = position + length
    if end > len(block):
        raise HeaderBlockError("a string ends after its block")
    raw = block[position:end]
    return (bytes(decode_huffman(raw)) if is_huffman else raw), end
