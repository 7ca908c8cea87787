"""How long what a process does may take: whatever runs longer than its limit is reported, once.

Keeps one appointment with the timer however many batches there are, since most end long before their time is up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.scheduling.timer import Timer


class TimeLimit:
    """Watches what has begun and not ended. `_lock` guards `_deadlines` and `_is_armed`."""

    def __init__(self, timer: Timer, limit_s: float, on_excess: Callable[[], None]) -> None:
        self._timer = timer
        self._limit_ns = int(limit_s * 1e9)
        self._on_excess = on_excess
        self._lock = threading.Lock()
        # In the order of beginning, which is that of the deadlines.
        self._deadlines: dict[int, int] = {}
        self._is_armed = False

    def begin(self, key: int) -> None:
        """Something begins now."""
        deadline_ns = monotonic_ns() + self._limit_ns
        with self._lock:
            self._deadlines[key] = deadline_ns
            must_arm, self._is_armed = not self._is_armed, True
        if must_arm:
            self._timer.call_at(deadline_ns, self._look)

    def end(self, key: int) -> None:
        """It has ended."""
        with self._lock:
            self._deadlines.pop(key, None)

    def _look(self) -> None:
        now_ns = monotonic_ns()
        with self._lock:
            first_ns = next(iter(self._deadlines.values()), None)
            self._is_armed = first_ns is not None and first_ns > now_ns
        if first_ns is None:
            return
        if first_ns <= now_ns:
            self._on_excess()
        else:
            self._timer.call_at(first_ns, self._look)
