"""A call of many messages both ways: reading one after the other, and a queue that one send at a time empties.

C-core allows one send in flight a call. Answers wait here for it, and producers wait for the queue when it is long.
Knows no message but as bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from cantata.runtime.frontends.grpc import core_calls
from cantata.runtime.frontends.grpc.call_loop import CallLoop
from cantata.runtime.frontends.grpc.compressed_messages import OversizedMessageError
from cantata.runtime.frontends.grpc.core_calls import Call, Event

# A producer waits while more than this is queued.
_MOST_MESSAGES: Final = 64
_MOST_BYTES: Final = 16 * 1024 * 1024


class _Operation(NamedTuple):
    """One message, or the status that ends the call; `starts` where it is the first thing sent."""

    message: bytes
    status: tuple[int, str] | None
    starts: bool


class StreamReader(Protocol):
    """What is done with what a stream brings. All are called on the loop's thread."""

    def on_message(self, message: bytes) -> None: ...

    def on_half_close(self) -> None:
        """The client sends no more."""

    def on_closed(self, was_cancelled: bool) -> None:
        """The call is over: answered, or the client is gone and what is sent from now on is dropped."""


class MessageStream:
    """One streaming call. Any thread may send or finish; messages leave in the order in which they were queued.

    `lock` guards the attributes below it, and what the reader keeps in step with the queue. Invariants: `_is_sending`
    holds from the moment that an operation is taken from the queue until its event; at most one is. Nothing is taken
    once `_is_over`. The loop is told exactly once that the call has ended.
    """

    def __init__(self, loop: CallLoop, call: Call, reader: StreamReader, *, compress: bool) -> None:
        self._loop = loop
        self._call = call
        self._reader = reader
        self._compress = compress
        self.lock = threading.Lock()
        self._room = threading.Condition(self.lock)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        # How the call is to end, once the queue is empty.
        self._status: tuple[int, str] | None = None
        self._is_sending = False
        self._has_started = False
        # The status is on its way, or the client is gone.
        self._is_over = False

    def start(self) -> None:
        """Begin to read; on the loop's thread."""
        core_calls.watch_close(self._call, self._on_close)
        core_calls.receive_message(self._call, self._on_message)

    def send(self, message: bytes) -> None:
        """Queue one message."""
        self.send_from(lambda: (message,))

    def send_from(self, produce: Callable[[], Sequence[bytes]]) -> None:
        """Queue what `produce` returns; it runs under `lock`, so it decides the order. It must be quick."""
        with self.lock:
            messages = produce()
            if self._is_over or self._status is not None:
                return
            for message in messages:
                self._queue.append(message)
                self._queued_bytes += len(message)
            if self._is_sending or not messages:
                return
            operation = self._take_next()
        self._start_operation(operation)

    def finish(self, code: int = core_calls.OK, details: str = "") -> None:
        """End the call when what is queued has been sent; only the first call counts."""
        with self.lock:
            if self._is_over or self._status is not None:
                return
            self._status = (code, details)
            self._room.notify_all()
            if self._is_sending:
                return
            operation = self._take_next()
        self._start_operation(operation)

    def wait_until_ready(self) -> None:
        """Block while the queue is long; never on the loop's thread, which is the one that empties it."""
        if self._loop.is_current_thread():
            return
        with self.lock:
            while self._is_full() and not self._is_over and self._status is None:
                self._room.wait()

    def _is_full(self) -> bool:
        return len(self._queue) >= _MOST_MESSAGES or self._queued_bytes >= _MOST_BYTES

    def _take_next(self) -> _Operation | None:
        """The next operation to start, if any; the caller holds the lock and starts it after releasing it."""
        starts = not self._has_started
        if self._queue:
            message = self._queue.popleft()
            self._queued_bytes -= len(message)
            if not self._is_full():
                self._room.notify_all()
            operation = _Operation(message, None, starts)
        elif self._status is not None:
            self._is_over = True
            operation = _Operation(b"", self._status, starts)
        else:
            self._is_sending = False
            return None
        self._is_sending = self._has_started = True
        return operation

    def _start_operation(self, operation: _Operation | None) -> None:
        if operation is None:
            return
        message, status, starts = operation
        if status is None:
            core_calls.send_message(
                self._call, message, self._on_sent, starts=starts, compress=self._compress
            )
        else:
            core_calls.reply_status(self._call, *status, self._loop.call_ended, starts=starts, closes=False)

    def _on_sent(self, event: Event) -> None:
        operation = None
        with self.lock:
            is_gone = self._is_over or not event.success
            if is_gone:
                self._give_up()
            else:
                operation = self._take_next()
        if is_gone:
            self._loop.call_ended()
        self._start_operation(operation)

    def _give_up(self) -> None:
        """Drop what is queued and let nobody wait; the caller holds the lock."""
        self._is_over = True
        self._queue.clear()
        self._queued_bytes = 0
        self._room.notify_all()

    def _on_message(self, event: Event) -> None:
        try:
            message = self._loop.message_of(event)
        except OversizedMessageError as error:
            self.finish(core_calls.RESOURCE_EXHAUSTED, error.message)
            return
        if message is None:
            if not self._is_over:
                self._reader.on_half_close()
            return
        # First the next message, so that it can be read in the same round of the loop.
        core_calls.receive_message(self._call, self._on_message)
        self._reader.on_message(message)

    def _on_close(self, event: Event) -> None:
        was_cancelled = core_calls.was_cancelled(event)
        ends = False
        if was_cancelled:
            with self.lock:
                # With an operation in flight, its event is what ends the call.
                ends = not self._is_over and not self._is_sending
                self._give_up()
        self._reader.on_closed(was_cancelled)
        if ends:
            self._loop.call_ended()
