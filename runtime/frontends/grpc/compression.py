"""Compression of single gRPC messages: gzip and deflate, both ways, never into more than a message may have."""

from __future__ import annotations

import zlib
from typing import Final

from cantata.runtime.frontends.grpc import codes

# zlib's window sizes that make its formats: gzip's, and the one that HTTP calls deflate.
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
ENCODINGS: Final = "identity, deflate, gzip"


class MessageError(ValueError):
    """A message that cannot be read; `code` is the gRPC status that says so."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def is_known(encoding: str) -> bool:
    """Whether messages in that encoding can be read."""
    return encoding in ("", "identity") or encoding in _WINDOW_BITS


def decompressed(data: bytes | memoryview, encoding: str, max_size: int) -> bytes:
    """The message. Raises MessageError where there is none, or one that is too large."""
    if encoding not in _WINDOW_BITS:
        raise MessageError(codes.INTERNAL, "a message is compressed, but the call names no grpc-encoding")
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        message = decompressor.decompress(data, max_size + 1)
    except zlib.error as error:
        raise MessageError(codes.INTERNAL, f"a message cannot be decompressed: {error}") from None
    if len(message) > max_size:
        raise MessageError(
            codes.RESOURCE_EXHAUSTED,
            f"the compressed message unpacks to more than the {max_size} bytes that "
            "--grpc-max-decompressed-size allows",
        )
    if not decompressor.eof:
        raise MessageError(codes.INTERNAL, "a message cannot be decompressed: it ends too early")
    return message


def compressed(data: bytes, encoding: str, level: int) -> bytes:
    """The message in `encoding`, at zlib's `level`."""
    compressor = zlib.compressobj(level, wbits=_WINDOW_BITS[encoding])
    return compressor.compress(data) + compressor.flush()


def chosen_encoding(accepted: tuple[str, ...]) -> str:
    """The encoding for a client's answers; empty where it can read none of ours."""
    return next((encoding for encoding in _WINDOW_BITS if encoding in accepted), "")
