"""One gRPC call: its messages in, its messages and its status out, within what the client's windows allow.

Owns the life of a call and the order of what it sends. Knows the frames that it is made of, but not the connection
that carries them. Everything here runs on the loop's thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, Protocol

from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.compression import MessageError, decompressed
from cantata.runtime.frontends.grpc.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    frame_header,
)
from cantata.runtime.frontends.grpc.http2.header_blocks import Header
from cantata.runtime.frontends.grpc.http2.response_headers import KNOWN_END, KNOWN_START, ResponseHeaders
from cantata.runtime.frontends.grpc.message_assembly import PREFIX, PREFIX_SIZE, Message, MessageAssembly
from cantata.runtime.frontends.grpc.request_head import Metadata, RequestHead

_log = logging.getLogger("cantata.grpc")

# A whole answer around its message, in the usual case: HEADERS with two bytes, the header of DATA and the message's
# prefix; then HEADERS with one byte. Lengths are in two parts, as in frames.
_BEFORE_MESSAGE: Final = Struct(">5sL2sHBBBLBL")
_AFTER_MESSAGE: Final = Struct(">5sLs")
_START_OF_HEADERS: Final = frame_header(len(KNOWN_START), HEADERS, END_HEADERS, 0)[:5]
_START_OF_TRAILERS: Final = frame_header(len(KNOWN_END), HEADERS, END_HEADERS | END_STREAM, 0)[:5]


class CallReader(Protocol):
    """What is done with what a call brings."""

    @property
    def is_behind(self) -> bool:
        """Whether the client has so much to read that it should send nothing more."""

    def on_size(self, size: int) -> None:
        """A message of so many bytes begins to arrive; not said of one that arrived at once. Last call to refuse it."""

    def on_message(self, message: bytes | memoryview) -> None: ...

    def on_half_close(self) -> None:
        """The client sends no more."""

    def on_writable(self) -> None:
        """What was sent has left, and there is room for more."""

    def on_closed(self, was_cancelled: bool) -> None:
        """The call is over: answered, or nobody waits for it any more and what is sent from now on is dropped."""


class CallConnection(Protocol):
    """The connection of a call, as the call sees it. `send_window` is shared by all its calls."""

    send_window: int
    peer_max_frame_size: int
    is_writable: bool
    max_message_size: int
    max_decompressed_size: int

    @property
    def response_headers(self) -> ResponseHeaders: ...

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes, together with what else is written in this round."""

    def return_window(self, call: Call) -> None:
        """Let the client send more, if its reader is not behind."""

    def wait_for_window(self, call: Call) -> None:
        """Have `call.pump` called when there may be room for what it has to send."""

    def call_ended(self, call: Call) -> None:
        """The call sends and wants nothing more."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Call:
    """`deadline_ns` is on the monotonic clock, 0 where there is none. `reader` is set by whoever takes the call.

    Invariants: once `is_over`, nothing is sent and the reader is told nothing any more; the reader's `on_closed` is
    called once.
    """

    __slots__ = (
        "_assembly",
        "_connection",
        "_encode",
        "_encoding",
        "_ending",
        "_has_started",
        "_out",
        "_was_blocked",
        "deadline_ns",
        "deadline_timer",
        "head",
        "is_half_closed",
        "is_over",
        "reader",
        "send_window",
        "stream_id",
        "unreturned",
    )

    def __init__(
        self, connection: CallConnection, stream_id: int, head: RequestHead, send_window: int
    ) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self.head = head
        self.send_window = send_window
        self.reader: CallReader = NO_READER
        self.deadline_ns = 0
        self.deadline_timer: Timer | None = None
        # How much of its window the client has used and was not given back.
        self.unreturned = 0
        self.is_half_closed = False
        self.is_over = False
        self._assembly: MessageAssembly | None = None
        self._has_started = False
        self._encoding = ""
        self._encode: Callable[[bytes], bytes] | None = None
        # What waits for the client's windows, and what makes the header block that comes after it.
        self._out: deque[bytes | memoryview] = deque()
        self._ending: Callable[[], bytes] | None = None
        self._was_blocked = False

    @property
    def metadata(self) -> Metadata:
        """What the client sent beside its messages."""
        return self.head.metadata

    def caught_up(self) -> None:
        """The reader is not behind any more."""
        if not self.is_over:
            self._connection.return_window(self)

    @property
    def is_sending(self) -> bool:
        """Whether something waits for the client's windows."""
        return bool(self._out)

    # What the connection says.

    def receive(self, data: bytes, start: int, end: int) -> None:
        """Take the call's next bytes, `data[start:end]`."""
        if self.is_over:
            return
        if self._assembly is None:
            if end - start >= PREFIX_SIZE:
                flag, size = PREFIX.unpack_from(data, start)
                # A message in a frame of its own, as nearly all are.
                if start + PREFIX_SIZE + size == end:
                    self._deliver(Message(flag != 0, data[start + PREFIX_SIZE : end]))
                    return
            self._assembly = MessageAssembly(self._connection.max_message_size, self._wants)
        assembly = self._assembly
        for message in assembly.feed(data[start:end]):
            self._deliver(message)
            if self._assembly is not assembly:
                # The message has ended the call.
                return
        if assembly.is_empty:
            self._assembly = None

    def _wants(self, size: int) -> bool:
        self.reader.on_size(size)
        return not self.is_over

    def room(self) -> memoryview | None:
        """Where the next bytes of a message that has begun are to be put; None where they must be received."""
        return None if self._assembly is None else self._assembly.room()

    def filled(self, count: int) -> None:
        """So many bytes have been put there."""
        if self._assembly is None:
            return
        message = self._assembly.filled(count)
        if message is not None:
            self._assembly = None
            self._deliver(message)

    def half_close(self) -> None:
        """The client sends no more."""
        self.is_half_closed = True
        if self.is_over:
            return
        if self._assembly is not None:
            self.abort(codes.INTERNAL, "the call ended inside a message")
        else:
            self.reader.on_half_close()

    def cancelled(self) -> None:
        """Nobody waits for the call any more."""
        if not self.is_over:
            self._end(was_cancelled=True)

    def expired(self) -> None:
        """The deadline has passed."""
        self.abort(codes.DEADLINE_EXCEEDED, "Deadline Exceeded")

    # What the reader says.

    def compress_with(self, encoding: str, encode: Callable[[bytes], bytes]) -> None:
        """Have messages compressed; before the first is sent."""
        self._encoding = encoding
        self._encode = encode

    def answer(self, message: bytes) -> None:
        """Send the call's only message, and end it well."""
        if self.is_over:
            return
        size = len(message) + PREFIX_SIZE
        connection = self._connection
        if (
            size <= self.send_window
            and size <= connection.send_window
            and size <= connection.peer_max_frame_size
            and connection.is_writable
            and connection.response_headers.is_known
            and self._encode is None
        ):
            connection.send_window -= size
            stream_id = self.stream_id
            before = _BEFORE_MESSAGE.pack(
                _START_OF_HEADERS,
                stream_id,
                KNOWN_START,
                size >> 8,
                size & 0xFF,
                DATA,
                0,
                stream_id,
                0,
                size - PREFIX_SIZE,
            )
            after = _AFTER_MESSAGE.pack(_START_OF_TRAILERS, stream_id, KNOWN_END)
            connection.write(before + message + after)
            self._end(was_cancelled=False)
        else:
            self.send((message,))
            self.finish()

    def send(self, messages: Sequence[bytes]) -> None:
        """Send messages, in their order, as the client's windows allow."""
        if self.is_over:
            return
        for message in messages:
            flag = 0
            if self._encode is not None:
                message, flag = self._encode(message), 1
            self._out.append(PREFIX.pack(flag, len(message)))
            if message:
                self._out.append(message)
        self.pump()

    def finish(self) -> None:
        """End the call well when all has been sent."""
        if not self.is_over:
            self._ending = self._good_end
            self.pump()

    def fail(self, code: int, details: str, trailers: Sequence[Header] = ()) -> None:
        """End the call with a status, and other metadata, when all has been sent."""
        if not self.is_over:
            self._ending = lambda: self._bad_end(code, details, trailers)
            self.pump()

    def abort(self, code: int, details: str) -> None:
        """End the call with a status, whatever else was to be sent and whoever works on it."""
        if not self.is_over:
            self._write_end(self._bad_end(code, details))
            self._end(was_cancelled=True)

    def refuse(self, http_status: int) -> None:
        """Answer what is no gRPC call."""
        self._write_end(self._connection.response_headers.http_failure(http_status))
        self._end(was_cancelled=False)

    def pump(self) -> None:
        """Send what the windows allow."""
        if self.is_over:
            return
        connection = self._connection
        out = self._out
        if out and not self._has_started:
            self._write_start()
        while out:
            room = min(self.send_window, connection.send_window, connection.peer_max_frame_size)
            if room <= 0 or not connection.is_writable:
                self._was_blocked = True
                connection.wait_for_window(self)
                return
            parts, size = _taken(out, room)
            self.send_window -= size
            connection.send_window -= size
            connection.write(frame_header(size, DATA, 0, self.stream_id))
            for part in parts:
                connection.write(part)
        if self._ending is not None:
            self._write_end(self._ending())
            self._end(was_cancelled=False)
        elif self._was_blocked:
            self._was_blocked = False
            self.reader.on_writable()

    def _deliver(self, message: Message) -> None:
        data = message.data
        most = self._connection.max_message_size
        try:
            if message.is_too_large or len(data) > most:
                raise MessageError(
                    codes.RESOURCE_EXHAUSTED,
                    f"the message has more than the {most} bytes that --grpc-max-message-size allows",
                )
            if message.is_compressed:
                data = decompressed(data, self.head.encoding, self._connection.max_decompressed_size)
            self.reader.on_message(data)
        except MessageError as error:
            self.abort(error.code, str(error))
        except Exception as error:
            _log.exception("gRPC: a message of '%s' could not be taken", self.head.path.decode("latin-1"))
            self.abort(codes.INTERNAL, f"{type(error).__name__}: {error}")

    def _write_start(self) -> None:
        self._has_started = True
        block = self._connection.response_headers.start(self._encoding)
        self._connection.write(frame_header(len(block), HEADERS, END_HEADERS, self.stream_id) + block)

    def _write_end(self, block: bytes) -> None:
        flags = END_HEADERS | END_STREAM
        self._connection.write(frame_header(len(block), HEADERS, flags, self.stream_id) + block)

    def _good_end(self) -> bytes:
        if not self._has_started:
            self._write_start()
        return self._connection.response_headers.end()

    def _bad_end(self, code: int, details: str, trailers: Sequence[Header] = ()) -> bytes:
        return self._connection.response_headers.failure(
            code, details, trailers, starts=not self._has_started
        )

    def _end(self, *, was_cancelled: bool) -> None:
        self.is_over = True
        self._out.clear()
        self._assembly = None
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
            self.deadline_timer = None
        self._connection.call_ended(self)
        reader, self.reader = self.reader, NO_READER
        reader.on_closed(was_cancelled)


class _NoReader:
    """Reads a call that nobody has taken yet, or any more."""

    is_behind = False

    def on_size(self, size: int) -> None: ...

    def on_message(self, message: bytes | memoryview) -> None: ...

    def on_half_close(self) -> None: ...

    def on_writable(self) -> None: ...

    def on_closed(self, was_cancelled: bool) -> None: ...


NO_READER: Final = _NoReader()


def _taken(out: deque[bytes | memoryview], room: int) -> tuple[list[bytes | memoryview], int]:
    """The first bytes of `out`, at most `room`, which they leave."""
    parts: list[bytes | memoryview] = []
    size = 0
    while out and size < room:
        part = out.popleft()
        if len(part) > room - size:
            view = memoryview(part)
            out.appendleft(view[room - size :])
            part = view[: room - size]
        parts.append(part)
        size += len(part)
    return parts, size
