"""Content codings of request and response bodies: gzip and deflate (reference, section 3.3).

Knows bytes and header values only.
"""

from __future__ import annotations

import zlib
from typing import Final

from cantata.runtime.errors import InferenceError, invalid_argument, unsupported
from cantata.runtime.frontends.inflating import (
    EITHER_FORMAT,
    WINDOW_BITS,
    InflatedTooLargeError,
    InflateError,
    inflated,
)

_WINDOW_BITS: Final = {name.encode(): bits for name, bits in WINDOW_BITS.items()}
_CODINGS: Final = (b"identity", b"deflate", b"gzip")


def decompressed(body: bytes | memoryview, encoding: bytes, limit: int) -> bytes | memoryview:
    """`body` without its `Content-Encoding`; raises InferenceError when it cannot be read or passes `limit` bytes."""
    if encoding in (b"", b"identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise unsupported("Unsupported compression type")
    if not body:
        raise invalid_argument("nothing to be decompressed")
    try:
        content, has_more = inflated(body, EITHER_FORMAT, limit)
    except InflateError as error:
        raise invalid_argument(f"failed to decompress the request body: {error}") from None
    except InflatedTooLargeError:
        raise size_error(limit) from None
    if has_more:
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
