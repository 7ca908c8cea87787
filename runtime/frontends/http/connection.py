"""One client connection: bytes in, whole requests out to a handler, answers back in the order of the requests.

Owns HTTP/1.1 framing (on httptools), keep-alive, pipelining and flow control. Knows no path, model or datatype.
Everything here runs on the event-loop thread.
"""

from __future__ import annotations

import asyncio
import http
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools
import numpy as np

from cantata.runtime.admission import ByteLease
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError
from cantata.runtime.frontends.http.client_limits import ClientLimits, Patience, Phase

MAX_CHUNKS: Final = 65536
# How many requests a client may send ahead of their answers before its connection is no longer read.
MAX_PIPELINED: Final = 16
# Bodies of these sizes get their memory at once. It is not touched before the bytes come: a length that lies costs
# nothing.
MIN_PREALLOCATED: Final = 128 << 10
MAX_PREALLOCATED: Final = 256 << 20
# What native code may expect of a tensor's address.
_ALIGNMENT: Final = 64

_STATUS_LINES: Final[dict[int, bytes]] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus
}


class Handler(Protocol):
    """What serves the requests of one port."""

    def body_limit(self, exchange: Exchange) -> int | None:
        """How many bytes of body to keep of a request whose head has arrived; what follows is counted only.

        May give the exchange a lease, which grows with a body whose length was not said, or refuse it.
        """

    def handle(self, exchange: Exchange) -> None:
        """Take a whole request, and answer it later: never inside this call, which must not raise."""


class _RefusedError(Exception):
    """A request that is not to be read further; raised inside the parser's callbacks."""

    def __init__(self, status: int, text: bytes) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Exchange:
    """One request and its answer.

    `url` is as sent; header names are lower-case, and in `sent_names` as sent. `body_size` is what arrived: more than
    `len(body)` when the limit was passed, in which case `body` is empty. `on_disconnect` is called if the client goes
    before it is answered.
    """

    __slots__ = (
        "_connection",
        "body",
        "body_size",
        "headers",
        "is_disconnected",
        "keep_alive",
        "lease",
        "method",
        "on_disconnect",
        "refusal",
        "sent_names",
        "url",
    )

    def __init__(self, connection: Connection, url: bytes) -> None:
        self._connection = connection
        self.method = b""
        self.url = url
        self.headers: list[tuple[bytes, bytes]] = []
        self.sent_names: list[bytes] = []
        self.body: bytes | memoryview = b""
        self.body_size = 0
        self.keep_alive = True
        self.is_disconnected = False
        self.on_disconnect: Callable[[], None] | None = None
        # What its body holds of budgets of bytes, until it is answered or somebody else takes it over.
        self.lease: ByteLease | None = None
        # Why its body was not kept.
        self.refusal: InferenceError | None = None

    def refuse(self, error: InferenceError) -> None:
        """Keep nothing of its body, and answer it with `error` when it has been read."""
        # Its traceback holds what led here, which holds this: memory that nothing but the collector would free.
        self.refusal = error.with_traceback(None)
        self.release()

    def release(self) -> None:
        """Give back what its body holds of budgets."""
        if self.lease is not None:
            self.lease.release()

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header of that lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def header_text(self, name: str) -> str | None:
        """The same for a name and a value in text, whatever the name's case."""
        value = self.header(name.lower().encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    @property
    def has_oversized_body(self) -> bool:
        """Whether the body was dropped because it passed its limit."""
        return self.body_size > len(self.body)

    def head(self, status: int, headers: bytes) -> bytes:
        """The answer's bytes up to its body. `headers` are complete lines. Any thread may call."""
        closing = b"\r\n" if self.keep_alive else b"Connection: close\r\n\r\n"
        return b"".join((_STATUS_LINES[status], headers, closing))

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer; Content-Length is added to `headers`."""
        head = self.head(status, headers + b"Content-Length: %d\r\n" % len(body))
        self.send(head if self.method == b"HEAD" else head + body)

    def send(self, answer: bytes) -> None:
        """Send a whole answer, its head included."""
        self.write(answer)
        self.finish()

    def write(self, data: bytes) -> None:
        """Send a part of the answer."""
        if not self.is_disconnected:
            self._connection.transport.write(data)

    async def wait_until_writable(self) -> None:
        """Wait while the client is too far behind in reading."""
        await self._connection.wait_until_writable()

    def finish(self) -> None:
        """The answer is complete: the connection goes on to its next request, or closes."""
        if not self.is_disconnected:
            self._connection.exchange_finished(self)


class Connections:
    """The open connections of one port, so that they can be drained and closed, and what they are allowed."""

    def __init__(self, limits: ClientLimits | None = None) -> None:
        self.limits = limits or ClientLimits()
        self.is_draining = False
        self._open: set[Connection] = set()
        self._all_closed: asyncio.Event | None = None

    def add(self, connection: Connection) -> None:
        self._open.add(connection)

    @property
    def has_room(self) -> bool:
        """Whether those that are open are no more than may be."""
        return not self.limits.max_connections or len(self._open) <= self.limits.max_connections

    def end_overdue(self, now_ms: int) -> None:
        """End the connections whose clients have taken too long; called about once a second."""
        for connection in list(self._open):
            connection.end_if_overdue(now_ms)

    def remove(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open and self._all_closed is not None:
            self._all_closed.set()

    async def drain(self) -> None:
        """Close idle connections, and busy ones after their current answer; return when all are closed."""
        self.is_draining = True
        self._all_closed = asyncio.Event()
        for connection in list(self._open):
            connection.close_when_idle()
        if self._open:
            await self._all_closed.wait()

    def abort(self) -> None:
        """Cut every connection off."""
        for connection in list(self._open):
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """The protocol object of one accepted socket."""

    transport: asyncio.Transport

    def __init__(self, handler: Handler, connections: Connections) -> None:
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        # The request whose bytes are arriving, the one that is being answered, and whole ones that wait behind it.
        self._arriving: Exchange | None = None
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._head_size = 0
        self._in_head = True
        self._url = b""
        # The body so far: in its place if its length was said and is large, else in pieces.
        self._buffer: memoryview | None = None
        self._pieces: list[bytes] = []
        self._body_limit: int | None = None
        self._chunk_count = 0
        self._is_reading = True
        # Whether the client said that it sends no more requests.
        self._is_last_request = False
        # Set while the transport's write buffer is full.
        self._writable: asyncio.Event | None = None
        # Requests that have come, and full write buffers that were emptied: what the client has achieved so far.
        self._request_count = 0
        self._resume_count = 0
        # Whether it was refused, and is left open until that has been read.
        self._is_lingering = False
        self._patience = Patience(monotonic_ns() // 1_000_000)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are transports by behaviour only.
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        if not self._connections.has_room:
            self._refuse(503, b"there are too many connections", b"Retry-After: 1\r\n")

    def data_received(self, data: bytes) -> None:
        if self._is_last_request:
            return
        if self._in_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, b"upgrading the connection is not supported")
        except httptools.HttpParserError as error:
            refused = error.__context__
            if isinstance(refused, _RefusedError):
                self._refuse(refused.status, refused.text)
            # The parser also objects to bytes behind a request that asked for the connection to be closed.
            elif not self._is_last_request:
                self._refuse(400, b"not a valid HTTP request")
        else:
            if self._in_head and self._head_size > self._connections.limits.max_header_size:
                self._refuse(_LONG_HEAD.status, _LONG_HEAD.text)
            elif self._chunk_count > MAX_CHUNKS:
                self._refuse(400, b"the request's body has too many chunks")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._forget_waiting()
        if self._arriving is not None:
            self._arriving.release()
        current, self._current = self._current, None
        if self._writable is not None:
            self._writable.set()
        if current is not None:
            current.is_disconnected = True
            current.release()
            if current.on_disconnect is not None:
                current.on_disconnect()

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        self._resume_count += 1
        if writable is not None:
            writable.set()
        self._start_next()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._url = b""
        self._arriving = Exchange(self, b"")
        self._buffer = None
        self._pieces = []
        self._chunk_count = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._arriving
        assert exchange is not None
        exchange.headers.append((name.lower(), value))
        exchange.sent_names.append(name)

    def on_headers_complete(self) -> None:
        exchange = self._arriving
        assert exchange is not None
        limits = self._connections.limits
        if len(exchange.headers) > limits.max_header_count:
            raise _RefusedError(431, b"the request has too many headers")
        # What has come so far may hold the body too: only where it is long is the head measured by itself.
        if self._head_size > limits.max_header_size and self._measured_head() > limits.max_header_size:
            raise _LONG_HEAD
        self._in_head = False
        exchange.method = self._parser.get_method()
        exchange.url = self._url
        exchange.keep_alive = self._parser.should_keep_alive() and self._parser.get_http_version() == "1.1"
        self._body_limit = self._handler.body_limit(exchange)
        # The parser has refused a length that is not a number.
        length = int(exchange.header(b"content-length") or 0)
        if length > limits.max_request_size:
            raise _TOO_LARGE
        fits = self._body_limit is None or length <= self._body_limit
        if MIN_PREALLOCATED < length <= MAX_PREALLOCATED and fits:
            self._buffer = _aligned_memory(length, exchange.header(b"inference-header-content-length"))
        if self._current is None and (exchange.header(b"expect") or b"").lower() == b"100-continue":
            if exchange.refusal is None:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self._answer_early(exchange)

    def _measured_head(self) -> int:
        assert self._arriving is not None
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._arriving.headers)

    def on_chunk_complete(self) -> None:
        self._chunk_count += 1

    def on_body(self, body: bytes) -> None:
        exchange = self._arriving
        assert exchange is not None
        start = exchange.body_size
        exchange.body_size = end = start + len(body)
        if end > self._connections.limits.max_request_size:
            raise _TOO_LARGE
        if exchange.lease is not None and end > exchange.lease.size:
            self._grow(exchange, end)
        if self._body_limit is not None and end > self._body_limit:
            self._pieces.clear()
        elif self._buffer is not None:
            self._buffer[start:end] = body
        else:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        exchange, self._arriving = self._arriving, None
        assert exchange is not None
        if self._is_last_request:
            # It was answered before its body came.
            return
        pieces, self._pieces = self._pieces, []
        if self._buffer is not None:
            exchange.body, self._buffer = self._buffer, None
        else:
            exchange.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._in_head = True
        self._head_size = 0
        self._request_count += 1
        self._is_last_request = not exchange.keep_alive
        self._waiting.append(exchange)
        self._start_next()

    def _grow(self, exchange: Exchange, size: int) -> None:
        """A body whose length was not said has reached `size`: take so much of its budgets, or keep none of it."""
        assert exchange.lease is not None
        try:
            exchange.lease.resize(size)
        except InferenceError as error:
            exchange.refuse(error)
            self._body_limit = 0

    # The order of requests and answers.

    def _answer_early(self, exchange: Exchange) -> None:
        """Refuse a request whose body waits to be asked for. It may come all the same, so nothing is read after it."""
        exchange.keep_alive = False
        self._is_last_request = True
        self._waiting.append(exchange)
        self._start_next()

    def _forget_waiting(self) -> None:
        for exchange in self._waiting:
            exchange.release()
        self._waiting.clear()

    def _start_next(self) -> None:
        if self._current is None and self._waiting and self._writable is None:
            self._current = exchange = self._waiting.popleft()
            if self._connections.is_draining:
                exchange.keep_alive = False
            self._handler.handle(exchange)
        self._read_if(len(self._waiting) < MAX_PIPELINED)

    def exchange_finished(self, exchange: Exchange) -> None:
        """`exchange` has been answered in full."""
        exchange.release()
        if exchange is self._current:
            self._current = None
        if not exchange.keep_alive or self._connections.is_draining:
            self._forget_waiting()
            self.transport.close()
        elif self._waiting:
            self._start_next()

    def close_when_idle(self) -> None:
        """Close the connection, after the current answer where one is due."""
        if self._current is None:
            self.transport.close()
        else:
            self._current.keep_alive = False

    async def wait_until_writable(self) -> None:
        if self._writable is not None:
            await self._writable.wait()

    def _read_if(self, should_read: bool) -> None:
        if should_read != self._is_reading and not self.transport.is_closing():
            self._is_reading = should_read
            if should_read:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def end_if_overdue(self, now_ms: int) -> None:
        """End the connection if its client has been too long at the same thing."""
        phase, progress = self._standing()
        if not self._patience.has_ended(phase, progress, now_ms, self._connections.limits):
            return
        if phase is Phase.WRITING or self.transport.is_closing():
            self.transport.abort()
        elif phase is Phase.BODY or (phase is Phase.HEADERS and self._arriving is not None):
            self._refuse(408, b"the request took too long to arrive")
        else:
            self.transport.close()

    def _standing(self) -> tuple[Phase, int]:
        """What the connection is at, and a number that changes as its client gets on with it."""
        if self._is_lingering:
            return Phase.LINGERING, 0
        if waiting := self.transport.get_write_buffer_size():
            return Phase.WRITING, (self._resume_count << 40) - waiting
        if self._current is not None:
            return Phase.SERVED, 0
        if self._arriving is None and self._request_count:
            return Phase.IDLE, self._request_count
        if self._in_head or self._arriving is None:
            return Phase.HEADERS, self._request_count
        return Phase.BODY, (self._request_count << 40) + self._arriving.body_size

    def _refuse(self, status: int, text: bytes, headers: bytes = b"") -> None:
        """Answer what will not be read further, and close: what follows cannot be understood, or is not wanted."""
        if self.transport.is_closing() or self._is_lingering:
            return
        exchange = Exchange(self, b"")
        exchange.keep_alive = False
        body = b'{"error":"%s"}' % text
        headers += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        self.transport.write(exchange.head(status, headers) + body)
        self._is_last_request = True
        if self._current is not None:
            self.transport.close()
            return
        # A connection that is closed with bytes unread is reset, which takes the answer with it. So these are read,
        # and dropped, for a while.
        self._is_lingering = True
        if self.transport.can_write_eof():
            self.transport.write_eof()


def _aligned_memory(size: int, json_size: bytes | None) -> memoryview:
    """Memory for a body, aligned where its tensors begin: behind as much JSON as the header says."""
    start = int(json_size) if json_size is not None and json_size.isdigit() else 0
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    shift = -(memory.ctypes.data + start) % _ALIGNMENT
    return memory.data[shift : shift + size]


_LONG_HEAD: Final = _RefusedError(431, b"the request's head is too large")
_TOO_LARGE: Final = _RefusedError(413, b"the request's body is too large")
