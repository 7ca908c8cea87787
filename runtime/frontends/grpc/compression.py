"""Compression of single gRPC messages: gzip and deflate, both ways, never into more than a message may have."""

from __future__ import annotations

import zlib
from typing import Final

from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.inflating import (
    WINDOW_BITS,
    InflatedTooLargeError,
    InflateError,
    inflated,
)

ENCODINGS: Final = "identity, deflate, gzip"


class MessageError(ValueError):
    """A message that cannot be read; `code` is the gRPC status that says so."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def is_known(encoding: str) -> bool:
    """Whether messages in that encoding can be read."""
    return encoding in ("", "identity") or encoding in WINDOW_BITS


def decompressed(data: bytes | memoryview, encoding: str, max_size: int) -> bytes:
    """The message. Raises MessageError where there is none, or one that is too large."""
    if encoding not in WINDOW_BITS:
        raise MessageError(codes.INTERNAL, "a message is compressed, but the call names no grpc-encoding")
    try:
        message, _ = inflated(data, WINDOW_BITS[encoding], max_size)
    except InflateError as error:
        raise MessageError(codes.INTERNAL, f"a message cannot be decompressed: {error}") from None
    except InflatedTooLargeError:
        raise MessageError(
            codes.RESOURCE_EXHAUSTED,
            f"the compressed message unpacks to more than the {max_size} bytes that "
            "--grpc-max-decompressed-size allows",
        ) from None
    return message


def compressed(data: bytes, encoding: str, level: int) -> bytes:
    """The message in `encoding`, at zlib's `level`."""
    compressor = zlib.compressobj(level, wbits=WINDOW_BITS[encoding])
    return compressor.compress(data) + compressor.flush()


def chosen_encoding(accepted: tuple[str, ...]) -> str:
    """The encoding for a client's answers; empty where it can read none of ours."""
    return next((encoding for encoding in WINDOW_BITS if encoding in accepted), "")
