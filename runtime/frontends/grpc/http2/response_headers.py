"""The header blocks of one connection's answers: a byte or two each, once the client knows them.

Owns what the client's table holds of ours. Blocks must be sent in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from cantata.runtime.frontends.grpc.http2 import header_blocks
from cantata.runtime.frontends.grpc.http2.header_blocks import Header, encode_integer, kept_literal, literal

_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
_STATUS_OK: Final = (b"grpc-status", b"0")
# `:status: 200` in the static table (RFC 7541, appendix A).
_HTTP_OK: Final = b"\x88"
_HTTP_STATUS_NAME: Final = b"\x08"
# The newest entry of the client's table is number 62. Ours are two: the content type, then the status.
_NEWEST: Final = 0x80 | 62
_SECOND: Final = 0x80 | 63
# What the two entries need; a client with a smaller table gets everything in full.
_NEEDED_TABLE: Final = 256
# What clients do with more than 8 KB of trailers is refuse the answer.
_MOST_DETAILS: Final = 4096
# What stays as it is in a status message.
_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

# The blocks of an answer once the client's table has both entries.
KNOWN_START: Final = bytes((0x88, _SECOND))
KNOWN_END: Final = bytes((_NEWEST,))


class ResponseHeaders:
    """`is_known` says that `KNOWN_START` and `KNOWN_END` are what `start` and `end` would give."""

    __slots__ = ("_has_content_type", "_has_status", "_keeps", "_table_update", "is_known")

    def __init__(self) -> None:
        self._keeps = True
        self._has_content_type = False
        self._has_status = False
        # What the next block must begin with, so that the client knows that we know its table's size.
        self._table_update = b""
        self.is_known = False

    def limit_table(self, size: int) -> None:
        """The client has said how large its table is."""
        if size >= header_blocks.TABLE_SIZE:
            return
        update = encode_integer(size, 5)
        # Each size that was said counts: the smallest is what the client's table was cut to.
        self._table_update += bytes((update[0] | 0x20,)) + update[1:]
        # Once cut off, our entries are gone for good.
        self._keeps = self._keeps and size >= _NEEDED_TABLE
        self.is_known = False

    def start(self, encoding: str = "") -> bytes:
        """The block before the first message; `encoding` names how messages may be compressed."""
        block = self._take_update() + _HTTP_OK + self._content_type()
        return block + literal(b"grpc-encoding", encoding.encode()) if encoding else block

    def end(self) -> bytes:
        """The block after the last message, when all went well."""
        update = self._take_update()
        if not self._keeps:
            return update + literal(*_STATUS_OK)
        if not self._has_status:
            self._has_status = True
            self.is_known = self._has_content_type
            return update + kept_literal(*_STATUS_OK)
        self.is_known = True
        return update + KNOWN_END

    def failure(self, code: int, details: str, trailers: Sequence[Header] = (), *, starts: bool) -> bytes:
        """The block that ends a call with an error; `starts` where it is the call's only one."""
        block = self.start() if starts else self._take_update()
        block += literal(b"grpc-status", b"%d" % code)
        if details:
            block += literal(b"grpc-message", percent_encoded(details))
        return block + b"".join(literal(*trailer) for trailer in trailers)

    def http_failure(self, status: int) -> bytes:
        """The block that answers a request that is no gRPC call."""
        return self._take_update() + _HTTP_STATUS_NAME + b"\x03%d" % status

    def _content_type(self) -> bytes:
        if not self._keeps:
            return literal(*_CONTENT_TYPE)
        if not self._has_content_type:
            self._has_content_type = True
            return kept_literal(*_CONTENT_TYPE)
        return bytes((_SECOND if self._has_status else _NEWEST,))

    def _take_update(self) -> bytes:
        update, self._table_update = self._table_update, b""
        return update


def percent_encoded(details: str) -> bytes:
    """A status message as trailers carry it: printable ASCII, the rest as %XX; what is too long is cut."""
    encoded = quote(details[:_MOST_DETAILS], safe=_PRINTABLE, errors="replace").encode()
    if len(encoded) <= _MOST_DETAILS:
        return encoded
    # Not within an escape.
    escape = encoded.find(b"%", _MOST_DETAILS - 2, _MOST_DETAILS)
    return encoded[: escape if escape >= 0 else _MOST_DETAILS]
