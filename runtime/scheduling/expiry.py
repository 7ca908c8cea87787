"""Requests that end when their own `timeout` is over: those that run, and those that lead to others.

Owns when each is cancelled. What waits for a model is its queue's affair, which may have another limit.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import weakref
from functools import partial

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.request import Cancellation, InferenceRequest
from cantata.runtime.scheduling.timer import Timer

# From this many entries on, those of requests that are over are looked for.
_MANY = 1024


class Expiries:
    """The requests of one model version. Any thread may call. `_lock` guards all."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        # When, in which order they came, and whom to tell, if it is still there: a request that is over is not kept.
        self._heap: list[tuple[int, int, weakref.ref[Cancellation]]] = []
        self._order = itertools.count()
        self._most = _MANY
        # When the timer will next look; 0 if it will not.
        self._armed_ns = 0

    def add(self, request: InferenceRequest) -> None:
        """Cancel a request that has a timeout when that is over, unless what it is part of ends before."""
        at_ns = request.received_ns + request.timeout_us * 1000
        cancellation = request.cancellation
        if 0 < cancellation.expires_ns <= at_ns:
            return
        cancellation.expires_ns = at_ns
        with self._lock:
            if len(self._heap) >= self._most:
                self._forget_those_over()
            heapq.heappush(self._heap, (at_ns, next(self._order), weakref.ref(cancellation)))
            is_next = not self._armed_ns or at_ns < self._armed_ns
            if is_next:
                self._armed_ns = at_ns
        if is_next:
            self._timer.call_at(at_ns, partial(self._expire, at_ns))

    def _expire(self, armed_ns: int) -> None:
        now_ns = monotonic_ns()
        due: list[Cancellation] = []
        with self._lock:
            if armed_ns != self._armed_ns:
                # It has been called earlier, for another request.
                return
            while self._heap and self._heap[0][0] <= now_ns:
                cancellation = heapq.heappop(self._heap)[2]()
                if cancellation is not None:
                    due.append(cancellation)
            next_ns = self._armed_ns = self._heap[0][0] if self._heap else 0
        if next_ns:
            self._timer.call_at(next_ns, partial(self._expire, next_ns))
        for cancellation in due:
            cancellation.expire()

    def _forget_those_over(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2]() is not None]
        heapq.heapify(self._heap)
        self._most = max(_MANY, 2 * len(self._heap))
