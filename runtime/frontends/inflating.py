"""What clients sent compressed, taken apart within a limit: a small body cannot fill the memory.

The formats and the limit are here, for both front-ends. What a client is told is theirs.
"""

from __future__ import annotations

import zlib
from typing import Final

# zlib's window bits by the names that both protocols use; 16 more makes it gzip.
WINDOW_BITS: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
# 32 more lets zlib tell the two apart by their first bytes.
EITHER_FORMAT: Final = zlib.MAX_WBITS | 32


class InflateError(ValueError):
    """Bytes that are not compressed as they should be; the text says what is wrong."""


class InflatedTooLargeError(ValueError):
    """Bytes that become more than the limit."""


def inflated(data: bytes | memoryview, window_bits: int, limit: int) -> tuple[bytes, bool]:
    """The content, and whether something follows its end. Raises InflateError and InflatedTooLargeError."""
    stream = zlib.decompressobj(window_bits)
    try:
        content = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise InflateError(str(error)) from None
    if len(content) > limit:
        raise InflatedTooLargeError
    if not stream.eof:
        raise InflateError("it ends too early")
    return content, bool(stream.unused_data)
