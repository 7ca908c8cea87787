"""What decides which waiting requests run together: the protocol of the deciders, and the simplest of them.

Pure: no threads, locks, clocks or tensor contents. Time is an argument, in nanoseconds on the monotonic clock. The
driver (`model_scheduler.py`) holds the lock under which these are called.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest

# `ready_at`'s answer when nothing is queued: no time at which a batch would be ready.
NEVER = -1


def compared_shapes(spec: ModelSpec, request: InferenceRequest) -> object:
    """What must be equal for two requests to share a batch (reference, section 6.3)."""
    inputs = request.inputs
    shapes = tuple(inputs[name].array.shape[1:] for name in spec.compared_inputs if name in inputs)
    return (shapes, frozenset(inputs)) if spec.any_optional else shapes


@dataclass(slots=True)
class Batch:
    """Requests to run together, and those that left the queue without running.

    `dropped` requests were cancelled or are past their deadline; they are owed an answer like all others.
    """

    requests: list[InferenceRequest]
    size: int
    dropped: list[InferenceRequest]


class Batcher(Protocol):
    """A queue that says when a batch is ready and hands it out."""

    # Whether requests may wait for too long here, and whether one may run before another that came earlier.
    can_expire: bool
    can_reorder: bool
    # Whether a request that finds nothing queued, and an idle instance, runs at once and by itself.
    runs_lone_requests: bool
    # Whether a batch may have several requests.
    forms_batches: bool

    def add(self, request: InferenceRequest, now_ns: int) -> None:
        """Queue a validated request; raises InferenceError when the queue is full."""

    def remove(self, request: InferenceRequest) -> None:
        """Take a queued request out; for one that was cancelled."""

    def expires_at(self) -> int:
        """When `expire` has something to do, at the earliest; NEVER if nothing can expire."""

    def expire(self, now_ns: int) -> list[InferenceRequest]:
        """Take out the requests that have waited for too long. `take` does this too."""

    def ready_at(self, now_ns: int) -> int:
        """When an idle instance should take a batch: `now_ns` or earlier if at once, NEVER if nothing is queued."""

    def take(self, now_ns: int) -> Batch:
        """The batch to run now. It may hold no requests, when all that were ready had been cancelled."""

    def drain(self) -> list[InferenceRequest]:
        """Everything queued, removed; for when the model can no longer run."""

    def __len__(self) -> int:
        """How many requests are queued."""


def is_abandoned(request: InferenceRequest, now_ns: int) -> bool:
    """Whether nobody waits for the answer any more: cancelled, or past the deadline."""
    return request.cancellation.is_cancelled or 0 < request.deadline_ns <= now_ns


class SingleRequestQueue:
    """The default scheduler's queue (reference, section 6.2): first in, first out, one request an execution."""

    can_expire = False
    can_reorder = False
    runs_lone_requests = True
    forms_batches = False

    def __init__(self) -> None:
        self._queue: OrderedDict[InferenceRequest, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, request: InferenceRequest, now_ns: int) -> None:
        self._queue[request] = None

    def remove(self, request: InferenceRequest) -> None:
        self._queue.pop(request, None)

    def expires_at(self) -> int:
        return NEVER

    def expire(self, now_ns: int) -> list[InferenceRequest]:
        return []

    def ready_at(self, now_ns: int) -> int:
        return now_ns if self._queue else NEVER

    def take(self, now_ns: int) -> Batch:
        dropped: list[InferenceRequest] = []
        while self._queue:
            request, _ = self._queue.popitem(last=False)
            if not is_abandoned(request, now_ns):
                return Batch([request], request.batch_size, dropped)
            dropped.append(request)
        return Batch([], 0, dropped)

    def drain(self) -> list[InferenceRequest]:
        waiting = list(self._queue)
        self._queue.clear()
        return waiting
