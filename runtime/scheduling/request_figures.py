"""What becomes of a model version's requests, as figures: the part of it that all its schedulers count alike.

Owns the reading of the figures, and the accounts of requests: of those answered with their batch, and of those answered
one by one, by their model or without having run.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.execution import Execution
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.observe.statistics import REASON_BACKEND, ComputeTimes, StatisticsCounter
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.in_flight import InFlight


class RequestFigures:
    """The owner of requests from when they are accepted (RequestOwner).

    `lock` is their scheduler's, and guards `statistics` and `in_flight`. It is never held while a request is answered.
    """

    __slots__ = ("_in_flight", "_lock", "_statistics")

    def __init__(self, lock: threading.Lock, statistics: StatisticsCounter, in_flight: InFlight) -> None:
        self._lock = lock
        self._statistics = statistics
        self._in_flight = in_flight

    def snapshot(self, name: str, version: str) -> ModelStatistics:
        """The figures now."""
        with self._lock:
            return self._statistics.snapshot(name, version)

    def failures(self) -> dict[str, int]:
        """How many requests failed, by reason."""
        with self._lock:
            return dict(self._statistics.failures)

    def responded(self, request: InferenceRequest, response: InferenceResponse | None, final: bool) -> None:
        """Account for a response that a model sent by itself (RequestOwner)."""
        now_ns = monotonic_ns()
        computed_ns = now_ns - request.started_ns
        error = None if response is None else response.error
        with self._lock:
            statistics = self._statistics
            statistics.count_response(request, response, now_ns, final)
            if not final:
                return
            self._in_flight.leave_held(1)
            if error is None:
                times = request.times = ComputeTimes(0, computed_ns, 0)
                statistics.count_stream(request, now_ns)
                if statistics.latencies is not None:
                    statistics.tell_latencies(request, request.started_ns, times, now_ns)
            else:
                statistics.count_failure(request, error.code, REASON_BACKEND, now_ns)

    def count_batch(
        self,
        execution: Execution,
        requests: Sequence[InferenceRequest | None],
        end_ns: int,
    ) -> None:
        """Count a batch, and its requests that are answered with it; the caller holds the lock.

        `requests` are the batch's, with None for rows that are nobody's.
        """
        times = execution.times(end_ns)
        statistics = self._statistics
        start_ns = execution.start_ns
        responses = execution.responses
        answered = failed = whole_ns = queue_ns = 0
        for index, request in enumerate(requests):
            response = responses[index]
            if response is None or request is None:
                continue
            # Accounted for here, with its batch, and not again when the response is sent.
            request.owner = None
            request.times = times
            answered += 1
            if response.error is None:
                whole_ns += end_ns - request.received_ns
                queue_ns += start_ns - request.queued_ns
                if statistics.latencies is not None:
                    statistics.tell_latencies(request, start_ns, times, end_ns)
            else:
                failed += 1
                statistics.count_failure(request, response.error.code, REASON_BACKEND, end_ns)
        statistics.count_batch(execution.batch_size, times, answered - failed, whole_ns, queue_ns, end_ns)
        self._in_flight.leave_held(answered)

    def refuse(self, request: InferenceRequest, error: InferenceError, reason: str) -> None:
        """Answer a request that leaves its queue without running."""
        request.owner = None
        request.queue = None
        request.cancellation.unwatch(request)
        with self._lock:
            self._statistics.count_failure(request, error.code, reason, monotonic_ns())
            self._in_flight.leave_held(1)
        request.fail(error)
