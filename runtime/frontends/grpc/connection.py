"""One client's HTTP/2 connection: frames in, calls out, and their answers back (RFC 9113).

Owns the connection's state: its calls, windows, settings, and what it still has to write. What a call means is said
in `call`; how calls are routed, by the loop. Everything here runs on the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol, cast

from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.call import Call
from cantata.runtime.frontends.grpc.call_heads import Block, CallHeads
from cantata.runtime.frontends.grpc.http2 import frames
from cantata.runtime.frontends.grpc.http2.frame_reader import MAX_FRAME_SIZE, FrameReader
from cantata.runtime.frontends.grpc.http2.frames import (
    ACK,
    CONTINUATION,
    DEFAULT_MAX_FRAME_SIZE,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    LARGEST_WINDOW,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    ConnectionFailure,
    ErrorCode,
    Setting,
)
from cantata.runtime.frontends.grpc.http2.header_blocks import HeaderListTooLargeError
from cantata.runtime.frontends.grpc.http2.liveness import Liveness
from cantata.runtime.frontends.grpc.http2.response_headers import ResponseHeaders
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.request_head import MalformedHeadError

_log = logging.getLogger("cantata.grpc")

# What clients are allowed. The windows are large: a message is kept whole before it is read anyway.
MAX_CALLS: Final = 4096
CALL_WINDOW: Final = 16 << 20
CONNECTION_WINDOW: Final = 64 << 20
# A client that makes the server say so much, beside messages, and reads none of it is cut off.
MAX_UNREAD_BYTES: Final = 8 << 20

# A model that answers many times is not waited for: its client can read meanwhile.
_MOST_UNSENT: Final = 96
# Writes up to this size are joined; larger ones are handed to the socket piece by piece.
_JOINED_BYTES: Final = 64 << 10
_SETTINGS: Final = frames.settings_frame(
    {
        Setting.MAX_CONCURRENT_STREAMS: MAX_CALLS,
        Setting.INITIAL_WINDOW_SIZE: CALL_WINDOW,
        Setting.MAX_FRAME_SIZE: MAX_FRAME_SIZE,
    }
) + frames.window_update_frame(0, CONNECTION_WINDOW - DEFAULT_WINDOW)


class ConnectionOwner(Protocol):
    """The loop, as a connection sees it."""

    # What sockets are read into: used by one connection at a time, between two calls of the event loop.
    read_buffer: memoryview

    def begin_read(self) -> None:
        """A connection takes what was read from here on."""

    def end_read(self) -> None:
        """It has taken it."""

    def opened(self, connection: Connection) -> None: ...

    def closed(self, connection: Connection) -> None: ...

    def start_call(self, call: Call) -> None:
        """A call has begun: find who takes it."""

    def has_unsent(self, connection: Connection) -> None:
        """Have `connection.flush` called before the loop waits again."""


class Connection(asyncio.BufferedProtocol):
    """The protocol object of one accepted socket."""

    transport: asyncio.Transport

    def __init__(self, owner: ConnectionOwner, options: GrpcOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._liveness = Liveness(self, options, loop)
        self.max_message_size = options.max_message_size
        self.max_decompressed_size = options.max_decompressed_size
        self.calls: dict[int, Call] = {}
        self.response_headers = ResponseHeaders()
        self.is_writable = True
        self.send_window = DEFAULT_WINDOW
        self.peer_max_frame_size = DEFAULT_MAX_FRAME_SIZE
        self._peer_call_window = DEFAULT_WINDOW
        self._heads = CallHeads(options.max_metadata_size)
        self._reader = FrameReader(self, owner.read_buffer)
        self._has_settings = False
        self.last_call = 0
        # How much of the connection's window the client has used and was not given back.
        self._unreturned = 0
        self._waiting: dict[int, Call] = {}
        self._unsent: list[bytes | memoryview] = []
        self.is_closing = False
        # Once set, no more calls are taken.
        self._is_draining = False
        # The last call that was taken, once no more are.
        self._farewell = 0
        # What was said since the client stopped to read; and all that was handed to the transport.
        self._unread_bytes = 0
        self._handed_bytes = 0

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are transports by behaviour only.
        self.transport = cast(asyncio.Transport, transport)
        # What is flushed is written at once, while the loop goes on: uvloop keeps less than this for its next turn.
        self.transport.set_write_buffer_limits(0)
        self._control(_SETTINGS)
        self._liveness.start()
        self._owner.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closing = True
        self._liveness.stop()
        self._unsent.clear()
        self._reader.stop()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.cancelled()
        self._waiting.clear()
        self._owner.closed(self)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._unread_bytes = 0
        self._pump_waiting()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self.is_closing:
            return
        self._liveness.received()
        owner = self._owner
        owner.begin_read()
        try:
            self._reader.updated(nbytes)
        except ConnectionFailure as failure:
            self.end(failure.code, failure.text)
        except Exception:
            _log.exception("gRPC: a connection failed")
            self.end(ErrorCode.INTERNAL_ERROR, "internal error")
        owner.end_read()

    # Frames in.

    def on_data(self, stream_id: int, flags: int, data: bytes, start: int, stop: int) -> None:
        """A whole frame of DATA."""
        call = self.calls.get(stream_id)
        self._count_received(call, stop - start)
        if call is None or call.is_half_closed or self._heads.has_open_block:
            self._on_data_of_none(stream_id, call)
            return
        if flags & PADDED:
            if start == stop or data[start] > stop - start - 1:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a frame of DATA is all padding")
            start, stop = start + 1, stop - data[start]
        ends = flags & END_STREAM
        # Known before the message is: a call that is answered at once need not be reset.
        call.is_half_closed = bool(ends)
        if start < stop:
            call.receive(data, start, stop)
        if ends:
            call.half_close()

    def reader_of_long_data(self, stream_id: int, length: int) -> Call | None:
        """Who takes a long frame of DATA while it arrives."""
        call = self.calls.get(stream_id)
        if call is None or call.is_half_closed or self._heads.has_open_block:
            return None
        self._count_received(call, length)
        return call

    def _on_data_of_none(self, stream_id: int, call: Call | None) -> None:
        """DATA for a call that was answered already is dropped; for one that never was, it is an error."""
        if self._heads.has_open_block:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a frame inside a header block")
        if call is not None:
            self._control(frames.reset_frame(stream_id, ErrorCode.STREAM_CLOSED))
            call.cancelled()
        elif stream_id == 0 or stream_id > self.last_call:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "DATA for a call that was never made")

    def _count_received(self, call: Call | None, size: int) -> None:
        """Give the client's windows back what it has used of them, when it is much: what comes is taken at once."""
        self._unreturned += size
        if self._unreturned > CONNECTION_WINDOW // 2:
            self._control(frames.window_update_frame(0, self._unreturned))
            self._unreturned = 0
        if call is None:
            return
        call.unreturned += size
        self.return_window(call)

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """A whole frame of another kind."""
        if self._heads.has_open_block and kind != CONTINUATION:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a frame inside a header block")
        if not self._has_settings and kind != SETTINGS:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if kind == HEADERS:
            if not stream_id & 1:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "HEADERS for a stream that no client opens")
            self._on_block(self._heads.begin(stream_id, flags, payload))
        elif kind == RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == PING:
            self._on_ping(flags, payload)
        elif kind == SETTINGS:
            self._on_settings(stream_id, flags, payload)
        elif kind == CONTINUATION:
            self._on_block(self._heads.go_on(stream_id, flags, payload))
        elif kind == PUSH_PROMISE or (kind in (PRIORITY, GOAWAY) and (stream_id == 0) != (kind == GOAWAY)):
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a frame that a client may not send")

    # Headers.

    def _on_block(self, block: Block | None) -> None:
        if block is None:
            return
        stream_id, flags, data = block
        call = self.calls.get(stream_id)
        if call is not None or stream_id <= self.last_call:
            self._on_trailers(call, flags, data)
            return
        self.last_call = stream_id
        try:
            head = self._heads.head(data)
        except HeaderListTooLargeError as error:
            self._refuse_headers(stream_id, str(error))
            return
        except MalformedHeadError:
            self._control(frames.reset_frame(stream_id, ErrorCode.PROTOCOL_ERROR))
            return
        if self._is_draining:
            return
        if len(self.calls) >= MAX_CALLS:
            self._control(frames.reset_frame(stream_id, ErrorCode.REFUSED_STREAM))
            return
        call = self.calls[stream_id] = Call(self, stream_id, head, self._peer_call_window)
        if head.http_status == 200:
            self._owner.start_call(call)
        else:
            call.refuse(head.http_status)
        if flags & END_STREAM:
            call.half_close()

    def _on_trailers(self, call: Call | None, flags: int, block: bytes) -> None:
        self._heads.skip(block)
        if call is None:
            return
        if not flags & END_STREAM or call.is_half_closed:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "HEADERS in the middle of a call")
        call.half_close()

    def _refuse_headers(self, stream_id: int, text: str) -> None:
        block = self.response_headers.failure(codes.RESOURCE_EXHAUSTED, text, starts=True)
        flags = END_HEADERS | END_STREAM
        self.write(frames.frame_header(len(block), HEADERS, flags, stream_id) + block)
        self._control(frames.reset_frame(stream_id, ErrorCode.NO_ERROR))

    # The other frames.

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        frames.parse_number(payload)
        if stream_id == 0 or stream_id > self.last_call:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "RST_STREAM for a call that was never made")
        call = self.calls.pop(stream_id, None)
        if call is not None:
            call.is_half_closed = True
            call.cancelled()

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        increment = frames.parse_number(payload) & LARGEST_WINDOW
        if stream_id == 0:
            self.send_window += increment
            if not increment or self.send_window > LARGEST_WINDOW:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "a window that is none")
            self._pump_waiting()
            return
        call = self.calls.get(stream_id)
        if call is None:
            if stream_id > self.last_call:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE for a call never made")
            return
        call.send_window += increment
        if not increment or call.send_window > LARGEST_WINDOW:
            self._control(frames.reset_frame(stream_id, ErrorCode.FLOW_CONTROL_ERROR))
            call.is_half_closed = True
            call.cancelled()
        else:
            waiting = self._waiting.pop(stream_id, None)
            if waiting is not None:
                waiting.pump()

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "a PING of another size than 8")
        if flags & ACK:
            return
        if not self._liveness.allows_ping(self.has_calls):
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._control(frames.ping_frame(payload, ACK))

    def _on_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id != 0 or (flags & ACK and payload):
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "SETTINGS that are none")
        if not self._has_settings:
            self._has_settings = True
            self._liveness.established()
        if flags & ACK:
            return
        for name, value in dict(frames.parse_settings(payload)).items():
            if name == Setting.INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "a window that is none")
                for call in self.calls.values():
                    call.send_window += value - self._peer_call_window
                self._peer_call_window = value
            elif name == Setting.MAX_FRAME_SIZE:
                if not DEFAULT_MAX_FRAME_SIZE <= value <= frames.LARGEST_MAX_FRAME_SIZE:
                    raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "a frame size that is none")
                self.peer_max_frame_size = value
            elif name == Setting.HEADER_TABLE_SIZE:
                self.response_headers.limit_table(value)
        self._control(SETTINGS_ACK)
        self._pump_waiting()

    # Answers out.

    def write(self, data: bytes | memoryview) -> None:
        """Send a call's bytes, together with what else is written in this round."""
        self._liveness.has_sent = True
        self._control(data)

    def _control(self, data: bytes | memoryview) -> None:
        """Send bytes that are the connection's own."""
        if self.is_closing:
            return
        if not self.is_writable:
            self._unread_bytes += len(data)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.abort()
                return
        if not self._unsent:
            self._owner.has_unsent(self)
        self._unsent.append(data)
        if len(self._unsent) >= _MOST_UNSENT:
            self.flush()

    def flush(self) -> None:
        """Hand what was written to the socket."""
        unsent = self._unsent
        if not unsent:
            return
        self._unsent = []
        size = sum(map(len, unsent))
        self._handed_bytes += size
        if len(unsent) == 1:
            self.transport.write(unsent[0])
        elif size <= _JOINED_BYTES:
            self.transport.write(b"".join(unsent))
        else:
            self.transport.writelines(unsent)

    def return_window(self, call: Call) -> None:
        """Let the client send more to a call, unless it has much to read first."""
        if call.unreturned > CALL_WINDOW // 2 and not call.reader.is_behind:
            self._control(frames.window_update_frame(call.stream_id, call.unreturned))
            call.unreturned = 0

    def wait_for_window(self, call: Call) -> None:
        """Have `call.pump` called when there may be room for what it has to send."""
        self._waiting[call.stream_id] = call

    def _pump_waiting(self) -> None:
        """Send what waits, as far as it goes; who has had a turn and is not done goes to the end."""
        waiting, self._waiting = self._waiting, {}
        left: dict[int, Call] = {}
        for stream_id, call in waiting.items():
            if self.send_window > 0 and self.is_writable:
                call.pump()
            else:
                left[stream_id] = call
        self._waiting = left | self._waiting

    def call_ended(self, call: Call) -> None:
        """The call sends and wants nothing more."""
        if self.calls.pop(call.stream_id, None) is not None and not call.is_half_closed:
            self._control(frames.reset_frame(call.stream_id, ErrorCode.NO_ERROR))
        self._waiting.pop(call.stream_id, None)
        if self._is_draining and not self.calls:
            self._close()

    # The end.

    @property
    def has_calls(self) -> bool:
        """Whether a call is in flight."""
        return bool(self.calls)

    @property
    def standstill(self) -> object:
        """What waits for the client to take it, as a value that changes when it does; None where nothing waits."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent and not self._waiting:
            return None
        waiting = tuple((number, call.send_window) for number, call in self._waiting.items())
        return self._handed_bytes - unsent, self.send_window, waiting

    def drain(self) -> None:
        """Take no more calls, and close when those in flight have ended."""
        if not self._is_draining and not self.is_closing:
            self._is_draining = True
            self._farewell = self.last_call
            self._control(frames.goaway_frame(self._farewell, ErrorCode.NO_ERROR, ""))
            if not self.calls:
                self._close()

    def ping(self, payload: bytes) -> None:
        """Ask the client whether it is there."""
        self._control(frames.ping_frame(payload))

    def end(self, code: ErrorCode, text: str) -> None:
        """Say why, and close."""
        if not self.is_closing:
            last_call = self._farewell if self._is_draining else self.last_call
            self._control(frames.goaway_frame(last_call, code, text))
            self._close()

    def _close(self) -> None:
        if not self.is_closing:
            self.is_closing = True
            self.flush()
            if self.transport.can_write_eof():
                # Not closed yet: what the client still sends, unread, would take our last words with it.
                self.transport.write_eof()
            else:
                self.transport.close()
            self._liveness.closing()

    def abort(self) -> None:
        """Cut the connection off."""
        self.is_closing = True
        self.transport.abort()
