"""A caching scheduler whose inner scheduler, timer and threads do what the test says, when it says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np

from cantata.runtime.caching.local_cache import LocalCache
from cantata.runtime.caching.request_key import RequestKey
from cantata.runtime.caching.response_cache import CachedResponse
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.observe.snapshots import CacheFigures, ModelStatistics
from cantata.runtime.observe.statistics import StatisticsCounter
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.caching_rules import CachingParts, CachingRules
from cantata.runtime.scheduling.caching_scheduler import CachingScheduler
from cantata.runtime.scheduling.priority_queue import QueuePolicies
from cantata.runtime.scheduling.response_order import ResponseOrder
from cantata.runtime.tensor import tensor_of_array
from tests.support.requests import RecordingSender, identity_spec


class PuppetScheduler:
    """Takes requests, and answers each when the test says so (CachedScheduler)."""

    def __init__(self) -> None:
        self.running: list[InferenceRequest] = []
        self.on_enqueue: Callable[[InferenceRequest], None] | None = None
        self.is_closed = False
        self.unavailability: InferenceError | None = None
        self.statistics_counter = StatisticsCounter()

    def enqueue(self, request: InferenceRequest) -> None:
        if self.on_enqueue is not None:
            self.on_enqueue(request)
        self.running.append(request)

    def started(self, *requests: InferenceRequest) -> None:
        """An instance has taken these."""
        for request in requests:
            request.started_ns = 1

    def answer(self, request: InferenceRequest, *values: float) -> InferenceResponse:
        """End a running request with OUTPUT = `values`."""
        outputs = {"OUTPUT": tensor_of_array(np.array(values, np.float32))}
        response = InferenceResponse("identity", 1, request.id, outputs)
        self.end(request, response)
        return response

    def end(self, request: InferenceRequest, response: InferenceResponse | None) -> None:
        self.running.remove(request)
        request.respond(response, True)

    def fail(self, request: InferenceRequest, error: InferenceError) -> None:
        self.running.remove(request)
        request.fail(error)

    def close(self) -> None:
        self.is_closed = True

    def statistics(self, name: str, version: str) -> ModelStatistics:
        return self.statistics_counter.snapshot(name, version)

    def failures(self) -> dict[str, int]:
        return dict(self.statistics_counter.failures)

    def pending(self) -> int:
        return len(self.running)


class ManualTimer:
    """Keeps what is to be called, for the test to call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Callable[[], None]]] = []

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> None:
        self.calls.append((time_ns, callback))

    def fire(self) -> None:
        calls, self.calls = self.calls, []
        for _, callback in calls:
            callback()


class ManualThreads:
    """Keeps work until the test runs it; takes none while `is_full`."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.is_full = False

    def run(self, work: Callable[[], None]) -> bool:
        if not self.is_full:
            self.work.append(work)
        return not self.is_full

    def run_all(self) -> None:
        while self.work:
            self.work.pop(0)()

    def close(self) -> None:
        assert not self.work


class RemoteCache:
    """A cache elsewhere: a dictionary."""

    is_remote = True

    def __init__(self) -> None:
        self.entries: dict[bytes, CachedResponse] = {}

    def start(self) -> None: ...

    def lookup(self, key: bytes) -> CachedResponse | None:
        return self.entries.get(key)

    def insert(self, key: bytes, owner: object, response: CachedResponse) -> None:
        self.entries[key] = response

    def forget(self, owner: object) -> None: ...

    def figures(self) -> CacheFigures:
        return CacheFigures()

    def close(self) -> None: ...


class Caching:
    """One caching scheduler and all that it stands on."""

    def __init__(
        self,
        *,
        is_remote: bool = False,
        is_ordered: bool = False,
        policies: QueuePolicies | None = None,
        calls_nobody: bool = True,
        has_own_timeouts: bool = False,
    ) -> None:
        self.inner = PuppetScheduler()
        self.timer = ManualTimer()
        self.threads = ManualThreads()
        self.workers = WorkerPool()
        self.cache: Any = RemoteCache() if is_remote else LocalCache(1 << 20)
        parts = CachingParts(self.cache, cast(Any, self.threads), cast(Any, self.timer), self.workers)
        rules = CachingRules(
            ResponseOrder() if is_ordered else None, policies, calls_nobody, has_own_timeouts
        )
        key = RequestKey(identity_spec(), b"load", with_parameters=True)
        self.scheduler = CachingScheduler(self.inner, key, parts, rules)
        self._ids = 0

    def request(self, value: float = 1.0, **fields: Any) -> InferenceRequest:
        """A validated request whose input is `value`."""
        self._ids += 1
        request = InferenceRequest(
            "identity",
            {"INPUT": tensor_of_array(np.array([value], np.float32))},
            RecordingSender(),
            1,
            model_version=1,
            id=str(self._ids),
            **fields,
        )
        request.batch_size = 1
        return request

    def enqueue(self, *values: float, **fields: Any) -> list[InferenceRequest]:
        requests = [self.request(value, **fields) for value in values]
        for request in requests:
            self.scheduler.enqueue(request)
        return requests

    def refuse(self, error: InferenceError) -> None:
        """Have the inner scheduler refuse what comes from now on."""
        self.inner.on_enqueue = partial(_raise, error)

    def figures(self) -> tuple[int, int, int, int]:
        """How many requests succeeded, failed, hit and missed."""
        statistics = self.scheduler.statistics("identity", "1").inference_stats
        return (
            statistics.success.count,
            statistics.fail.count,
            statistics.cache_hit.count,
            statistics.cache_miss.count,
        )


def values_of(request: InferenceRequest) -> list[float] | str | None:
    """What a request was answered with: its output, its error's text, or None so far."""
    sender = request.sender
    while not isinstance(sender, RecordingSender):
        sender = cast(Any, sender).inner if hasattr(sender, "inner") else cast(Any, sender).sender
    if not sender.finals:
        return None
    response = sender.responses[-1]
    if response is None:
        return []
    if response.error is not None:
        return response.error.message or response.error.code.value
    assert response.id == request.id
    return cast("list[float]", response.outputs["OUTPUT"].array.tolist())


def _raise(error: InferenceError, _: InferenceRequest) -> None:
    raise error
