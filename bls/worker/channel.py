"""Messages between the server and a model's process: plain tuples over a socket that keeps their bounds.

Owns their form and their limits. Knows nothing of what they mean. Messages are marshalled: it is by far the cheapest
form that Python has, and, unlike pickle's, what it reads is data, never code.
"""

from __future__ import annotations

import marshal
import os
import select
import socket
import threading
from collections import deque
from typing import Any, Final, TypeAlias

from cantata.bls.worker.arena import ArenaReader, ArenaWriter
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.execution.file_watch import FileWatch
from cantata.runtime.execution.worker_pool import Work

# A kind (an integer) and what belongs to it.
Message: TypeAlias = tuple[Any, ...]

# Without references between objects, which Python's younger formats have, and look for.
_FORMAT: Final = 2
# Larger messages go through the arena.
_MOST_BYTES: Final = 60_000
_BUFFER_BYTES: Final = 1 << 16
# Two processes that wake each other for each message spend most of a quick batch on that. So long does the one that
# waits for the end of a batch look for it.
_AWAKE_NS: Final = 100_000
# The kind of a message whose text is in the arena.
_IN_ARENA: Final = 0


class ChannelClosedError(Exception):
    """The other process has ended, or no longer talks."""


class Channel:
    """One end of a socket pair. Any thread may send; one thread at a time may receive."""

    def __init__(self, end: socket.socket, writer: ArenaWriter, reader: ArenaReader) -> None:
        self._socket = end
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._writer = writer
        self._reader = reader
        # What `send_soon` could not send at once; guarded by `_lock`, and sent by one thread.
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        # Where it is heard of messages; the receiver's own.
        self._watch: FileWatch | None = None

    def send(self, message: Message) -> None:
        """Send a message, waiting while the socket is full; raises ChannelClosedError, or ArenaFullError."""
        try:
            self._socket.send(self._encoded(message))
        except OSError as error:
            raise ChannelClosedError from error

    def send_soon(self, message: Message) -> None:
        """Send a message without ever waiting, after those sent so before. One to a closed channel is dropped."""
        data = self._encoded(message)
        with self._lock:
            if self._waiting:
                self._waiting.append(data)
                return
            try:
                self._socket.send(data, socket.MSG_DONTWAIT)
                return
            except BlockingIOError:
                self._waiting.append(data)
            except OSError:
                return
        threading.Thread(target=self._send_waiting, name="cantata-channel", daemon=True).start()

    def has_message_within(self, milliseconds: int, *, stays_awake: bool) -> bool:
        """Wait so long for a message, or for the end of the channel; whether there is one.

        `stays_awake` looks again and again at first, for about as long as it takes to wake a sleeping thread.
        """
        return (stays_awake and self.looks_for_message(_AWAKE_NS)) or bool(self._poll.poll(milliseconds))

    def looks_for_message(self, nanoseconds: int) -> bool:
        """Look again and again, for so long, for a message or for the end of the channel; whether there is one."""
        look = self._poll.poll
        end_ns = monotonic_ns() + nanoseconds
        while monotonic_ns() < end_ns:
            if look(0):
                return True
            # The other process may need this very processor.
            os.sched_yield()
        return False

    def tell(self, watch: FileWatch | None) -> None:
        """Have `watch` hear of messages from now on; None before somebody waits for them by himself."""
        before = self._watch
        if before is watch:
            return
        self._watch = None
        if before is not None:
            before.remove(self._socket.fileno())
        if watch is not None:
            watch.add(self._socket.fileno())
            self._watch = watch

    def leave(self, work: Work) -> None:
        """Have `work` go on where it is heard of messages, once there is one, or the channel has ended."""
        assert self._watch is not None
        self._watch.wait_for(self._socket.fileno(), work)

    def receive(self) -> Message:
        """The next message; raises ChannelClosedError when there are no more, or when this is none."""
        try:
            data = self._socket.recv(_BUFFER_BYTES)
            if not data:
                raise ChannelClosedError
            message = marshal.loads(data)
            if message[0] == _IN_ARENA:
                message = marshal.loads(self._reader.bytes_of(message[1]))
        except (OSError, EOFError, ValueError, TypeError, LookupError) as error:
            raise ChannelClosedError from error
        if not isinstance(message, tuple):
            raise ChannelClosedError
        return message

    def shut_down(self) -> None:
        """End both directions: whoever receives gets what was sent before, and then the end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Release the socket; nobody may be receiving any more."""
        self.tell(None)
        self._socket.close()

    def _encoded(self, message: Message) -> bytes:
        data = marshal.dumps(message, _FORMAT)
        if len(data) <= _MOST_BYTES:
            return data
        return marshal.dumps((_IN_ARENA, self._writer.store_bytes(data)), _FORMAT)

    def _send_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                data = self._waiting[0]
            try:
                self._socket.send(data)
            except OSError:
                with self._lock:
                    self._waiting.clear()
                return
            with self._lock:
                self._waiting.popleft()


def open_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
