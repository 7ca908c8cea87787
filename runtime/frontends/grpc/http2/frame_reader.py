"""From what a socket has to frames: whole ones to their handler, long DATA straight into the memory of its message.

Owns the bytes between two reads. Knows how frames begin and end, not what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from cantata.runtime.frontends.grpc.http2.frames import (
    CLIENT_PREFACE,
    DATA,
    END_STREAM,
    FRAME_HEADER_SIZE,
    LARGEST_STREAM_ID,
    PADDED,
    ConnectionFailure,
    ErrorCode,
    unpack_frame_header,
)

# The longest frame of DATA that clients may send, and of any other kind.
MAX_FRAME_SIZE: Final = 1 << 20
MAX_BLOCK_SIZE: Final = 64 << 10
# What is missing of a frame is read into its own memory if it is as much as this, or if the frame is too long to keep
# its beginning in the buffer, which must have room for more.
_DIRECT_SIZE: Final = 16 << 10
_LONGEST_REST: Final = 64 << 10


class DataReader(Protocol):
    """Whose DATA it is: a call."""

    def receive(self, data: bytes, start: int, end: int) -> None:
        """Take the next bytes, `data[start:end]`."""

    def room(self) -> memoryview | None:
        """Where the next bytes are to be put; None where they must be received."""

    def filled(self, count: int) -> None:
        """So many bytes have been put there."""

    def half_close(self) -> None:
        """There is no more."""


class FrameHandler(Protocol):
    """What is done with frames. Any of it may raise ConnectionFailure."""

    is_closing: bool

    def on_data(self, stream_id: int, flags: int, data: bytes, start: int, stop: int) -> None:
        """A whole frame of DATA, whose payload is `data[start:stop]`."""

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """A whole frame of another kind."""

    def reader_of_long_data(self, stream_id: int, length: int) -> DataReader | None:
        """Who takes a frame of DATA of that length while it arrives; None has it handled as a whole."""


class FrameReader:
    """The bytes of one connection. `read_buffer` may be used by others between `updated` and the next `buffer`."""

    __slots__ = ("_handler", "_has_preface", "_on_filled", "_read_buffer", "_rest", "_target")

    def __init__(self, handler: FrameHandler, read_buffer: memoryview) -> None:
        self._handler = handler
        self._read_buffer = read_buffer
        self._has_preface = False
        # The beginning of a frame that has not arrived in full.
        self._rest = b""
        # Where the payload of a long frame is read to, and what is done when it is there.
        self._target: memoryview | None = None
        self._on_filled: Callable[[], None] = self.stop

    def buffer(self) -> memoryview:
        """Where the socket is to be read to."""
        if self._target is not None:
            return self._target
        rest = len(self._rest)
        self._read_buffer[:rest] = self._rest
        return self._read_buffer[rest:]

    def updated(self, count: int) -> None:
        """So many bytes are there: handle the frames that they complete. Raises ConnectionFailure."""
        if self._target is not None:
            self._target = self._target[count:]
            if not self._target:
                self._target = None
                self._on_filled()
            return
        data = bytes(self._read_buffer[: len(self._rest) + count])
        taken = self._take_frames(data)
        self._rest = data[taken:] if taken < len(data) else b""

    def stop(self) -> None:
        """Nothing more will be read."""
        self._target = None
        self._rest = b""

    def _take_frames(self, data: bytes) -> int:
        """Handle the whole frames in `data`; how much of it they are."""
        handler = self._handler
        position, end = 0, len(data)
        if not self._has_preface:
            position = self._take_preface(data)
            if not self._has_preface:
                return position
        while end - position >= FRAME_HEADER_SIZE:
            high, low, kind, flags, stream_id = unpack_frame_header(data, position)
            length = high << 8 | low
            if length > MAX_BLOCK_SIZE and (kind != DATA or length > MAX_FRAME_SIZE):
                raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a frame is too long")
            # The first bit is reserved, and says nothing.
            stream_id &= LARGEST_STREAM_ID
            start = position + FRAME_HEADER_SIZE
            stop = start + length
            if stop > end:
                return self._await_rest(data, position, kind, flags, stream_id, length)
            if kind == DATA:
                handler.on_data(stream_id, flags, data, start, stop)
            else:
                handler.on_frame(kind, flags, stream_id, data[start:stop])
            if handler.is_closing:
                return end
            position = stop
        return position

    def _take_preface(self, data: bytes) -> int:
        if data[: len(CLIENT_PREFACE)] != CLIENT_PREFACE[: len(data)]:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "the client speaks no HTTP/2")
        if len(data) < len(CLIENT_PREFACE):
            return 0
        self._has_preface = True
        return len(CLIENT_PREFACE)

    def _await_rest(
        self, data: bytes, position: int, kind: int, flags: int, stream_id: int, length: int
    ) -> int:
        """A frame is there in part; how much of `data` is done with."""
        start = position + FRAME_HEADER_SIZE
        missing = start + length - len(data)
        if missing < _DIRECT_SIZE and length <= _LONGEST_REST:
            return position
        reader = None
        if kind == DATA and not flags & PADDED:
            reader = self._handler.reader_of_long_data(stream_id, length)
        if reader is None:
            self._fill_frame(data[position:], missing, kind, flags, stream_id)
        else:
            reader.receive(data, start, len(data))
            self._fill_message(reader, missing, flags)
        return len(data)

    def _fill_message(self, reader: DataReader, missing: int, flags: int) -> None:
        """Have the next `missing` bytes, the rest of a frame, read into the message that `reader` is receiving."""
        if not missing:
            if flags & END_STREAM:
                reader.half_close()
            return
        room = reader.room()
        if room:
            self._target = room[:missing]
            count = len(self._target)

            def filled() -> None:
                reader.filled(count)
                self._fill_message(reader, missing - count, flags)

            self._on_filled = filled
            return
        # A message ends where this part of the frame does, or nobody wants the rest.
        part = memoryview(bytearray(min(missing, _DIRECT_SIZE)))
        self._target = part

        def received() -> None:
            reader.receive(bytes(part), 0, len(part))
            self._fill_message(reader, missing - len(part), flags)

        self._on_filled = received

    def _fill_frame(self, begun: bytes, missing: int, kind: int, flags: int, stream_id: int) -> None:
        """Have the rest of a long frame read before it is handled."""
        memory = bytearray(len(begun) + missing)
        memory[: len(begun)] = begun
        self._target = memoryview(memory)[len(begun) :]

        def filled() -> None:
            payload = bytes(memoryview(memory)[FRAME_HEADER_SIZE:])
            if kind == DATA:
                self._handler.on_data(stream_id, flags, payload, 0, len(payload))
            else:
                self._handler.on_frame(kind, flags, stream_id, payload)

        self._on_filled = filled
