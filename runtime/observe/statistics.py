"""Counting what a model version did: plain integers, updated once a batch by the owner of the work.

A counter has no lock of its own: its owner (a scheduler) updates and reads it under the lock that it holds anyway.
Durations are in nanoseconds; what each field means is said in the reference, section 9.
"""

from __future__ import annotations

from collections.abc import Sequence

from cantata.runtime.clock import wall_ns
from cantata.runtime.errors import StatusCode
from cantata.runtime.observe.latencies import Durations, Latencies
from cantata.runtime.observe.phases import Phases
from cantata.runtime.observe.snapshots import (
    InferBatchStatistics,
    InferResponseStatistics,
    InferStatistics,
    ModelStatistics,
    StatisticDuration,
)
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse

# The values of the `reason` label of failed requests (reference, section 9).
REASON_REJECTED = "REJECTED"
REASON_CANCELED = "CANCELED"
REASON_BACKEND = "BACKEND"
REASON_OTHER = "OTHER"
FAILURE_REASONS = (REASON_REJECTED, REASON_CANCELED, REASON_BACKEND, REASON_OTHER)

# So many responses of a request have figures of their own: a stream without end must not fill the memory.
_MOST_RESPONSES = 8192


class ComputeTimes:
    """How long one execution took, in its three parts; of an ensemble, the sums over its steps.

    `path` is where an ensemble's whole time went, by phase; None for other models. `batch_size` is 0 where there was
    no batch of its own.
    """

    __slots__ = ("batch_size", "infer_ns", "input_ns", "output_ns", "path")

    def __init__(
        self, input_ns: int, infer_ns: int, output_ns: int, *, batch_size: int = 0, path: Phases | None = None
    ) -> None:
        self.batch_size = batch_size
        self.input_ns = input_ns
        self.infer_ns = infer_ns
        self.output_ns = output_ns
        self.path = path


class _BatchCounter:
    __slots__ = ("count", "infer_ns", "input_ns", "output_ns")

    def __init__(self) -> None:
        self.count = 0
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0


class _ResponseCounter:
    __slots__ = (
        "cancelled",
        "cancelled_ns",
        "empty",
        "empty_ns",
        "failure",
        "failure_ns",
        "infer_ns",
        "success",
    )

    def __init__(self) -> None:
        self.success = 0
        self.failure = 0
        self.failure_ns = 0
        self.cancelled = 0
        self.cancelled_ns = 0
        self.empty = 0
        self.empty_ns = 0
        self.infer_ns = 0


class StatisticsCounter:
    """The figures of one model version; `latencies` are its histograms and summaries, where these are wanted."""

    def __init__(self, latencies: Latencies | None = None) -> None:
        self._latencies = latencies
        self.inference_count = 0
        self.execution_count = 0
        self.last_inference_ms = 0
        self.success_count = 0
        self.success_ns = 0
        self.failure_ns = 0
        self.queue_ns = 0
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0
        self.failures = dict.fromkeys(FAILURE_REASONS, 0)
        self._batches: dict[int, _BatchCounter] = {}
        self._responses: dict[int, _ResponseCounter] = {}

    def count_execution(self, batch_size: int, times: ComputeTimes, *, padding: int = 0) -> None:
        """One execution of a batch, whatever became of its requests; `padding` of its rows were nobody's."""
        self.execution_count += 1
        self.inference_count += batch_size - padding
        self.last_inference_ms = wall_ns() // 1_000_000
        batch = self._batches.get(batch_size)
        if batch is None:
            batch = self._batches[batch_size] = _BatchCounter()
        batch.count += 1
        batch.input_ns += times.input_ns
        batch.infer_ns += times.infer_ns
        batch.output_ns += times.output_ns

    def count_success(
        self, request: InferenceRequest, start_ns: int, times: ComputeTimes, end_ns: int
    ) -> None:
        """A request that was answered. Each request of a batch gets the batch's durations in full."""
        self.success_count += 1
        self.success_ns += end_ns - request.received_ns
        self.queue_ns += start_ns - request.queued_ns
        self.input_ns += times.input_ns
        self.infer_ns += times.infer_ns
        self.output_ns += times.output_ns
        if self._latencies is not None:
            self._tell(self._latencies, request, start_ns, times, end_ns)

    def _tell(
        self,
        latencies: Latencies,
        request: InferenceRequest,
        start_ns: int,
        times: ComputeTimes,
        end_ns: int,
    ) -> None:
        whole_ns = end_ns - request.received_ns
        if latencies.has_histogram and not request.response_count:
            latencies.first_response(whole_ns)
        if latencies.has_summaries:
            queue_ns = start_ns - request.queued_ns
            latencies.answered(
                Durations(whole_ns, queue_ns, times.input_ns, times.infer_ns, times.output_ns), end_ns
            )

    def count_first_response(self, request: InferenceRequest, now_ns: int) -> None:
        """The first of several responses."""
        if self._latencies is not None and self._latencies.has_histogram:
            self._latencies.first_response(now_ns - request.received_ns)

    def count_failure(self, request: InferenceRequest, code: StatusCode, reason: str, end_ns: int) -> None:
        """A request that was answered with an error; cancelled ones have a reason of their own."""
        self.failures[REASON_CANCELED if code is StatusCode.CANCELLED else reason] += 1
        self.failure_ns += end_ns - request.received_ns

    def count_response(
        self, request: InferenceRequest, response: InferenceResponse | None, now_ns: int, final: bool
    ) -> None:
        """The next response of a request whose model answers by itself; None is an end without one.

        A response took from the one before it, or from the start. Very late ones have no figures.
        """
        infer_ns = now_ns - (request.responded_ns or request.started_ns)
        request.responded_ns = now_ns
        index = request.response_count
        if not index and not final:
            self.count_first_response(request, now_ns)
        counter = self._responses.get(index)
        if counter is None:
            if index >= _MOST_RESPONSES:
                return
            counter = self._responses[index] = _ResponseCounter()
        if response is None:
            counter.empty += 1
            counter.empty_ns += infer_ns
            return
        if response.error is not None and response.error.code is StatusCode.CANCELLED:
            counter.cancelled += 1
            counter.cancelled_ns += infer_ns
            return
        counter.infer_ns += infer_ns
        if response.error is not None:
            counter.failure += 1
            counter.failure_ns += infer_ns
            return
        counter.success += 1

    def snapshot(self, name: str, version: str) -> ModelStatistics:
        """The figures now; the caller holds the owner's lock."""
        answered = self.success_count
        return ModelStatistics(
            name=name,
            version=version,
            last_inference=self.last_inference_ms,
            inference_count=self.inference_count,
            execution_count=self.execution_count,
            inference_stats=InferStatistics(
                success=StatisticDuration(answered, self.success_ns),
                fail=StatisticDuration(sum(self.failures.values()), self.failure_ns),
                queue=StatisticDuration(answered, self.queue_ns),
                compute_input=StatisticDuration(answered, self.input_ns),
                compute_infer=StatisticDuration(answered, self.infer_ns),
                compute_output=StatisticDuration(answered, self.output_ns),
                cache_hit=_NOTHING,
                cache_miss=_NOTHING,
            ),
            batch_stats=tuple(
                InferBatchStatistics(
                    batch_size=size,
                    compute_input=StatisticDuration(batch.count, batch.input_ns),
                    compute_infer=StatisticDuration(batch.count, batch.infer_ns),
                    compute_output=StatisticDuration(batch.count, batch.output_ns),
                )
                for size, batch in sorted(self._batches.items())
            ),
            response_stats={
                str(index): _response_snapshot(counter) for index, counter in sorted(self._responses.items())
            },
        )


_NOTHING = StatisticDuration(0, 0)


def _response_snapshot(counter: _ResponseCounter) -> InferResponseStatistics:
    return InferResponseStatistics(
        compute_infer=StatisticDuration(counter.success + counter.failure, counter.infer_ns),
        # What a model hands over is ready to be sent.
        compute_output=StatisticDuration(counter.success, 0),
        success=StatisticDuration(counter.success, counter.infer_ns - counter.failure_ns),
        fail=StatisticDuration(counter.failure, counter.failure_ns),
        empty_response=StatisticDuration(counter.empty, counter.empty_ns),
        cancel=StatisticDuration(counter.cancelled, counter.cancelled_ns),
    )


def summed_times(times: Sequence[ComputeTimes]) -> ComputeTimes:
    """The sums of each part: what an ensemble reports of its composing requests (reference, section 5.3)."""
    return ComputeTimes(
        sum(part.input_ns for part in times),
        sum(part.infer_ns for part in times),
        sum(part.output_ns for part in times),
    )
