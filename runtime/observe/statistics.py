"""Counting what a model version did: plain integers, updated once a batch by the owner of the work.

A counter has no lock of its own: its owner (a scheduler) updates and reads it under the lock that it holds anyway.
Durations are in nanoseconds; what each field means is said in the reference, section 9.
"""

from __future__ import annotations

from cantata.runtime.clock import monotonic_ns, wall_ns
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
        self,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
        batch_size: int = 0,
        path: Phases | None = None,
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
        self.latencies = latencies
        self.failures = dict.fromkeys(FAILURE_REASONS, 0)
        # By the batch's size and how many of its requests were answered with it.
        self._batches: dict[tuple[int, int], _BatchCounter] = {}
        self._padding = 0
        self._last_ns = 0
        self._last_inference_ms = 0
        self._success_ns = 0
        self.failure_ns = 0
        self._queue_ns = 0
        # Requests that were answered by themselves, and not with a batch.
        self._streams = 0
        self._stream_ns = 0
        self._responses: dict[int, _ResponseCounter] = {}

    def count_batch(
        self, batch_size: int, times: ComputeTimes, answered: int, whole_ns: int, queue_ns: int, end_ns: int
    ) -> None:
        """One execution, whatever became of its requests.

        `answered` of them were, with it; the two sums are over these. Each counts the batch's durations in full.
        """
        batch = self._batches.get((batch_size, answered))
        if batch is None:
            batch = self._batches[batch_size, answered] = _BatchCounter()
        batch.count += 1
        batch.input_ns += times.input_ns
        batch.infer_ns += times.infer_ns
        batch.output_ns += times.output_ns
        self._success_ns += whole_ns
        self._queue_ns += queue_ns
        self._last_ns = end_ns

    def count_padding(self, rows: int) -> None:
        """So many rows of a batch were nobody's."""
        self._padding += rows

    def count_stream(self, request: InferenceRequest, end_ns: int) -> None:
        """A request has ended well whose model answered it by itself, which took from its start to its end."""
        self._streams += 1
        self._stream_ns += end_ns - request.started_ns
        self._success_ns += end_ns - request.received_ns
        self._queue_ns += request.started_ns - request.queued_ns

    def tell_latencies(
        self, request: InferenceRequest, start_ns: int, times: ComputeTimes, end_ns: int
    ) -> None:
        """A request has been answered; to be called where there are `latencies`."""
        latencies = self.latencies
        assert latencies is not None
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
        if self.latencies is not None and self.latencies.has_histogram:
            self.latencies.first_response(now_ns - request.received_ns)

    def count_failure(self, request: InferenceRequest, code: StatusCode, reason: str, end_ns: int) -> None:
        """A request that was answered with an error.

        A model's that was cancelled, or whose time was over, has a reason of its own, wherever it was by then; an
        ensemble's always has the same (reference, section 9).
        """
        if code is StatusCode.CANCELLED and reason != REASON_OTHER:
            reason = REASON_REJECTED if request.cancellation.has_expired else REASON_CANCELED
        self.failures[reason] += 1
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
        success = self._streams
        input_ns = output_ns = 0
        infer_ns = self._stream_ns
        for (_, answered), batch in self._batches.items():
            success += answered * batch.count
            input_ns += answered * batch.input_ns
            infer_ns += answered * batch.infer_ns
            output_ns += answered * batch.output_ns
        batches = self._by_size()
        return ModelStatistics(
            name=name,
            version=version,
            last_inference=self._last_inference(),
            inference_count=sum(size * batch.count for size, batch in batches.items()) - self._padding,
            execution_count=sum(batch.count for batch in batches.values()),
            inference_stats=InferStatistics(
                success=StatisticDuration(success, self._success_ns),
                fail=StatisticDuration(sum(self.failures.values()), self.failure_ns),
                queue=StatisticDuration(success, self._queue_ns),
                compute_input=StatisticDuration(success, input_ns),
                compute_infer=StatisticDuration(success, infer_ns),
                compute_output=StatisticDuration(success, output_ns),
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
                for size, batch in sorted(batches.items())
            ),
            response_stats={
                str(index): _response_snapshot(counter) for index, counter in sorted(self._responses.items())
            },
        )

    def _by_size(self) -> dict[int, _BatchCounter]:
        sizes: dict[int, _BatchCounter] = {}
        for (size, _), batch in self._batches.items():
            total = sizes.setdefault(size, _BatchCounter())
            total.count += batch.count
            total.input_ns += batch.input_ns
            total.infer_ns += batch.infer_ns
            total.output_ns += batch.output_ns
        return sizes

    def _last_inference(self) -> int:
        """When the last batch ended, in milliseconds since the epoch: told alike until there is another."""
        if self._last_ns:
            self._last_inference_ms = (wall_ns() - (monotonic_ns() - self._last_ns)) // 1_000_000
            self._last_ns = 0
        return self._last_inference_ms


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
