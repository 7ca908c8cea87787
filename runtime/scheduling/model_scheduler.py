"""The driver of one model version's batcher and instances: the lock, the clock and the figures around pure decisions.

Owns a model version's queue, its instances and its count of requests in flight. Decides nothing about batches:
that is the batcher's. Knows nothing of names, versions or files.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from cantata.runtime.backends.backend import BackendInstance, RestartingInstance
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, StatusCode, unavailable
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.limited_dispatch import LimitedDispatch
from cantata.runtime.execution.worker_pool import Dispatcher, WorkerPool
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.observe.statistics import (
    REASON_BACKEND,
    REASON_CANCELED,
    REASON_REJECTED,
    StatisticsCounter,
)
from cantata.runtime.request import EXPIRED, InferenceRequest
from cantata.runtime.scheduling.batcher import NEVER, Batch, Batcher, is_abandoned
from cantata.runtime.scheduling.circular_waits import CircularWaits
from cantata.runtime.scheduling.expiry import Expiries
from cantata.runtime.scheduling.in_flight import STOPPED, HasInFlight, InFlight
from cantata.runtime.scheduling.request_figures import RequestFigures
from cantata.runtime.scheduling.response_order import ResponseOrder
from cantata.runtime.scheduling.scheduled_instance import ScheduledInstance
from cantata.runtime.scheduling.timer import Timer
from cantata.runtime.tensor import Tensor


class ModelScheduler(HasInFlight):
    """Queues requests for one model version and runs its instances.

    `_lock` guards the batcher, `_waits`, `_instances`, `_idle`, `_free_ns`, `_due`, `_wake_ns`, `unavailability`, the
    statistics and the count of requests in flight. It is never held while a model runs or a response is sent.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batcher: Batcher,
        workers: Dispatcher,
        timer: Timer,
        *,
        preserves_order: bool = False,
        statistics: StatisticsCounter | None = None,
    ) -> None:
        """`preserves_order` answers requests in the order in which they were accepted."""
        self._spec = spec
        self._batcher = batcher
        self._order = ResponseOrder() if preserves_order else None
        self._workers = workers
        # What is about to run waits for resources where there are limits, may be overtaken where there are priorities,
        # and is left over where its instance goes away: it may leave until it runs.
        self._watches_all = isinstance(workers, LimitedDispatch) or batcher.can_reorder
        # Whether `run_now` may be called: nothing but the queue decides when a request runs.
        self.can_run_now = (
            batcher.runs_lone_requests and not preserves_order and isinstance(workers, WorkerPool)
        )
        self._timer = timer
        self._expiries = Expiries(timer)
        self._lock = threading.Lock()
        self._statistics = StatisticsCounter() if statistics is None else statistics
        self._instances: list[ScheduledInstance] = []
        # Used as a stack: the instance that ran last runs next, and the others' memory stays cold.
        self._idle: list[ScheduledInstance] = []
        # Those that get no further batch, and are not closed yet.
        self._leaving: list[ScheduledInstance] = []
        # Since when there has been an idle instance, where there is one.
        self._free_ns = 0
        # How many reserved instances have not taken their batch yet.
        self._due = 0
        self._in_flight = InFlight(self._lock)
        self._figures = RequestFigures(self._lock, self._statistics, self._in_flight)
        self._waits = CircularWaits(spec.model_name)
        # When the timer will next look at the queue; NEVER if it will not.
        self._wake_ns = NEVER
        # Why nothing can be executed now: every instance is away. None where some instance can.
        self.unavailability: InferenceError | None = None

    def add_instances(self, backend_instances: Sequence[BackendInstance]) -> None:
        """Take instances that are ready to execute."""
        scheduled = [ScheduledInstance(self, instance) for instance in backend_instances]
        now_ns = monotonic_ns()
        ready: list[ScheduledInstance] = []
        with self._lock:
            if not self._idle:
                self._free_ns = now_ns
            self._instances += scheduled
            self._idle += scheduled
            if scheduled:
                self.unavailability = None
            while (instance := self._reserve(now_ns)) is not None:
                ready.append(instance)
        for instance in scheduled:
            backend_instance = instance.backend_instance
            if isinstance(backend_instance, RestartingInstance):
                self._watches_all = True
                backend_instance.watch(partial(self._look_at, instance, backend_instance))
                if backend_instance.unavailability() is not None:
                    # It went away before it was watched.
                    self._look_at(instance, backend_instance)
        for instance in ready:
            self._workers.dispatch(instance)

    def remove_instances(self, backend_instances: Collection[BackendInstance]) -> list[ScheduledInstance]:
        """Give these instances no further batch; each is to be closed by `close_removed`."""
        with self._lock:
            leaving = [one for one in self._instances if one.backend_instance in backend_instances]
            for instance in leaving:
                self._instances.remove(instance)
                if instance in self._idle:
                    self._idle.remove(instance)
                instance.is_away = True
                instance.left = threading.Event()
                if not instance.is_reserved:
                    instance.left.set()
            self._leaving += leaving
            abandoned, error = self._abandon_if_all_away()
        self._refuse_all(abandoned, error)
        return leaving

    def close_removed(self, instance: ScheduledInstance) -> None:
        """Wait until a removed instance has finished what it was given, and close it."""
        assert instance.left is not None
        instance.left.wait()
        if instance.goes_on or self._spec.is_decoupled:
            # What it goes on with is answered when nothing at all is unanswered.
            self._in_flight.wait_until_none(None)
        with self._lock:
            if instance not in self._leaving:
                return
            self._leaving.remove(instance)
        instance.close(self._spec.model_name)

    def enqueue(self, request: InferenceRequest) -> None:
        """Accept a validated request, on the caller's thread. Raises InferenceError when it is refused."""
        now_ns = monotonic_ns()
        request.queued_ns = now_ns
        with self._lock:
            if not self._in_flight.enter_held():
                raise unavailable(f"{request.described_id()}{STOPPED}")
            try:
                instance = self._admit(request, now_ns)
            except InferenceError:
                self._in_flight.leave_held(1)
                raise
            # An instance that is about to take a batch takes one request at least, and looks for itself whether it is
            # cancelled; those that may be left over are watched.
            may_wait = self._watches_all or len(self._batcher) > self._due
        if instance is not None:
            self._workers.dispatch(instance)
        if may_wait:
            request.cancellation.watch(request)

    @property
    def is_idle(self) -> bool:
        """Whether some instance waits for work; asked without the lock, so it may be otherwise a moment later."""
        return bool(self._idle)

    @property
    def batches_here(self) -> bool:
        """Whether an idle instance is quick, and would take several requests as one batch; asked as `is_idle` is."""
        # A slice: the instance may be taken meanwhile.
        return self._batcher.forms_batches and any(instance.is_quick for instance in self._idle[-1:])

    def run_now(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        """Run a validated request by itself on the caller's thread, where nothing is in its way; never raises.

        The same becomes of it as of one that is enqueued and taken at once. False, and nothing has happened to it,
        where it would have to wait, or be refused; and with `only_if_quick`, where the model may hold up this thread.
        It may be answered later than this returns, as by an `async def execute`.
        """
        now_ns = monotonic_ns()
        if is_abandoned(request, now_ns):
            return False
        with self._lock:
            if not self._idle or len(self._batcher):
                return False
            instance = self._idle[-1]
            if (only_if_quick and not instance.is_quick) or not self._in_flight.enter_held():
                return False
            self._idle.pop()
            # An instance that is idle waits for nobody: the request cannot wait for itself in a circle.
            instance.is_reserved = True
            instance.free_ns = instance.reserved_ns = now_ns
        request.owner = self._figures
        request.queued_ns = now_ns
        self._execute(instance, [request], request.batch_size, now_ns)
        return True

    def run_instance(self, instance: ScheduledInstance) -> None:
        """Run one batch in a reserved instance, answer its requests, and see what comes next. Never raises."""
        start_ns = monotonic_ns()
        with self._lock:
            self._due -= 1
            batch = Batch([], 0, []) if instance.is_away else self._batcher.take(start_ns)
            if not batch.requests:
                self._rest(instance, start_ns)
                again = self._reserve(start_ns)
            if self._waits.queued:
                self._waits.forget(batch)
            for request in batch.requests:
                request.queue = None
            for request in batch.dropped:
                request.queue = None
        if batch.dropped:
            self._answer_dropped(batch.dropped)
        if not batch.requests:
            if again is not None:
                self._workers.dispatch(again)
            return
        for request in batch.requests:
            if request.queued_ns < instance.reserved_ns:
                request.batch_wait_ns = instance.reserved_ns - max(request.queued_ns, instance.free_ns)
            request.cancellation.unwatch(request)
        self._execute(instance, batch.requests, batch.size, start_ns)

    def warm_up(
        self,
        backend_instance: BackendInstance,
        requests: list[InferenceRequest],
        added: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Run validated requests as one batch in an instance that serves nobody yet, and count them like all others.

        `added` are inputs beside those that requests can have, for each. They are answered when this returns, or later.
        """
        start_ns = monotonic_ns()
        for request, inputs in zip(requests, added, strict=True):
            request.inputs.update(inputs)
            request.owner = self._figures
            request.queued_ns = request.started_ns = start_ns
            self._in_flight.enter()
        size = sum(request.batch_size for request in requests)
        instance = ScheduledInstance(self, backend_instance)
        execution = Execution(self._spec, requests, size, start_ns, self._answer, instance)
        if instance.execute(execution):
            self._answer(execution)

    def close(self) -> None:
        """Stop, fail what is still queued, and close the instances. Call when idle, or when waiting is over."""
        self._in_flight.stop()
        with self._lock:
            waiting = self._drain()
            instances, self._instances, self._idle = self._instances + self._leaving, [], []
            self._leaving = []
        for request in waiting:
            self._figures.refuse(
                request, unavailable(f"{request.described_id()}Server is stopping"), REASON_REJECTED
            )
        for instance in instances:
            instance.close(self._spec.model_name)

    def backend_instances(self) -> list[BackendInstance]:
        """The instances, idle or not."""
        with self._lock:
            return [instance.backend_instance for instance in self._instances]

    def statistics(self, name: str, version: str) -> ModelStatistics:
        """The figures now."""
        return self._figures.snapshot(name, version)

    def failures(self) -> dict[str, int]:
        """How many requests failed, by reason."""
        return self._figures.failures()

    def pending(self) -> int:
        """How many requests wait for an instance."""
        with self._lock:
            return len(self._batcher)

    def cancelled(self, request: InferenceRequest) -> None:
        """Take a request out of the queue, if it is still there, and answer it (RequestQueue)."""
        with self._lock:
            if request.queue is None:
                return
            request.queue = None
            self._batcher.remove(request)
            self._waits.forget(Batch([], 0, [request]))
        self._answer_dropped([request])

    def _admit(self, request: InferenceRequest, now_ns: int) -> ScheduledInstance | None:
        """Queue a request, or raise InferenceError, and reserve an instance if it is due; the caller holds the lock."""
        if self.unavailability is not None:
            # An error that is raised again and again would collect the frames of all who raise it.
            raise unavailable(self.unavailability.message)
        if request.waiting:
            refusal = self._waits.refusal(request, self._instances)
            if refusal is not None:
                raise refusal
        self._batcher.add(request, now_ns)
        if request.waiting:
            self._waits.note(request, self._instances)
        # It is this scheduler's only from here on: whoever it is refused to answers it.
        request.owner = self._figures
        request.queue = self
        if self._order is not None:
            request.sender = self._order.next_sender(request.sender)
        if self._batcher.can_expire:
            self._wake_at(self._batcher.expires_at())
        return self._reserve(now_ns)

    def _drain(self) -> list[InferenceRequest]:
        """Everything queued, removed; the caller holds the lock."""
        waiting = self._batcher.drain()
        self._waits.forget(Batch(waiting, 0, []))
        for request in waiting:
            request.queue = None
        return waiting

    def _reserve(self, now_ns: int) -> ScheduledInstance | None:
        """An idle instance if a batch is ready for it, else None and the timer set; the caller holds the lock."""
        if not self._idle:
            return None
        ready_ns = self._batcher.ready_at(now_ns)
        if ready_ns == NEVER:
            return None
        if ready_ns <= now_ns:
            instance = self._idle.pop()
            instance.is_reserved = True
            instance.free_ns = self._free_ns
            instance.reserved_ns = now_ns
            self._due += 1
            return instance
        self._wake_at(ready_ns)
        return None

    def _wake_at(self, time_ns: int) -> None:
        """Have the timer look at the queue by then; the caller holds the lock."""
        if time_ns != NEVER and (self._wake_ns == NEVER or time_ns < self._wake_ns):
            self._wake_ns = time_ns
            self._timer.call_at(time_ns, partial(self._wake, time_ns))

    def _rest(self, instance: ScheduledInstance, now_ns: int) -> None:
        """A reserved instance is free again; the caller holds the lock."""
        instance.is_reserved = False
        if not instance.is_away:
            if not self._idle:
                self._free_ns = now_ns
            self._idle.append(instance)
        elif instance.left is not None:
            instance.left.set()

    def _look_at(self, instance: ScheduledInstance, backend_instance: RestartingInstance) -> None:
        """An instance has gone away or come back. With the last one goes what is queued: it would wait for nothing."""
        with self._lock:
            if instance not in self._instances:
                return
            error = backend_instance.unavailability()
            was_away, instance.is_away = instance.is_away, error is not None
            if not self._idle:
                self._free_ns = monotonic_ns()
            if instance.is_away is not was_away and not instance.is_reserved:
                (self._idle.remove if instance.is_away else self._idle.append)(instance)
            if error is None:
                self.unavailability = None
            abandoned, refusal = self._abandon_if_all_away()
            next_instance = self._reserve(monotonic_ns())
        self._refuse_all(abandoned, refusal)
        if next_instance is not None:
            self._workers.dispatch(next_instance)

    def _abandon_if_all_away(self) -> tuple[list[InferenceRequest], InferenceError | None]:
        """Where no instance can execute, all that is queued and why it is refused; the caller holds the lock."""
        error: InferenceError | None = None
        for instance in self._instances:
            if not instance.is_away:
                return [], None
            if isinstance(instance.backend_instance, RestartingInstance):
                error = instance.backend_instance.unavailability() or error
        if error is None:
            # None is left at all, or one has come back this moment and is looked at next.
            return [], None
        text = f"model '{self._spec.model_name}' has no instance that runs until it is restarted: "
        self.unavailability = unavailable(text + error.message)
        return self._drain(), self.unavailability

    def _refuse_all(self, abandoned: list[InferenceRequest], error: InferenceError | None) -> None:
        for request in abandoned:
            assert error is not None
            self._figures.refuse(request, error, REASON_BACKEND)

    def _wake(self, armed_ns: int) -> None:
        now_ns = monotonic_ns()
        with self._lock:
            if armed_ns != self._wake_ns:
                # It has been called earlier, for another request.
                return
            self._wake_ns = NEVER
            expired = self._batcher.expire(now_ns)
            for request in expired:
                request.queue = None
            if expired:
                self._waits.forget(Batch([], 0, expired))
            if self._batcher.can_expire:
                self._wake_at(self._batcher.expires_at())
            instance = self._reserve(now_ns)
        if instance is not None:
            self._workers.dispatch(instance)
        self._answer_dropped(expired)

    def _execute(
        self, instance: ScheduledInstance, requests: list[InferenceRequest], batch_size: int, start_ns: int
    ) -> None:
        """Run a batch in a reserved instance, answer it, and see what the instance does next."""
        for request in requests:
            request.started_ns = start_ns
            if request.timeout_us:
                self._expiries.add(request)
        execution = Execution(self._spec, requests, batch_size, start_ns, self._finish_later, instance)
        is_over = instance.execute(execution)
        if not execution.keeps_instance:
            self._end_batch(instance, execution, is_over)

    def _end_batch(self, instance: ScheduledInstance, execution: Execution, is_over: bool) -> None:
        end_ns = monotonic_ns()
        execution.instance = None
        if is_over and _has_sequence(execution.requests):
            # A step of a sequence: the next request must not overtake this one on the way to the steps that follow.
            self._answer(execution)
            is_over = False
        with self._lock:
            self._rest(instance, end_ns)
            next_instance = self._reserve(end_ns)
            if is_over:
                self._count(execution, end_ns)
        if is_over:
            execution.send_responses()
        if next_instance is not None:
            self._workers.dispatch(next_instance)

    def _finish_later(self, execution: Execution) -> None:
        """End a batch that went on in the background; its instance was given back long ago, unless it keeps it."""
        if execution.keeps_instance:
            instance = execution.instance
            assert isinstance(instance, ScheduledInstance)
            self._end_batch(instance, execution, True)
            instance.went_on(execution)
        else:
            self._answer(execution)

    def _answer(self, execution: Execution) -> None:
        """Count a batch that is over, and answer its requests."""
        with self._lock:
            self._count(execution, monotonic_ns())
        execution.send_responses()

    def _count(self, execution: Execution, end_ns: int) -> None:
        """Count a batch that is over; the caller holds the lock."""
        self._figures.count_batch(execution, execution.requests, end_ns)

    def _answer_dropped(self, dropped: list[InferenceRequest]) -> None:
        for request in dropped:
            if request.cancellation.is_cancelled and not request.cancellation.has_expired:
                error = InferenceError(StatusCode.CANCELLED, "")
                self._figures.refuse(request, error, REASON_CANCELED)
            else:
                self._figures.refuse(request, unavailable(EXPIRED), REASON_REJECTED)


def _has_sequence(requests: list[InferenceRequest]) -> bool:
    """Whether any request of a batch is part of a sequence."""
    if requests[0].correlation_id:
        return True
    return len(requests) > 1 and any(request.correlation_id for request in requests)
