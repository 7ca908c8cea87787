"""Content codings of request and response bodies: gzip and deflate (reference, section 3.3).

Knows bytes and header values only. Decompression stops at its limit: a small body cannot fill the memory.
"""

from __future__ import annotations

import zlib
from typing import Final

from cantata.runtime.errors import InferenceError, invalid_argument, unsupported

# zlib's window bits: 32 more lets it tell gzip and zlib apart by their first bytes; 16 more makes it write gzip.
_EITHER_FORMAT: Final = zlib.MAX_WBITS | 32
_WINDOW_BITS: Final[dict[bytes, int]] = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}
_CODINGS: Final = (b"identity", b"deflate", b"gzip")


def decompressed(body: bytes | memoryview, encoding: bytes, limit: int) -> bytes | memoryview:
    """`body` without its `Content-Encoding`; raises InferenceError when it cannot be read or passes `limit` bytes."""
    if encoding in (b"", b"identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise unsupported("Unsupported compression type")
    if not body:
        raise invalid_argument("nothing to be decompressed")
    stream = zlib.decompressobj(_EITHER_FORMAT)
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid_argument(f"failed to decompress the request body: {error}") from None
    if len(content) > limit:
        raise size_error(limit)
    if not stream.eof:
        raise invalid_argument("failed to decompress the request body: it ends too early")
    if stream.unused_data:
        raise invalid_argument("failed to decompress the request body: something follows its end")
    return content


def size_error(limit: int) -> InferenceError:
    """What is said of a body that decompresses to more than `limit` bytes."""
    return invalid_argument(
        f"decompressed request size exceeds the maximum allowed input size of {limit} bytes. "
        "Use --http-max-input-size to increase the limit."
    )


def accepted_encoding(accept: bytes | None) -> bytes:
    """The coding to answer with: the first of the heaviest that both sides know, b"" for none."""
    if not accept:
        return b""
    best, best_weight = b"identity", 0.0
    for item in accept.split(b","):
        coding, _, parameters = item.partition(b";")
        coding = coding.strip().lower()
        weight = _weight(parameters)
        if coding in _CODINGS and weight > best_weight:
            best, best_weight = coding, weight
    return b"" if best == b"identity" else best


def _weight(parameters: bytes) -> float:
    name, _, value = parameters.partition(b"=")
    if name.strip().lower() != b"q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def compressed(parts: list[bytes | memoryview], encoding: bytes) -> bytes:
    """`parts`, one after the other, in `encoding` (gzip or deflate)."""
    stream = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
    return b"".join([*map(stream.compress, parts), stream.flush()])
