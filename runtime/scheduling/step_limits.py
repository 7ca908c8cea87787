"""The driver of `max_inflight_requests`: one limiter a step, shared by all requests of an ensemble.

Owns the lock and the waiting around `cantata.dag.limiter`. Steps that find no place are queued, never blocked; what
is blocked, without ever giving up, is a step that streams ahead of them.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from cantata.dag.limiter import StepLimiter
from cantata.runtime.request import Cancellation

T = TypeVar("T")


class StepLimits(Generic[T]):
    """The places of each step of one ensemble. `_condition` guards the limiters."""

    def __init__(self, limit: int, step_count: int) -> None:
        self._condition = threading.Condition()
        self._limiters: list[StepLimiter[T]] = [StepLimiter(limit) for _ in range(step_count)]

    def acquire(self, step: int, item: T) -> bool:
        """Whether `item` may be dispatched now; else a `release` hands it out in its turn."""
        with self._condition:
            return self._limiters[step].acquire(item)

    def release(self, step: int) -> T | None:
        """Give back a place of `step`; returns what is to be dispatched in it, if anything waited."""
        with self._condition:
            following = self._limiters[step].release()
            self._condition.notify_all()
        return following

    def withdraw(self, step: int, item: T) -> bool:
        """Take `item` out of those that wait for a place; False where it has got one."""
        with self._condition:
            is_out = self._limiters[step].withdraw(item)
            self._condition.notify_all()
        return is_out

    def wait_for_room(self, cancellation: Cancellation) -> None:
        """Block until no step has requests waiting for a place, or the request is cancelled."""
        key = object()
        cancellation.add_listener(key, self._wake_all)
        try:
            with self._condition:
                self._condition.wait_for(lambda: cancellation.is_cancelled or self._has_room())
        finally:
            cancellation.remove_listener(key)

    def _has_room(self) -> bool:
        return not any(limiter.waiting for limiter in self._limiters)

    def _wake_all(self) -> None:
        with self._condition:
            self._condition.notify_all()
