"""How many requests somebody has accepted and not yet answered: what unloading and shutting down wait for."""

from __future__ import annotations

import threading
from typing import Final

# What a request is told that comes too late (reference, section 6.3).
STOPPED: Final = "Server is stopping, scheduler for model has stopped accepting new inference requests"


class InFlight:
    """A count that can be closed to newcomers and waited on. Any thread may call.

    A lock guards all attributes: its own, or its owner's, who then calls `enter_held` and `leave_held` with it held.
    """

    __slots__ = ("_is_stopped", "_lock", "_none_left", "count")

    def __init__(self, lock: threading.Lock | None = None) -> None:
        self._lock = threading.Lock() if lock is None else lock
        self.count = 0
        self._is_stopped = False
        # Made by the first who waits, and set when the count reaches zero.
        self._none_left: threading.Event | None = None

    def enter(self, *, is_continuing: bool = False) -> bool:
        """Count one more, unless stopped; `is_continuing` says that it belongs to what was accepted before."""
        with self._lock:
            return self.enter_held(is_continuing=is_continuing)

    def enter_held(self, *, is_continuing: bool = False) -> bool:
        """As `enter`; the caller holds the lock."""
        if self._is_stopped and not is_continuing:
            return False
        self.count += 1
        return True

    def leave(self) -> None:
        """Count one less."""
        with self._lock:
            self.leave_held(1)

    def leave_held(self, count: int) -> None:
        """Count `count` less; the caller holds the lock."""
        self.count -= count
        if not self.count and self._none_left is not None:
            self._none_left.set()
            self._none_left = None

    def stop(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._is_stopped = True

    def wait_until_none(self, timeout_s: float | None) -> bool:
        """Wait for the count to be zero; False when that took longer than `timeout_s`."""
        with self._lock:
            if not self.count:
                return True
            if self._none_left is None:
                self._none_left = threading.Event()
            none_left = self._none_left
        return none_left.wait(timeout_s)


class HasInFlight:
    """A scheduler, as whoever unloads its model sees it: what it has accepted is counted in `_in_flight`."""

    _in_flight: InFlight

    def stop(self) -> None:
        """Refuse new requests, or new sequences, from now on; those that were accepted go on."""
        self._in_flight.stop()

    def wait_until_idle(self, timeout_s: float | None) -> bool:
        """Wait until no accepted request is unanswered; False when that took too long."""
        return self._in_flight.wait_until_none(timeout_s)

    @property
    def in_flight(self) -> int:
        """How many accepted requests are unanswered."""
        return self._in_flight.count
