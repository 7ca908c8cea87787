"""What a caching scheduler is made of, and which requests may wait for which, and for how long.

Pure but for naming the parts. Knows no flights, locks or figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cantata.runtime.caching.cache_threads import CacheThreads
from cantata.runtime.caching.response_cache import ResponseCache
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.batcher import NEVER
from cantata.runtime.scheduling.priority_queue import QueuePolicies
from cantata.runtime.scheduling.response_order import ResponseOrder
from cantata.runtime.scheduling.timer import Timer


class CachedScheduler(Protocol):
    """The scheduler whose answers are kept; a ModelScheduler or an EnsembleScheduler."""

    def enqueue(self, request: InferenceRequest) -> None: ...
    def close(self) -> None: ...
    def statistics(self, name: str, version: str) -> ModelStatistics: ...
    def failures(self) -> dict[str, int]: ...
    def pending(self) -> int: ...
    @property
    def unavailability(self) -> InferenceError | None: ...


@dataclass(frozen=True, slots=True)
class CachingParts:
    """What a server's caching schedulers share."""

    cache: ResponseCache
    threads: CacheThreads
    timer: Timer
    workers: WorkerPool


@dataclass(frozen=True, slots=True)
class CachingRules:
    """How one model's requests are treated.

    `order` is given where answers must leave in the order of their requests; `policies` where the model's own queue has
    levels or timeouts, which then hold here too. `calls_nobody`: the model waits for no other, so that whoever calls it
    may wait for it. `has_own_timeouts`: a request's own timeout holds, as it does in an ensemble.
    """

    order: ResponseOrder | None
    policies: QueuePolicies | None
    calls_nobody: bool
    has_own_timeouts: bool

    def may_wait(self, request: InferenceRequest, leader: InferenceRequest) -> bool:
        """Whether a request may wait for the answer to another that is equal.

        Not if its caller keeps an instance that the other may need, and not behind a request that is less urgent.
        """
        if not self.calls_nobody and any(execution.instance is not None for execution in request.waiting):
            return False
        policies = self.policies
        return policies is None or policies.level_of(request) >= policies.level_of(leader)

    def expires_at(self, request: InferenceRequest, now_ns: int) -> int:
        """When a request that begins to wait now has waited for too long; NEVER if it never has."""
        times = [] if self.policies is None else [self.policies.rejects_at(request, now_ns)]
        if request.deadline_ns:
            times.append(request.deadline_ns)
        if self.has_own_timeouts and request.timeout_us:
            times.append(now_ns + request.timeout_left_us(now_ns) * 1000)
        return min((time_ns for time_ns in times if time_ns != NEVER), default=NEVER)
