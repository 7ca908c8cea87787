"""Messages that come compressed, unpacked within bounds: a megabyte may not become a gigabyte.

C-core, which would unpack them whatever they become, is told to leave them alone. It does not say which are
compressed, so that is seen from their first bytes: no message of the services here begins as gzip and zlib do.
"""

from __future__ import annotations

import zlib
from typing import Final

from cantata.runtime.errors import InferenceError, StatusCode

# gzip's first byte, which would be a field with a wire type that there is not; and zlib's with the largest window,
# which would be field 15, a number.
_GZIP: Final = 0x1F
_ZLIB: Final = 0x78
FIRST_BYTES: Final = frozenset((_GZIP, _ZLIB))
# Lets zlib tell the two formats apart.
_EITHER_FORMAT: Final = zlib.MAX_WBITS | 32


class OversizedMessageError(InferenceError):
    """A message that unpacks to more than it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            StatusCode.INVALID_ARG,
            f"the compressed message unpacks to more than the {limit} bytes that --grpc-max-decompressed-size allows",
        )


def unpacked(message: bytes, limit: int) -> bytes:
    """The message itself where it is compressed, and what was given where it is not.

    Raises OversizedMessageError as soon as it has more than `limit` bytes.
    """
    if not message or message[0] not in FIRST_BYTES:
        return message
    stream = zlib.decompressobj(_EITHER_FORMAT)
    try:
        content = stream.decompress(message, limit + 1)
    except zlib.error:
        # Then it is a message, if a strange one.
        return message
    if len(content) > limit:
        raise OversizedMessageError(limit)
    return content if stream.eof and not stream.unused_data else message
