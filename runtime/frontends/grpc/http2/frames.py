"""HTTP/2's frames: their numbers, and their bytes (RFC 9113, sections 4 and 6).

Knows no connection: what a frame does is said there.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final

# Types of frames. Plain numbers: one is compared for every frame that arrives.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# Flags; ACK is END_STREAM's bit, on frames of connections.
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

CLIENT_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_SIZE: Final = 9
# Settings and windows that hold until the other side says otherwise.
DEFAULT_WINDOW: Final = 65535
DEFAULT_MAX_FRAME_SIZE: Final = 16384
LARGEST_MAX_FRAME_SIZE: Final = 2**24 - 1
LARGEST_WINDOW: Final = 2**31 - 1
LARGEST_STREAM_ID: Final = 2**31 - 1

# The length's upper and lower parts, the type, the flags, the stream.
_FRAME_HEADER: Final = Struct(">HBBBL")
_SETTING: Final = Struct(">HL")
_NUMBER: Final = Struct(">L")
_GOAWAY: Final = Struct(">LL")

unpack_frame_header: Final = _FRAME_HEADER.unpack_from


class Setting(enum.IntEnum):
    """What peers tell each other when a connection begins."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ConnectionFailure(Exception):
    """The other side broke the protocol: the connection must end with `code`."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a frame's payload."""
    return _FRAME_HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def settings_frame(settings: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(_SETTING.pack(*setting) for setting in settings.items())
    return frame_header(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = frame_header(0, SETTINGS, ACK, 0)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The settings of a SETTINGS frame, unknown ones too. Raises ConnectionFailure."""
    if len(payload) % _SETTING.size:
        raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a size that is none")
    return list(_SETTING.iter_unpack(payload))


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame_header(4, WINDOW_UPDATE, 0, stream_id) + _NUMBER.pack(increment)


def reset_frame(stream_id: int, code: ErrorCode) -> bytes:
    """An RST_STREAM frame."""
    return frame_header(4, RST_STREAM, 0, stream_id) + _NUMBER.pack(code)


def ping_frame(payload: bytes, flags: int = 0) -> bytes:
    """A PING frame, or with ACK the answer to one; the payload has eight bytes."""
    return frame_header(8, PING, flags, 0) + payload


def goaway_frame(last_stream_id: int, code: ErrorCode, text: str) -> bytes:
    """A GOAWAY frame: streams above `last_stream_id` were not looked at."""
    payload = _GOAWAY.pack(last_stream_id, code) + text.encode()
    return frame_header(len(payload), GOAWAY, 0, 0) + payload


def parse_number(payload: bytes) -> int:
    """The payload of RST_STREAM or WINDOW_UPDATE. Raises ConnectionFailure."""
    if len(payload) != _NUMBER.size:
        raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a frame of four bytes has another size")
    number: int = _NUMBER.unpack(payload)[0]
    return number
