"""What the headers of a gRPC call say: the method, the metadata, the deadline and the encodings.

The names are those of "gRPC over HTTP/2". A head is never changed, and so may serve every call that sends the same
headers.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

# What a call carries beside its messages; the values of names that end in `-bin` are bytes.
Metadata = tuple[tuple[str, str | bytes], ...]

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_NS_OF_UNIT: Final = {
    b"H": 3_600_000_000_000,
    b"M": 60_000_000_000,
    b"S": 1_000_000_000,
    b"m": 1_000_000,
    b"u": 1_000,
    b"n": 1,
}
# Headers that are the protocol's own, no metadata.
_PROTOCOL_HEADERS: Final = frozenset(
    (b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"content-length")
)
_UPPER_CASE: Final = re.compile(rb"[A-Z]")


class RequestHead(NamedTuple):
    """`timeout_ns` is None where the client set no deadline. Not a gRPC call where `http_status` is not 200."""

    path: bytes
    metadata: Metadata
    timeout_ns: int | None
    # How messages with the compressed flag are compressed; empty where none may be.
    encoding: str
    accepted_encodings: tuple[str, ...]
    http_status: int


class MalformedHeadError(ValueError):
    """Headers that no HTTP/2 request has: its stream is reset."""


def request_head(headers: Sequence[tuple[bytes, bytes]]) -> RequestHead:
    """The head that `headers` make. Raises MalformedHeadError."""
    path = method = content_type = b""
    timeout_ns: int | None = None
    encoding = ""
    accepted: tuple[str, ...] = ()
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name.startswith(b":"):
            if name == b":path":
                path = value
            elif name == b":method":
                method = value
        elif name not in _PROTOCOL_HEADERS:
            _add_metadata(name, value, metadata)
        elif name == b"content-type":
            content_type = value
        elif name == b"grpc-timeout":
            timeout_ns = _timeout_ns(value)
        elif name == b"grpc-encoding":
            encoding = value.decode("latin-1")
        elif name == b"grpc-accept-encoding":
            accepted = tuple(part.strip() for part in value.decode("latin-1").split(","))
    if not path or not method:
        raise MalformedHeadError("a request without :path or :method")
    if method != b"POST":
        status = 405
    elif re.match(rb"application/grpc(?:[+;]|$)", content_type) is None:
        status = 415
    else:
        status = 200
    return RequestHead(path, tuple(metadata), timeout_ns, encoding, accepted, status)


def _add_metadata(name: bytes, value: bytes, metadata: list[tuple[str, str | bytes]]) -> None:
    if _UPPER_CASE.search(name):
        raise MalformedHeadError(f"the header name {name!r} is not in lower case")
    key = name.decode("latin-1")
    if not key.endswith("-bin"):
        metadata.append((key, value.decode("latin-1")))
        return
    for part in value.split(b","):
        try:
            metadata.append((key, base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)))
        except binascii.Error:
            raise MalformedHeadError(f"the metadata '{key}' is not base64") from None


def _timeout_ns(value: bytes) -> int:
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise MalformedHeadError(f"grpc-timeout is {value!r}, which is no timeout")
    return int(match[1]) * _NS_OF_UNIT[match[2]]
