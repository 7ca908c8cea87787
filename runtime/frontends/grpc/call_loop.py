"""The thread that reads calls: it takes what has arrived, then runs the models that this set to work.

Owns the completion queue, the server beneath it, and their life. Knows no service: `routes` says what a method does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from cantata.runtime.execution.worker_pool import Collector, WorkerPool
from cantata.runtime.frontends.grpc import core_calls
from cantata.runtime.frontends.grpc.compressed_messages import FIRST_BYTES, unpacked
from cantata.runtime.frontends.grpc.core_calls import Event
from cantata.runtime.frontends.grpc.options import GrpcOptions

_log = logging.getLogger("cantata.grpc")

# How many calls C-core may take in before this thread sees the first of them.
_REQUESTED_CALLS: Final = 64
# How many events are handled before the models run that they set to work.
_MOST_EVENTS: Final = 256
# How long calls that were cancelled may take to notice, in seconds.
_LAST_GRACE_S: Final = 5.0

# Starts the call of an event, on the loop's thread; what it returns keeps itself alive through the call.
Route = Callable[[Event], object]


class UnwatchedCall(Protocol):
    """A call that was not answered where it was read."""

    def watch(self) -> None:
        """Learn from now on when the client gives up."""


class CallLoop:
    """One completion queue, its server and its thread. `close` ends all three.

    Attributes without a lock are the thread's own: only callbacks that it runs may touch them.
    """

    def __init__(self, workers: WorkerPool, options: GrpcOptions) -> None:
        self._workers = workers
        self._options = options
        self._routes: Mapping[bytes, Route] = {}
        self._thread = threading.Thread(target=self._serve, name="cantata-grpc", daemon=True)
        self._queue: core_calls.CompletionQueue | None = None
        # Calls that were read in this round and are not answered yet.
        self._unwatched: list[UnwatchedCall] = []
        self._requested = 0
        # Calls that may still start an operation.
        self._active = 0
        # Whether more events are to be handled before the work at hand is run.
        self._gathers = False
        # Held by whoever is inside the server; guards the two below. No call is asked for once it is stopping.
        self._stop_lock = threading.Lock()
        self._is_stopping = False
        self._is_over = False
        self._is_shut_down = False
        # Called when the server stops, so that open streams end.
        self._on_stop: Callable[[], None] = lambda: None
        # Called between rounds about once a second while there is one.
        self.every_second: Callable[[], None] | None = None
        self.port = 0

    def start(self, routes: Mapping[bytes, Route], on_stop: Callable[[], None]) -> None:
        """Listen and serve. Raises OSError when the address cannot be had."""
        self._routes = routes
        self._on_stop = on_stop
        self._queue = core_calls.create_completion_queue()
        self._server = core_calls.create_server(self._options.channel_arguments(), self._queue)
        self.port = self._listen()
        self._server.start()
        for _ in range(_REQUESTED_CALLS):
            self._request_call()
        self._thread.start()

    def close(self, grace_s: float) -> None:
        """Take no more calls, wait `grace_s` for those in flight, cancel what is left, and end the thread."""
        if self._queue is None or not self._thread.is_alive():
            return
        with self._stop_lock:
            self._is_stopping = True
            self._server.shutdown(self._queue, self._on_shut_down)
        self._thread.join(grace_s)
        with self._stop_lock:
            if not self._is_over:
                self._server.cancel_all_calls()
        self._thread.join(_LAST_GRACE_S)
        if self._thread.is_alive():
            _log.warning("gRPC: calls are still being answered; the server stops without them")

    def message_of(self, event: Event) -> bytes | None:
        """The message that an event brings, as `core_calls.received_message`, unpacked where it came compressed.

        Raises OversizedMessageError where it unpacks to more than it may.
        """
        message = core_calls.received_message(event)
        if message and message[0] in FIRST_BYTES:
            return unpacked(message, self._options.max_decompressed_size)
        return message

    def is_current_thread(self) -> bool:
        """Whether the caller runs on the loop's thread, which nothing may block."""
        return threading.get_ident() == self._thread.ident

    def watch_later(self, call: UnwatchedCall) -> None:
        """Have `call.watch()` called once the work at hand has been run, on the loop's thread."""
        self._unwatched.append(call)
        # With no other call there is nobody whose request could join this one in a batch.
        if self._active > 1:
            self._gathers = True

    def gather(self) -> None:
        """Look for more that has arrived before running the work at hand; on the loop's thread."""
        self._gathers = True

    def call_ended(self, _event: Event | None = None) -> None:
        """A call will start no more operations; each call says so once, on the loop's thread."""
        self._active -= 1

    def _listen(self) -> int:
        options = self._options
        endpoint = options.endpoint().encode()
        try:
            if options.use_ssl or options.use_ssl_mutual:
                port = self._server.add_http2_port(endpoint, _credentials(options))
            else:
                port = self._server.add_http2_port(endpoint)
        except RuntimeError:
            port = 0
        if not port:
            raise OSError(f"gRPC cannot listen on {options.endpoint()}")
        return port

    def _request_call(self) -> None:
        assert self._queue is not None
        with self._stop_lock:
            if not self._is_stopping:
                self._server.request_call(self._queue, self._queue, self._on_call)
                self._requested += 1

    def _serve(self) -> None:
        with self._workers.collecting() as work:
            while not self._has_ended():
                try:
                    self._serve_round(work)
                except Exception:
                    # A bug in one call must not end the service of all others.
                    _log.exception("gRPC: a round of calls failed")
        assert self._queue is not None
        with self._stop_lock:
            # Nobody is inside the server any more, and from now on nobody may call it.
            self._is_over = True
        self._queue.shutdown()
        while self._queue.poll().completion_type != core_calls.QUEUE_SHUTDOWN:
            pass
        self._server.destroy()

    def _has_ended(self) -> bool:
        return self._is_shut_down and not self._requested and not self._active

    def _serve_round(self, work: Collector) -> None:
        """Wait for an event, handle it and what else has arrived, and run what they set to work."""
        assert self._queue is not None
        poll = self._queue.poll
        unwatched = self._unwatched
        event = poll(None if self.every_second is None else core_calls.seconds_from_now(1))
        handled = 0
        while event.completion_type != core_calls.QUEUE_TIMEOUT:
            try:
                event.tag(event)
            except Exception:
                _log.exception("gRPC: a call failed")
            handled += 1
            if not self._gathers or handled == _MOST_EVENTS:
                break
            event = poll(0)
        self._gathers = False
        # An event keeps its call alive, which must not outlive the call's end.
        del event
        work.run()
        if unwatched:
            for call in unwatched:
                call.watch()
            unwatched.clear()
        if self.every_second is not None:
            self.every_second()

    def _on_call(self, event: Event) -> None:
        self._requested -= 1
        if event.success:
            self._request_call()
            self._active += 1
            route = self._routes.get(event.call_details.method)
            if route is not None:
                route(event)
            else:
                core_calls.reply_status(
                    event.call,
                    core_calls.UNIMPLEMENTED,
                    "unknown method",
                    self.call_ended,
                    starts=True,
                    closes=True,
                )
        # When the server stops, what it was asked for in vain comes back, and then there are no more calls to come.
        if not self._requested:
            self._on_stop()

    def _on_shut_down(self, _event: Event) -> None:
        self._is_shut_down = True


def _credentials(options: GrpcOptions) -> object:
    try:
        with open(options.server_cert, "rb") as certificate, open(options.server_key, "rb") as key:
            chain, private_key = certificate.read(), key.read()
        roots = None
        if options.root_cert:
            with open(options.root_cert, "rb") as file:
                roots = file.read()
    except OSError as error:
        raise OSError(f"gRPC cannot use TLS: {error}") from error
    return core_calls.tls_credentials(chain, private_key, roots, options.use_ssl_mutual)
