"""The gRPC thread: it reads what clients send, then runs the models that this set to work, then writes what is due.

Owns the event loop, the listening socket, the connections, and their life. Knows no service: `routes` says who takes
a call.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import uvloop

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.execution.file_watch import FileWatch
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.frontends.gathering import Gathering
from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.call import Call, CallReader
from cantata.runtime.frontends.grpc.compression import ENCODINGS, is_known
from cantata.runtime.frontends.grpc.connection import Connection
from cantata.runtime.frontends.grpc.http2.frames import ErrorCode
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.rounds import Rounds
from cantata.runtime.frontends.listening import BACKLOG, bound_socket
from cantata.runtime.frontends.tls import TlsFiles

_log = logging.getLogger("cantata.grpc")

_READ_BUFFER_BYTES: Final = 256 << 10
# How much of what a client names is repeated to it.
_SHOWN: Final = 64
# How long clients that go on reading may take over their last answers, in seconds.
_LONGEST_FAREWELL_S: Final = 30.0
_SHORTEST_LOOK_S: Final = 0.5
# How long calls that were cancelled may take to notice, in seconds.
_LAST_GRACE_S: Final = 5.0

# Takes a call, on the loop's thread.
Route = Callable[[Call], CallReader]


class CallLoop:
    """One listening socket, its connections and their thread. `close` ends all three.

    Attributes without a lock are the thread's own: only callbacks that it runs may touch them.
    """

    def __init__(self, workers: WorkerPool, options: GrpcOptions) -> None:
        self._workers = workers
        self._options = options
        self._routes: Mapping[bytes, Route] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="cantata-grpc", daemon=True)
        self._listener: asyncio.Server | None = None
        self._failure: Exception | None = None
        self._is_serving = threading.Event()
        self._is_closed = False
        self._connections: set[Connection] = set()
        self.read_buffer = memoryview(bytearray(_READ_BUFFER_BYTES))
        # What models in processes say to batches that were begun here.
        self._watch = FileWatch()
        self._work = workers.collecting(self._watch)
        # Calls that threads of their own answer.
        self.slow_calls = 0
        # When models are run and answers written, and the connections that have some.
        self._rounds = Rounds(self._call_soon, self._run_round)
        self._unsent: list[Connection] = []
        self._gathering = Gathering()
        # What other threads want done here, and whether this thread was told of it.
        self._posted: deque[Callable[[], None]] = deque()
        self._was_told = False
        # Called when the server stops, so that open streams end.
        self._on_stop: Callable[[], None] = lambda: None
        self._all_closed: asyncio.Event | None = None
        self._second_timer: asyncio.TimerHandle | None = None
        self._every_second: Callable[[], None] | None = None
        self.port = 0

    # For whoever owns the server; any thread.

    def start(self, routes: Mapping[bytes, Route], on_stop: Callable[[], None]) -> None:
        """Listen and serve. Raises OSError when the address cannot be had, or the certificates cannot be read."""
        self._routes = routes
        self._on_stop = on_stop
        self._thread.start()
        self._is_serving.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def close(self, grace_s: float) -> None:
        """Take no more calls, wait `grace_s` for those in flight, cancel what is left, and end the thread."""
        loop = self._loop
        if loop is None or self._is_closed:
            return
        self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._end(grace_s), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()

    # For calls.

    def is_current_thread(self) -> bool:
        """Whether the caller runs on the loop's thread, which nothing may block."""
        return threading.get_ident() == self._thread.ident

    def run_here(self, action: Callable[[], None]) -> None:
        """Have `action` run on the loop's thread: now, if the caller is on it."""
        if threading.get_ident() == self._thread.ident:
            action()
            return
        self._posted.append(action)
        if not self._was_told:
            self._was_told = True
            loop = self._loop
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._run_posted)
            except RuntimeError:
                # The loop has ended, and every connection with it.
                self._posted.clear()

    def request_round(self) -> None:
        """Have the work at hand run when what else has arrived is read; on the loop's thread."""
        self._rounds.request_came()

    def slow_call_ended(self) -> None:
        """A thread that answered a call has ended; on the loop's thread."""
        self.slow_calls -= 1

    def every_second(self, action: Callable[[], None] | None) -> None:
        """Have `action` called about once a second until this is called with None; on the loop's thread."""
        self._every_second = action
        if action is not None and self._second_timer is None:
            self._wait_a_second()

    # For connections.

    def opened(self, connection: Connection) -> None:
        """A client has connected."""
        self._connections.add(connection)
        most = self._options.max_connections
        if self._all_closed is not None:
            # The server stops; this one had begun to connect before.
            connection.drain()
        elif most and len(self._connections) > most:
            connection.end(ErrorCode.ENHANCE_YOUR_CALM, "there are too many connections")

    def begin_read(self) -> None:
        """A connection takes what was read; it then calls `end_read`."""
        self._rounds.begin_read()

    def end_read(self) -> None:
        """A connection has taken what was read."""
        self._rounds.end_read(is_only_client=len(self._connections) == 1)

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if self._all_closed is not None and not self._connections:
            self._all_closed.set()

    def start_call(self, call: Call) -> None:
        """Find who takes a call."""
        head = call.head
        route = self._routes.get(head.path)
        if route is None:
            call.fail(codes.UNIMPLEMENTED, "unknown method")
            return
        if not is_known(head.encoding):
            accepted = ((b"grpc-accept-encoding", ENCODINGS.encode()),)
            call.fail(codes.UNIMPLEMENTED, f"unknown grpc-encoding '{head.encoding[:_SHOWN]}'", accepted)
            return
        if head.timeout_ns is not None:
            call.deadline_ns = monotonic_ns() + max(1, head.timeout_ns)
            assert self._loop is not None
            call.deadline_timer = self._loop.call_later(head.timeout_ns / 1e9, call.expired)
        try:
            reader = route(call)
        except Exception as error:
            _log.exception("gRPC: a call of '%s' could not be taken", head.path.decode("latin-1"))
            call.abort(codes.INTERNAL, f"{type(error).__name__}: {error}")
            return
        if not call.is_over:
            call.reader = reader

    def has_unsent(self, connection: Connection) -> None:
        """Have `connection.flush` called before the loop waits again."""
        self._unsent.append(connection)
        self._rounds.need()

    # The thread.

    def _serve(self) -> None:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._listen(loop))
            self._loop = loop
            self._is_serving.set()
            loop.add_reader(self._watch.fileno(), self._go_on)
            with self._work:
                loop.run_forever()
        except Exception as error:
            self._failure = error
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            self._workers.take_over(self._watch)
            self._is_serving.set()

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        options = self._options
        tls = _tls_context(options) if options.use_ssl or options.use_ssl_mutual else None
        bound = bound_socket(options.address, options.port, options.reuse_port)
        self.port = bound.getsockname()[1]
        self._loop = loop
        timeout_ms = options.handshake_timeout
        self._listener = await loop.create_server(
            lambda: Connection(self, options, loop),
            sock=bound,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=timeout_ms / 1000 if tls is not None and timeout_ms else None,
        )

    def _call_soon(self, action: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.call_soon(action)

    def _go_on(self) -> None:
        """Go on with batches whose processes have said something."""
        for rest in self._watch.take_ready():
            self._workers.dispatch(rest)
            self._rounds.need()

    def _run_round(self) -> None:
        try:
            self._work.run(self._flush_now_and_then, self._flush)
        except Exception:
            # A bug in one call must not end the service of all others.
            _log.exception("gRPC: a round of calls failed")
        self._flush()

    def _flush_now_and_then(self) -> None:
        """As `_flush`, unless that was a moment ago: for after each model that has run, so that clients can go on.

        What is not written then waits for the next model to run, too: a quick one, or it would run elsewhere.
        """
        if self._unsent and self._gathering.is_over():
            self._flush()

    def _flush(self) -> None:
        """Write what the connections have to say."""
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            for connection in unsent:
                try:
                    connection.flush()
                except Exception:
                    _log.exception("gRPC: a connection could not be written to")
                    connection.abort()

    def _run_posted(self) -> None:
        # First: whoever posts from here on tells the loop again.
        self._was_told = False
        posted = self._posted
        while posted:
            try:
                posted.popleft()()
            except Exception:
                _log.exception("gRPC: an answer failed")
        self._flush()

    def _wait_a_second(self) -> None:
        assert self._loop is not None
        self._second_timer = self._loop.call_later(1.0, self._on_second)

    def _on_second(self) -> None:
        self._second_timer = None
        if self._every_second is not None:
            self._every_second()
            self._wait_a_second()

    async def _end(self, grace_s: float) -> None:
        if self._listener is not None:
            self._listener.close()
        self._all_closed = asyncio.Event()
        self._on_stop()
        for connection in tuple(self._connections):
            connection.drain()
        self._flush()
        if not await self._are_closed(grace_s) and not await self._are_read(grace_s):
            for connection in tuple(self._connections):
                connection.abort()
            if not await self._are_closed(_LAST_GRACE_S):
                _log.warning("gRPC: connections do not close; the server stops without them")
        if self._second_timer is not None:
            self._second_timer.cancel()

    async def _are_read(self, grace_s: float) -> bool:
        """Go on waiting while some client reads what it is still to get; whether all connections closed then."""
        assert self._loop is not None
        end_s = self._loop.time() + _LONGEST_FAREWELL_S
        before: dict[Connection, object] = {}
        while self._loop.time() < end_s:
            now = {connection: connection.standstill for connection in self._connections}
            if all(value is None or before.get(connection) == value for connection, value in now.items()):
                return False
            before = now
            if await self._are_closed(max(grace_s, _SHORTEST_LOOK_S)):
                return True
        return False

    async def _are_closed(self, grace_s: float) -> bool:
        assert self._all_closed is not None
        if self._connections:
            try:
                await asyncio.wait_for(self._all_closed.wait(), grace_s)
            except TimeoutError:
                return False
        return True


def _tls_context(options: GrpcOptions) -> ssl.SSLContext:
    files = TlsFiles(options.server_cert, options.server_key, options.root_cert, options.use_ssl_mutual)
    context = files.context("gRPC")
    context.set_alpn_protocols(["h2"])
    return context
