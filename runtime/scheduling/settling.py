"""How long an instance waits, after a batch of sequences, for the next requests of those it has just answered.

Pure, as `batcher.py` says. Without it clients fall into two groups that take turns, each half a batch: while one
group's batch runs, the other's requests come in, and run as soon as the instance is free. A short wait joins them.
Knows no sequence: it is told how many requests are ready and how many more may come.
"""

from __future__ import annotations

# At most so many times as long as the last batch took is waited, and no longer than this.
_MOST_BATCHES = 3
_LONGEST_NS = 1_000_000
# What is shorter is not worth a timer.
_SHORTEST_NS = 50_000
# A wait pays that brings one more for so many that were ready.
_READY_FOR_ONE = 4
# After so many waits in a row that did not pay, no wait for so many batches.
_PATIENCE = 4
_PAUSE = 64


class Settling:
    """Of one instance. While `is_on` a batch is over and the next has not been taken; only then is the rest asked."""

    __slots__ = ("_goal", "_misses", "_pause", "_ready", "_until_ns", "_worth", "is_on")

    def __init__(self) -> None:
        self.is_on = False
        self._until_ns = 0
        # How many requests were ready when the wait began, with how many more it pays, and with how many it ends.
        self._ready = 0
        self._worth = 0
        self._goal = 0
        self._misses = 0
        self._pause = 0

    def begin(self, ready: int, coming: int, took_ns: int, now_ns: int, *, most: int) -> None:
        """A batch that took `took_ns` is over, and `coming` sequences in it may go on; `most` fit in a batch."""
        wait_ns = min(took_ns * _MOST_BATCHES, _LONGEST_NS)
        goal = min(ready + coming, most)
        if wait_ns < _SHORTEST_NS or goal <= ready:
            return
        if self._pause:
            self._pause -= 1
            return
        self.is_on = True
        self._until_ns = now_ns + wait_ns
        self._ready, self._goal = ready, goal
        self._worth = ready // _READY_FOR_ONE

    def waits_until(self, ready: int, now_ns: int) -> int:
        """When to run the requests that are ready: 0 for at once."""
        return self._until_ns if ready < self._goal and now_ns < self._until_ns else 0

    def end(self, ready: int) -> None:
        """A batch is taken, of those that are ready."""
        self.is_on = False
        if ready - self._ready > self._worth:
            self._misses = 0
            return
        self._misses += 1
        if self._misses == _PATIENCE:
            self._misses = 0
            self._pause = _PAUSE
