"""How many requests of one ensemble step may be in flight at once, over all runs of that ensemble.

Pure: it counts and queues opaque items, first come first served, and knows no lock, thread or time. There is
no giving up: an item waits until its turn comes or it is withdrawn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class StepLimiter(Generic[T]):
    """The places of one step (`max_inflight_requests`; 0 means no limit).

    Invariants: at most `limit` places are taken; nobody waits while a place is free; whoever is in the queue
    holds no place. Each granted place is released once, at the step's final response or when it was not
    enqueued.
    """

    __slots__ = ("_in_flight", "_limit", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_flight = 0
        self._waiting: OrderedDict[T, None] = OrderedDict()

    @property
    def in_flight(self) -> int:
        """How many places are taken."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """How many items stand in the queue: what a producer ahead of this step should slow down for."""
        return len(self._waiting)

    def acquire(self, item: T) -> bool:
        """Whether `item` may go ahead now; else it is queued, and `release` hands it out in its turn."""
        if self._limit and self._in_flight >= self._limit:
            self._waiting[item] = None
            return False
        self._in_flight += 1
        return True

    def release(self) -> T | None:
        """Give a place back; the item that has it now and is to be dispatched, if any was waiting."""
        if self._waiting:
            return self._waiting.popitem(last=False)[0]
        self._in_flight -= 1
        return None

    def withdraw(self, item: T) -> bool:
        """Take a cancelled item out of the queue; False when it went ahead, or never came."""
        if item not in self._waiting:
            return False
        del self._waiting[item]
        return True

    def check_invariants(self) -> None:
        """Raise AssertionError where the counts contradict each other."""
        assert self._in_flight >= 0
        assert not self._limit or self._in_flight <= self._limit
        assert not self._waiting or self._in_flight == self._limit
