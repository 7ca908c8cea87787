"""The driver of the rate limiter: work that is due waits here until its instance has what it needs.

Owns the lock around the limiter of a server, and the giving back when a batch is over. Knows nothing of requests.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from cantata.grammars.model_config import ModelInstanceGroup, ModelRateLimiter
from cantata.runtime.backends.backend import BackendInstance, InstancePlacement
from cantata.runtime.execution.rate_limiter import GLOBAL, InstanceLimit, RateLimiter, ResourceCount
from cantata.runtime.execution.worker_pool import Dispatcher, Work


class InstanceWork(Work, Protocol):
    """Work of one instance."""

    backend_instance: BackendInstance
    # Whether it may return from `run` while the instance is still busy.
    leaves_slow_batches: bool


class LimitedWork:
    """Work that has been given its resources, and gives them back when it has run.

    A model with `async def execute` gives them back when the instance can take its next batch.
    """

    __slots__ = ("_dispatch", "_limit", "_work")

    def __init__(self, dispatch: LimitedDispatch, work: InstanceWork, limit: InstanceLimit) -> None:
        self._dispatch = dispatch
        self._work = work
        self._limit = limit

    @property
    def is_quick(self) -> bool:
        return self._work.is_quick

    @property
    def is_quick_alone(self) -> bool:
        # Its resources are taken until the instance is free: by a worker, which waits for that.
        return self._work.is_quick_alone and not self._work.leaves_slow_batches

    @property
    def may_wait(self) -> bool:
        return self._work.may_wait

    def run(self) -> None:
        try:
            self._work.run()
        finally:
            self._dispatch.finished(self._limit)


class LimitedDispatch:
    """A Dispatcher that lets instances run as the rate limiter says. `_lock` guards the limiter."""

    def __init__(self, workers: Dispatcher, counts: Iterable[ResourceCount]) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._limiter: RateLimiter[LimitedWork] = RateLimiter(counts)

    def add(self, instances: Sequence[tuple[ModelInstanceGroup, InstancePlacement, BackendInstance]]) -> None:
        """Take instances of a model, each with its group and its place.

        Raises InferenceError, and takes none, when they could never run.
        """
        members = [(instance, instance_limit(group, placement)) for group, placement, instance in instances]
        with self._lock:
            self._limiter.add(members)

    def remove(self, instances: Sequence[BackendInstance]) -> None:
        """Forget instances that were added, and run no more."""
        with self._lock:
            started = self._limiter.remove(instances)
        self._start(started)

    def dispatch(self, work: Work) -> None:
        """Have `work`, which is an instance's, run when its turn has come."""
        instance_work: InstanceWork = work  # type: ignore[assignment]
        instance = instance_work.backend_instance
        with self._lock:
            limit = self._limiter.limit_of(instance)
            started = self._limiter.stage(instance, LimitedWork(self, instance_work, limit))
        self._start(started)

    def finished(self, limit: InstanceLimit) -> None:
        """Take back what work with that limit was given."""
        with self._lock:
            started = self._limiter.finish(limit)
        self._start(started)

    def _start(self, started: Sequence[LimitedWork]) -> None:
        for work in started:
            self._workers.dispatch(work)


def instance_limit(group: ModelInstanceGroup, placement: InstancePlacement) -> InstanceLimit:
    """What an instance of that group needs at that place."""
    limiter = group.rate_limiter or ModelRateLimiter()
    needs: dict[tuple[str, int], int] = {}
    for resource in limiter.resources:
        key = (resource.name, GLOBAL if resource.global_ else placement.device_id)
        needs[key] = needs.get(key, 0) + resource.count
    return InstanceLimit(needs, max(limiter.priority, 1))
