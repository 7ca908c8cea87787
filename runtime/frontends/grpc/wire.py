"""Protobuf's wire format as far as inference messages need it: varints, and fields with a length.

Knows field numbers of no message. Everything else about protobuf is left to protobuf itself.
"""

from __future__ import annotations

from typing import Final

# The tag byte of a field below number 16 that has a length: strings, bytes, messages.
LENGTH_DELIMITED: Final = 2


class MalformedMessageError(ValueError):
    """Bytes that are not a message of the type they are said to be."""


def read_varint(message: bytes | memoryview, position: int) -> tuple[int, int]:
    """The varint at `position`, and the position after it. Raises MalformedMessageError."""
    value = shift = 0
    try:
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
            if shift > 63:
                raise MalformedMessageError("a varint of more than ten bytes")
    except IndexError:
        raise MalformedMessageError("the message ends inside a varint") from None


def varint(value: int) -> bytes:
    """A non-negative integer as a varint."""
    if value < 0x80:
        return _SMALL[value]
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(number: int, value: bytes) -> bytes:
    """A field with a length; `number` is below 16."""
    return bytes((number << 3 | LENGTH_DELIMITED,)) + varint(len(value)) + value


_SMALL: Final = tuple(bytes((value,)) for value in range(0x80))
