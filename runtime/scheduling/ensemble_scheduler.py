"""The driver of an ensemble: accepts its requests, and holds what they share.

Owns the count of requests in flight, the limits of its steps and the ensemble's figures. How each request goes through
the steps is `ensemble_flight.py`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, Protocol

from cantata.dag.plan import Plan
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, unavailable
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.phases import EnsembleTimes, StepFigures, path_phases
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.observe.statistics import REASON_OTHER, ComputeTimes, StatisticsCounter
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.ensemble_flight import EnsembleFlight, StepSender, WaitingStep
from cantata.runtime.scheduling.expiry import Expiries
from cantata.runtime.scheduling.flight import Flight
from cantata.runtime.scheduling.in_flight import STOPPED, HasInFlight, InFlight
from cantata.runtime.scheduling.step_limits import StepLimits
from cantata.runtime.scheduling.timer import Timer

# Who wants to know, beside traces, which steps a request waited for.
_READERS_OF_PATHS: Final = (StepSender, Flight)


class StepModel(Protocol):
    """A model version that an ensemble's step calls; it stays loaded for as long as the ensemble does."""

    def accept(self, request: InferenceRequest) -> None:
        """Validate and enqueue a request; raises InferenceError when it is refused."""


class EnsembleScheduler(HasInFlight):
    """Runs the requests of one ensemble. `step_models` are by the step's index. `_lock` guards the figures."""

    def __init__(
        self,
        spec: ModelSpec,
        plan: Plan,
        step_models: Sequence[StepModel],
        timer: Timer,
        statistics: StatisticsCounter | None = None,
    ) -> None:
        self.spec = spec
        self.step_models = step_models
        self.limits: StepLimits[WaitingStep] | None = None
        if plan.max_inflight_requests:
            self.limits = StepLimits(plan.max_inflight_requests, len(step_models))
        self._plan = plan
        self._expiries = Expiries(timer)
        self._in_flight = InFlight()
        self._lock = threading.Lock()
        self._statistics = StatisticsCounter() if statistics is None else statistics
        self._times = EnsembleTimes(spec.model_name, {step.index: step.model_name for step in plan.steps})

    def enqueue(self, request: InferenceRequest) -> None:
        """Accept a validated request and run its first steps; raises InferenceError when it is refused."""
        request.queued_ns = request.started_ns = monotonic_ns()
        if not self._in_flight.enter():
            raise unavailable(f"{request.described_id()}{STOPPED}")
        if request.timeout_us:
            self._expiries.add(request)
        EnsembleFlight(self, request, self._plan.pruned(request.requested_outputs)).start()

    def close(self) -> None:
        """Refuse new requests; an ensemble holds nothing else."""
        self._in_flight.stop()

    def statistics(self, name: str, version: str) -> ModelStatistics:
        """The figures now."""
        with self._lock:
            return self._statistics.snapshot(name, version)

    def failures(self) -> dict[str, int]:
        """How many requests failed, by reason."""
        with self._lock:
            return dict(self._statistics.failures)

    def pending(self) -> int:
        """An ensemble never queues: its steps' models do."""
        return 0

    @property
    def unavailability(self) -> InferenceError | None:
        """An ensemble itself can always run; its steps' models may not."""
        return None

    def step_figures(self) -> tuple[StepFigures, ...]:
        """Where the time of the requests that were answered went."""
        with self._lock:
            return self._times.figures()

    def count_success(
        self, request: InferenceRequest, times: ComputeTimes, spans: list[StepSender], last: StepSender | None
    ) -> None:
        """Count a request that is about to be answered finally; `times` are the sums over its steps.

        `last` is None where no step ran: only inputs were wanted.
        """
        end_ns = monotonic_ns()
        request.times = times
        received_ns, queued_ns = request.received_ns, request.queued_ns
        with self._lock:
            self._statistics.count_batch(request.batch_size, times, 1, end_ns - received_ns, 0, end_ns)
            self._times.count(received_ns, queued_ns, spans, last, end_ns)
            if self._statistics.latencies is not None:
                self._statistics.tell_latencies(request, queued_ns, times, end_ns)
        if request.trace is not None or isinstance(request.sender, _READERS_OF_PATHS):
            times.path = path_phases(received_ns, queued_ns, last, end_ns)

    def count_first_response(self, request: InferenceRequest) -> None:
        """The first of several responses is about to be sent."""
        with self._lock:
            self._statistics.count_first_response(request, monotonic_ns())

    def count_early(self, spans: list[StepSender]) -> None:
        """Count the times of steps that have ended, of a request that has not."""
        with self._lock:
            self._times.count_early(spans)

    def count_failure(self, request: InferenceRequest, error: InferenceError) -> None:
        """Count a request that is about to fail."""
        with self._lock:
            self._statistics.count_failure(request, error.code, REASON_OTHER, monotonic_ns())

    def ended(self) -> None:
        """A request has been answered finally."""
        self._in_flight.leave()
