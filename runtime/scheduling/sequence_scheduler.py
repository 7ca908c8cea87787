"""The driver of one sequence model's instances: the lock, the clock and the figures around pure decisions.

Which request runs where and when is the sequence batcher's to decide. This does for sequences what `model_scheduler.py`
does for requests that have nothing to do with each other. Knows nothing of names, versions or files.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Collection, Mapping, Sequence

from cantata.runtime.backends.backend import BackendInstance, RestartingInstance
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, StatusCode, unavailable
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.worker_pool import Dispatcher
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.observe.statistics import (
    REASON_BACKEND,
    REASON_CANCELED,
    REASON_REJECTED,
    StatisticsCounter,
)
from cantata.runtime.request import EXPIRED, SEQUENCE_END, SEQUENCE_START, InferenceRequest
from cantata.runtime.scheduling.batcher import NEVER
from cantata.runtime.scheduling.expiry import Expiries
from cantata.runtime.scheduling.in_flight import STOPPED, HasInFlight, InFlight
from cantata.runtime.scheduling.request_figures import RequestFigures
from cantata.runtime.scheduling.scheduled_instance import ScheduledInstance
from cantata.runtime.scheduling.sequence_batcher import SequenceBatcher
from cantata.runtime.scheduling.sequence_inputs import SequenceInputs
from cantata.runtime.scheduling.sequence_lanes import Turn, Turns
from cantata.runtime.scheduling.sequence_table import BACKLOG, Dropped, DropReason, grace_ns
from cantata.runtime.scheduling.sequence_table import Sequence as LiveSequence
from cantata.runtime.scheduling.timer import Timer
from cantata.runtime.tensor import Tensor

_log = logging.getLogger("cantata.scheduler")


class SequenceScheduler(HasInFlight):
    """Queues the requests of one model version's sequences and runs its instances.

    `_lock` guards the batcher, the instances, `_is_idle`, the two wake times and the statistics. It is never held
    while a model runs or a response is sent.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batcher: SequenceBatcher,
        inputs: SequenceInputs,
        workers: Dispatcher,
        timer: Timer,
        *,
        statistics: StatisticsCounter | None = None,
    ) -> None:
        self._spec = spec
        self._batcher = batcher
        self._inputs = inputs
        self._workers = workers
        self._timer = timer
        self._expiries = Expiries(timer)
        self._lock = threading.Lock()
        self._statistics = StatisticsCounter() if statistics is None else statistics
        # By lane, both.
        self._instances: list[ScheduledInstance] = []
        self._is_idle: list[bool] = []
        # Those that get no further sequence, and those of them that are closed.
        self._leaving: list[ScheduledInstance] = []
        self._gone: set[ScheduledInstance] = set()
        self._lanes: dict[ScheduledInstance, int] = {}
        self._in_flight = InFlight(self._lock)
        self._figures = RequestFigures(self._lock, self._statistics, self._in_flight)
        # When the timer will next look at the lanes, and at what may expire; NEVER if it will not.
        self._batch_wake_ns = NEVER
        self._expiry_wake_ns = NEVER
        # Why no sequence can begin now: every instance is away, or leaving. None where some instance can begin one.
        self.unavailability: InferenceError | None = None

    def add_instances(self, backend_instances: Sequence[BackendInstance]) -> None:
        """Take instances that are ready to execute."""
        now_ns = monotonic_ns()
        added = [ScheduledInstance(self, backend_instance) for backend_instance in backend_instances]
        with self._lock:
            for instance in added:
                instance.free_ns = now_ns
                self._lanes[instance] = self._batcher.add_lane(now_ns)
                self._instances.append(instance)
                self._is_idle.append(True)
            if added:
                self.unavailability = None
            ready = self._reserve_all(now_ns)
        for instance in added:
            backend_instance = instance.backend_instance
            if isinstance(backend_instance, RestartingInstance):
                backend_instance.watch(functools.partial(self._look_at, instance, backend_instance))
                if backend_instance.unavailability() is not None:
                    # It went away before it was watched.
                    self._look_at(instance, backend_instance)
        for instance in ready:
            self._workers.dispatch(instance)

    def remove_instances(self, backend_instances: Collection[BackendInstance]) -> list[ScheduledInstance]:
        """Give these instances no further sequence; each is to be closed by `close_removed`."""
        with self._lock:
            leaving = [
                instance
                for instance in self._instances
                if instance.backend_instance in backend_instances and instance.left is None
            ]
            for instance in leaving:
                instance.left = threading.Event()
                self._batcher.close_lane(self._lanes[instance])
            self._leaving += leaving
            self._note_unavailability()
            self._notice_left()
        return leaving

    def close_removed(self, instance: ScheduledInstance) -> None:
        """Wait until a removed instance's sequences have ended, and close it."""
        assert instance.left is not None
        instance.left.wait()
        if instance.goes_on or self._spec.is_decoupled:
            # What it goes on with is answered when nothing at all is unanswered.
            self._in_flight.wait_until_none(None)
        with self._lock:
            if instance in self._gone or instance not in self._instances:
                return
            self._gone.add(instance)
        instance.close(self._spec.model_name)

    def enqueue(self, request: InferenceRequest) -> None:
        """Accept a validated request, on the caller's thread. Raises InferenceError when it is refused."""
        self._inputs.check(request)
        now_ns = monotonic_ns()
        request.queued_ns = now_ns
        starts = bool(request.flags & SEQUENCE_START)
        if self.unavailability is not None and not self._is_on_leaving(request):
            raise unavailable(self.unavailability.message)
        if not self._in_flight.enter() and (starts or not self._continues(request)):
            raise unavailable(f"{request.described_id()}{STOPPED}")
        instance = None
        try:
            with self._lock:
                is_conflict = starts and self._batcher.is_live(request.correlation_id)
                lane = self._batcher.add(request, now_ns)
                # It is this scheduler's only from here on: whoever it is refused to answers it.
                request.owner = self._figures
                if lane != BACKLOG:
                    instance = self._reserve(lane, now_ns)
                request.queue = self
                if self._expiry_wake_ns == NEVER or request.timeout_us:
                    self._wake_for_expiry()
                dropped = self._batcher.take_dropped()
        except InferenceError:
            self._in_flight.leave()
            raise
        if is_conflict:
            _log.warning(
                "sequence %s for model '%s' has a conflict. The previous sequence did not end before this sequence "
                "start. Previous sequence will be terminated early.",
                request.correlation_id,
                self._spec.model_name,
            )
        self._answer(dropped)
        if instance is not None:
            self._workers.dispatch(instance)
        request.cancellation.watch(request)

    def cancelled(self, request: InferenceRequest) -> None:
        """Drop a request and its sequence, if it is the next there and has not begun (RequestQueue)."""
        now_ns = monotonic_ns()
        with self._lock:
            if request.queue is None:
                return
            request.queue = None
            self._batcher.cancelled(request, now_ns)
            ready = self._reserve_all(now_ns)
            dropped = self._batcher.take_dropped()
            self._notice_left()
        self._answer(dropped)
        for instance in ready:
            self._workers.dispatch(instance)

    def run_instance(self, instance: ScheduledInstance) -> None:
        """Run one batch in a reserved instance, answer its requests, and see what comes next. Never raises."""
        start_ns = monotonic_ns()
        lane = self._lanes[instance]
        with self._lock:
            turns = [] if instance.is_away else self._batcher.take(lane, start_ns)
            for turn in turns:
                if turn is not None:
                    turn.request.queue = None
            dropped = self._batcher.take_dropped()
            again = None
            if not turns:
                self._rest(lane, start_ns)
                again = self._reserve(lane, start_ns)
                self._notice_left()
        self._answer(dropped)
        if not turns:
            if again is not None:
                self._workers.dispatch(again)
            return
        execution = self._execution(instance, turns, start_ns)
        is_over = instance.execute(execution)
        if not execution.keeps_instance:
            self._end_batch(instance, turns, execution, is_over)

    def warm_up(
        self,
        backend_instance: BackendInstance,
        requests: list[InferenceRequest],
        added: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Run validated requests as one batch in an instance that serves nobody yet, and count them like all others.

        Each is a sequence of its own that it starts and ends; `added` are tensors in the place of those that it would
        get as such. They are answered when this returns, or later. One that is to run again ends here: it has run.
        """
        start_ns = monotonic_ns()
        turns: Turns = []
        for request, inputs in zip(requests, added, strict=True):
            sequence = LiveSequence(request.correlation_id)
            request.flags = SEQUENCE_START | SEQUENCE_END
            self._inputs.prepare(request, sequence)
            request.inputs.update(inputs)
            request.owner = self._figures
            request.queued_ns = request.started_ns = start_ns
            self._in_flight.enter()
            turns.append(Turn(request, sequence))
        instance = ScheduledInstance(self, backend_instance)
        finish = functools.partial(self._warmed_up, turns)
        execution = Execution(self._spec, requests, len(requests), start_ns, finish, instance)
        if instance.execute(execution):
            self._warmed_up(turns, execution)

    def _warmed_up(self, turns: Turns, execution: Execution) -> None:
        with self._lock:
            self._count(turns, execution, monotonic_ns())
        execution.send_responses()
        for request in execution.rescheduled_requests():
            request.owner = None
            self._in_flight.leave()
            request.respond(None, True)

    def close(self) -> None:
        """Stop, fail what is still queued, and close the instances. Call when idle, or when waiting is over."""
        self._in_flight.stop()
        with self._lock:
            waiting = self._batcher.drain()
            instances, self._instances = self._instances, []
            gone = frozenset(self._gone)
        for request in waiting:
            self._refuse(request, unavailable(f"{request.described_id()}Server is stopping"), REASON_REJECTED)
        for instance in instances:
            if instance not in gone:
                instance.close(self._spec.model_name)

    def backend_instances(self) -> list[BackendInstance]:
        """The instances, idle or not."""
        with self._lock:
            return [instance.backend_instance for instance in self._instances if instance not in self._gone]

    def statistics(self, name: str, version: str) -> ModelStatistics:
        """The figures now."""
        return self._figures.snapshot(name, version)

    def failures(self) -> dict[str, int]:
        """How many requests failed, by reason."""
        return self._figures.failures()

    def pending(self) -> int:
        """How many requests wait: for a slot, for their turn, or for an instance."""
        with self._lock:
            return len(self._batcher)

    def _continues(self, request: InferenceRequest) -> bool:
        """Let a request in though this is stopped: a sequence that has been started may end."""
        with self._lock:
            is_live = self._batcher.is_live(request.correlation_id)
        return is_live and self._in_flight.enter(is_continuing=True)

    def _execution(self, instance: ScheduledInstance, turns: Turns, start_ns: int) -> Execution:
        """A batch with requests that stand for nobody in the places that no request has."""
        requests: list[InferenceRequest] = []
        if None in turns:
            first = next(turn.request for turn in turns if turn is not None)
            null_request = self._inputs.null_request(first)
            requests = [null_request if turn is None else turn.request for turn in turns]
        else:
            requests = [turn.request for turn in turns if turn is not None]
        for request in requests:
            request.started_ns = start_ns
            request.cancellation.unwatch(request)
            if request.timeout_us:
                self._expiries.add(request)
            if request.queued_ns < instance.reserved_ns:
                request.batch_wait_ns = instance.reserved_ns - max(request.queued_ns, instance.free_ns)
        finish = functools.partial(self._finish_later, instance, turns)
        return Execution(self._spec, requests, len(requests), start_ns, finish, instance)

    def _reserve(self, lane: int, now_ns: int) -> ScheduledInstance | None:
        """A lane's instance if a batch is ready for it, else None; the caller holds the lock."""
        # There are no instances left once this is closed.
        if not self._instances or not self._is_idle[lane] or self._instances[lane].is_away:
            return None
        ready_ns = self._batcher.ready_at(lane, now_ns)
        if ready_ns == NEVER:
            return None
        if ready_ns <= now_ns:
            self._is_idle[lane] = False
            instance = self._instances[lane]
            instance.reserved_ns = now_ns
            return instance
        if self._batch_wake_ns == NEVER or ready_ns < self._batch_wake_ns:
            self._batch_wake_ns = ready_ns
            self._timer.call_at(ready_ns, functools.partial(self._wake, ready_ns))
        return None

    def _rest(self, lane: int, now_ns: int) -> None:
        """A lane's instance is free again; the caller holds the lock."""
        self._is_idle[lane] = True
        # There are none left once this is closed.
        if self._instances:
            self._instances[lane].free_ns = now_ns

    def _reserve_all(self, now_ns: int) -> list[ScheduledInstance]:
        reserved = (self._reserve(lane, now_ns) for lane in range(len(self._instances)))
        return [instance for instance in reserved if instance is not None]

    def _look_at(self, instance: ScheduledInstance, backend_instance: RestartingInstance) -> None:
        """An instance has gone away, and what it knew of its sequences with it, or has come back."""
        now_ns = monotonic_ns()
        with self._lock:
            error = backend_instance.unavailability()
            was_away, instance.is_away = instance.is_away, error is not None
            lane = self._lanes[instance]
            if error is not None and not was_away:
                self._batcher.instance_lost(lane, now_ns)
            self._note_unavailability()
            next_instance = self._reserve(lane, now_ns)
            dropped = self._batcher.take_dropped()
            self._notice_left()
        self._answer(dropped)
        if next_instance is not None:
            self._workers.dispatch(next_instance)

    def _note_unavailability(self) -> None:
        """Say whether any instance can begin a sequence; the caller holds the lock."""
        error: InferenceError | None = None
        for instance in self._instances:
            if instance.left is not None:
                continue
            if not instance.is_away:
                self.unavailability = None
                return
            if isinstance(instance.backend_instance, RestartingInstance):
                error = instance.backend_instance.unavailability() or error
        if error is not None:
            text = f"model '{self._spec.model_name}' has no instance that runs until it is restarted: "
            self.unavailability = unavailable(text + error.message)

    def _is_on_leaving(self, request: InferenceRequest) -> bool:
        """Whether a request's sequence goes on in an instance that gets no other, and runs."""
        with self._lock:
            lane = self._batcher.lane_of(request.correlation_id)
            # There are no instances left once this is closed.
            if lane is None or lane == BACKLOG or not self._instances:
                return False
            return not self._instances[lane].is_away

    def _notice_left(self) -> None:
        """Tell who waits for instances to be left by their last sequence; the caller holds the lock."""
        for instance in tuple(self._leaving):
            lane = self._lanes[instance]
            if self._is_idle[lane] and self._batcher.is_drained(lane):
                self._leaving.remove(instance)
                assert instance.left is not None
                instance.left.set()

    def _wake(self, armed_ns: int) -> None:
        with self._lock:
            if armed_ns != self._batch_wake_ns:
                # It has been called earlier, for another batch.
                return
            self._batch_wake_ns = NEVER
            ready = self._reserve_all(monotonic_ns())
        for instance in ready:
            self._workers.dispatch(instance)

    def _wake_for_expiry(self) -> None:
        """Have the timer look at what expires; the caller holds the lock."""
        expires_ns = self._batcher.expires_at()
        if expires_ns != NEVER and not NEVER < self._expiry_wake_ns <= expires_ns:
            self._expire_at(expires_ns, has_grace=True)

    def _expire_at(self, time_ns: int, *, has_grace: bool) -> None:
        """Have the timer call `_expire`; the caller holds the lock."""
        self._expiry_wake_ns = time_ns
        self._timer.call_at(time_ns, functools.partial(self._expire, time_ns, has_grace))

    def _expire(self, armed_ns: int, has_grace: bool) -> None:
        now_ns = monotonic_ns()
        with self._lock:
            if armed_ns != self._expiry_wake_ns:
                return
            if has_grace and (grace := grace_ns(now_ns - armed_ns)):
                self._expire_at(now_ns + grace, has_grace=False)
                return
            self._expiry_wake_ns = NEVER
            self._batcher.expire(now_ns)
            ready = self._reserve_all(now_ns)
            self._wake_for_expiry()
            dropped = self._batcher.take_dropped()
            self._notice_left()
        for instance in ready:
            self._workers.dispatch(instance)
        self._answer(dropped)

    def _end_batch(
        self, instance: ScheduledInstance, turns: Turns, execution: Execution, is_over: bool
    ) -> None:
        end_ns = monotonic_ns()
        execution.instance = None
        lane = self._lanes[instance]
        if is_over:
            self._finish(instance, turns, execution, end_ns, is_instance_free=True)
        elif not self._batcher.is_exclusive(lane):
            with self._lock:
                self._rest(lane, end_ns)
                next_instance = self._reserve(lane, end_ns)
            if next_instance is not None:
                self._workers.dispatch(next_instance)

    def _finish_later(self, instance: ScheduledInstance, turns: Turns, execution: Execution) -> None:
        """End a batch that went on in the background."""
        if execution.keeps_instance:
            self._end_batch(instance, turns, execution, True)
            instance.went_on(execution)
            return
        is_instance_free = self._batcher.is_exclusive(self._lanes[instance])
        self._finish(instance, turns, execution, monotonic_ns(), is_instance_free=is_instance_free)

    def _finish(
        self,
        instance: ScheduledInstance,
        turns: Turns,
        execution: Execution,
        end_ns: int,
        *,
        is_instance_free: bool,
    ) -> None:
        """A batch is over: count and answer it, and see what comes next.

        In this order: a sequence's next request must not run, and be answered, before the one ahead has its answer.
        """
        with self._lock:
            self._count(turns, execution, end_ns)
        execution.send_responses()
        rescheduled = execution.rescheduled_requests()
        for request in rescheduled:
            request.queued_ns = end_ns
        lane = self._lanes[instance]
        now_ns = monotonic_ns()
        with self._lock:
            self._batcher.finished(lane, turns, rescheduled, now_ns)
            for request in rescheduled:
                request.queue = self
            if is_instance_free:
                self._rest(lane, now_ns)
            next_instance = self._reserve(lane, now_ns)
            dropped = self._batcher.take_dropped()
            if self._leaving:
                self._notice_left()
        self._answer(dropped)
        if next_instance is not None:
            self._workers.dispatch(next_instance)
        for request in rescheduled:
            request.cancellation.watch(request)

    def _count(self, turns: Turns, execution: Execution, end_ns: int) -> None:
        """Count a batch that is over, but for its rows of nobody; the caller holds the lock."""
        requests = [None if turn is None else turn.request for turn in turns]
        self._figures.count_batch(execution, requests, end_ns)
        self._statistics.count_padding(turns.count(None))

    def _answer(self, dropped: Collection[Dropped]) -> None:
        """Answer requests that will not run."""
        for request, reason in dropped:
            if reason is DropReason.CANCELLED:
                self._refuse(request, InferenceError(StatusCode.CANCELLED, ""), REASON_CANCELED)
            elif reason is DropReason.DEADLINE:
                self._refuse(request, unavailable(EXPIRED), REASON_REJECTED)
            elif reason is DropReason.INSTANCE_LOST:
                lost = unavailable("the model instance that ran this sequence has failed")
                self._refuse(request, lost, REASON_BACKEND)
            else:
                expired = unavailable("timeout of the corresponding sequence has been expired")
                self._refuse(request, expired, REASON_REJECTED)

    def _refuse(self, request: InferenceRequest, error: InferenceError, reason: str) -> None:
        """Answer a request that leaves the queue without running, unless its model has between two iterations."""
        if not request.is_finished:
            self._figures.refuse(request, error, reason)
