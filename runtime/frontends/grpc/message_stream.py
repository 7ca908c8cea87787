"""What a call of many messages sends: a queue that any thread fills, and that the loop's thread empties.

Producers wait while the queue is long. Knows no message but as bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.call import Call
from cantata.runtime.frontends.grpc.call_loop import CallLoop

# A producer waits while more than this is queued.
_MOST_MESSAGES: Final = 64
_MOST_BYTES: Final = 16 * 1024 * 1024
# How often a producer that waits looks whether it still has to, in seconds.
_LOOK_AGAIN_S: Final = 1.0


class StreamReader(Protocol):
    """What is done with what a stream brings. All are called on the loop's thread."""

    def on_message(self, message: bytes | memoryview) -> None: ...

    def on_half_close(self) -> None:
        """The client sends no more."""

    def on_closed(self, was_cancelled: bool) -> None:
        """The call is over: answered, or the client is gone and what is sent from now on is dropped."""


class MessageStream:
    """One streaming call. Any thread may send or finish; messages leave in the order in which they were queued.

    `lock` guards the attributes below it, and what the reader keeps in step with the queue. Invariant: where the
    queue or `_status` holds something and the call can send, `_is_emptied` says that the loop's thread will look.
    """

    def __init__(self, loop: CallLoop, call: Call, reader: StreamReader) -> None:
        self._loop = loop
        self._call = call
        self._reader = reader
        self.lock = threading.Lock()
        self._room = threading.Condition(self.lock)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        # How the call is to end, once the queue is empty.
        self._status: tuple[int, str] | None = None
        # Whether the loop's thread has been asked to empty the queue, and has not begun to.
        self._is_emptied = False
        # The call has ended: what is queued from now on is dropped.
        self._is_over = False

    def send(self, message: bytes) -> None:
        """Queue one message."""
        self.send_from(lambda: (message,))

    def send_from(self, produce: Callable[[], Sequence[bytes]]) -> None:
        """Queue what `produce` returns; it runs under `lock`, so it decides the order. It must be quick."""
        with self.lock:
            messages = produce()
            if self._is_over or self._status is not None or not messages:
                return
            for message in messages:
                self._queue.append(message)
                self._queued_bytes += len(message)
            if self._is_emptied:
                return
            self._is_emptied = True
        self._loop.run_here(self._empty)

    def finish(self, code: int = codes.OK, details: str = "") -> None:
        """End the call when what is queued has been sent; only the first call counts."""
        with self.lock:
            if self._is_over or self._status is not None:
                return
            self._status = (code, details)
            self._room.notify_all()
            if self._is_emptied:
                return
            self._is_emptied = True
        self._loop.run_here(self._empty)

    def wait_until_ready(self, is_pointless: Callable[[], bool] = lambda: False) -> None:
        """Block while the queue is long; never on the loop's thread, which is the one that empties it.

        `is_pointless` is looked at about once a second: nobody may want what the caller would send.
        """
        if self._loop.is_current_thread():
            return
        with self.lock:
            while self._is_full() and not self._is_over and self._status is None and not is_pointless():
                self._room.wait(_LOOK_AGAIN_S)

    # The call's reader; on the loop's thread.

    @property
    def is_behind(self) -> bool:
        return self._is_full()

    def on_size(self, size: int) -> None:
        """A stream's messages are judged when they are there: each is answered by itself."""

    def on_message(self, message: bytes | memoryview) -> None:
        self._reader.on_message(message)

    def on_half_close(self) -> None:
        self._reader.on_half_close()

    def on_writable(self) -> None:
        self._empty()

    def on_closed(self, was_cancelled: bool) -> None:
        with self.lock:
            self._is_over = True
            self._queue.clear()
            self._queued_bytes = 0
            self._room.notify_all()
        self._reader.on_closed(was_cancelled)

    def _is_full(self) -> bool:
        return len(self._queue) >= _MOST_MESSAGES or self._queued_bytes >= _MOST_BYTES

    def _empty(self) -> None:
        """Hand the call what is queued, unless it cannot send what it has."""
        call = self._call
        with self.lock:
            self._is_emptied = False
            if call.is_sending or self._is_over:
                return
            messages = list(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
            self._room.notify_all()
            status = self._status
        if messages:
            call.send(messages)
            call.caught_up()
        if status == (codes.OK, ""):
            call.finish()
        elif status is not None:
            call.fail(*status)
