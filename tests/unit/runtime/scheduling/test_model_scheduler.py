"""The driver of a model's queue and instances: every accepted request is answered once, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cantata.grammars.model_config import ModelInstanceGroup
from cantata.runtime.backends.backend import InstancePlacement
from cantata.runtime.errors import InferenceError, StatusCode, invalid_argument
from cantata.runtime.execution.calls import WaitingSender
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.limited_dispatch import LimitedDispatch, LimitedWork, instance_limit
from cantata.runtime.execution.worker_pool import Work, WorkerPool
from cantata.runtime.request import Cancellation, InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling import scheduled_instance
from cantata.runtime.scheduling.dynamic_batcher import DynamicBatcher
from cantata.runtime.scheduling.model_scheduler import ModelScheduler
from cantata.runtime.scheduling.priority_queue import PriorityQueue, QueuePolicy
from cantata.runtime.scheduling.scheduled_instance import ScheduledInstance
from cantata.runtime.scheduling.timer import Timer
from tests.support.instances import (
    BackgroundInstance,
    InstantInstance,
    LeavingInstance,
    ManualInstance,
    RestartingInstance,
    echo,
)
from tests.support.requests import identity_spec, tensor

Instance = InstantInstance | ManualInstance | BackgroundInstance | LeavingInstance


class Harness:
    """A scheduler over given instances, with real threads."""

    def __init__(self) -> None:
        self.workers = WorkerPool()
        self.timer = Timer()
        self.schedulers: list[ModelScheduler] = []

    def scheduler(
        self,
        *instances: Instance,
        delay_us: int = 0,
        policy: QueuePolicy | None = None,
        levels: int = 0,
        preserves_order: bool = False,
        max_batch_size: int = 8,
    ) -> ModelScheduler:
        spec = identity_spec(max_batch_size=max_batch_size, dims=(4,))
        priorities = None if policy is None else PriorityQueue(levels, levels, policy, {})
        batcher = DynamicBatcher(spec, (), delay_us, priorities=priorities)
        scheduler = ModelScheduler(spec, batcher, self.workers, self.timer, preserves_order=preserves_order)
        scheduler.add_instances(instances)
        self.schedulers.append(scheduler)
        return scheduler

    def request(self, id: str = "") -> InferenceRequest:
        request = InferenceRequest("identity", {"INPUT": tensor(1, 4)}, WaitingSender(), 1, id=id)
        request.batch_size = 1
        return request

    def enqueue(self, scheduler: ModelScheduler, *ids: str) -> list[InferenceRequest]:
        requests = [self.request(id) for id in ids]
        for request in requests:
            scheduler.enqueue(request)
        return requests

    def close(self) -> None:
        for scheduler in self.schedulers:
            scheduler.close()
            assert scheduler.in_flight == 0
        self.timer.close()
        self.workers.close()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


def answer(request: InferenceRequest) -> InferenceResponse:
    """The single response to a request."""
    sender = request.sender
    assert isinstance(sender, WaitingSender)
    (response,) = sender.wait()
    return response


def error(request: InferenceRequest) -> tuple[StatusCode, str]:
    found = answer(request).error
    assert found is not None
    return found.code, found.message


def test_what_arrives_while_an_instance_is_busy_becomes_the_next_batch(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    requests = harness.enqueue(scheduler, "a")
    instance.wait_for_batch()
    requests += harness.enqueue(scheduler, "b", "c")
    instance.finish()
    instance.finish()
    assert [answer(request).id for request in requests] == ["a", "b", "c"]
    assert instance.batches == [["a"], ["b", "c"]]


def test_two_instances_run_at_the_same_time(harness: Harness) -> None:
    first, second = ManualInstance(), ManualInstance()
    scheduler = harness.scheduler(first, second)
    harness.enqueue(scheduler, "a")
    second.wait_for_batch()
    harness.enqueue(scheduler, "b")
    first.wait_for_batch()
    first.finish()
    second.finish()
    assert scheduler.wait_until_idle(10)


def test_a_cancelled_member_of_a_forming_batch_does_not_disturb_its_neighbours(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    (running,) = harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    before, cancelled, after = harness.enqueue(scheduler, "before", "cancelled", "after")
    cancelled.cancellation.cancel()
    instance.finish()
    instance.finish()
    assert [answer(request).id for request in (running, before, after)] == ["running", "before", "after"]
    assert error(cancelled) == (StatusCode.CANCELLED, "")
    assert instance.batches == [["running"], ["before", "after"]]
    assert scheduler.failures() == {"REJECTED": 0, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}


def test_a_sender_that_fails_does_not_keep_the_rest_of_its_batch_from_being_answered(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingSender:
        def send(self, response: InferenceResponse | None, final: bool) -> None:
            raise OSError("the client is gone")

        def wait_until_ready(self) -> None:
            """Never waits."""

    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    broken = harness.request("broken")
    broken.sender = FailingSender()
    scheduler.enqueue(broken)
    (neighbour,) = harness.enqueue(scheduler, "neighbour")
    instance.finish()
    instance.finish()
    assert answer(neighbour).id == "neighbour"
    assert "could not be delivered" in caplog.text


def test_an_exception_in_the_model_is_internal_to_every_request_of_the_batch(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Execution) -> None:
        raise ZeroDivisionError("by nothing")

    scheduler = harness.scheduler(InstantInstance(fail))
    (request,) = harness.enqueue(scheduler, "a")
    assert error(request) == (StatusCode.INTERNAL, "ZeroDivisionError: by nothing")
    assert "Traceback" in caplog.text


def test_an_inference_error_keeps_its_code(harness: Harness) -> None:
    def refuse(_: Execution) -> None:
        raise invalid_argument("not like this")

    scheduler = harness.scheduler(InstantInstance(refuse))
    (request,) = harness.enqueue(scheduler, "a")
    assert error(request) == (StatusCode.INVALID_ARG, "not like this")
    assert scheduler.failures()["BACKEND"] == 1


def test_an_instance_survives_a_failed_batch(harness: Harness) -> None:
    failures = iter([True, False])

    def sometimes(execution: Execution) -> None:
        if next(failures):
            raise RuntimeError("once")
        echo(execution)

    scheduler = harness.scheduler(InstantInstance(sometimes))
    (first,) = harness.enqueue(scheduler, "a")
    assert error(first)[0] is StatusCode.INTERNAL
    (second,) = harness.enqueue(scheduler, "b")
    assert answer(second).id == "b"


def test_a_batch_left_running_frees_its_instance_for_the_next(harness: Harness) -> None:
    instance = BackgroundInstance()
    scheduler = harness.scheduler(instance)
    with harness.workers.collecting() as work:
        first, second = harness.enqueue(scheduler, "a")[0], None
        work.run_until(lambda: False)
        (second,) = harness.enqueue(scheduler, "b")
        work.run_until(lambda: False)
    assert [[request.id for request in execution.requests] for execution in instance.running] == [
        ["a"],
        ["b"],
    ]
    for execution in reversed(instance.running):
        echo(execution)
        execution.finish()
    assert [answer(first).id, answer(second).id] == ["a", "b"]


def test_a_request_answered_by_itself_counts_when_its_final_response_is_sent(harness: Harness) -> None:
    def stream(execution: Execution) -> None:
        (request,) = execution.requests
        for _ in range(3):
            request.respond(InferenceResponse("identity", 1, request.id, {}), False)
        request.respond(None, True)

    scheduler = harness.scheduler(InstantInstance(stream))
    (request,) = harness.enqueue(scheduler, "a")
    assert isinstance(request.sender, WaitingSender)
    assert len(request.sender.wait()) == 3
    assert scheduler.wait_until_idle(10)
    statistics = scheduler.statistics("identity", "1")
    assert statistics.inference_stats.success.count == 1
    assert [statistics.response_stats[key].success.count for key in ("0", "1", "2")] == [1, 1, 1]
    assert statistics.response_stats["3"].empty_response.count == 1


def test_a_delayed_batch_runs_when_its_delay_is_over(harness: Harness) -> None:
    scheduler = harness.scheduler(InstantInstance(), delay_us=1000)
    (request,) = harness.enqueue(scheduler, "a")
    assert answer(request).id == "a"


def test_a_stopped_scheduler_refuses_new_requests_and_finishes_old_ones(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    (accepted,) = harness.enqueue(scheduler, "a")
    instance.wait_for_batch()
    scheduler.stop()
    with pytest.raises(InferenceError, match="Server is stopping") as refused:
        scheduler.enqueue(harness.request("b"))
    assert refused.value.code is StatusCode.UNAVAILABLE
    assert not scheduler.wait_until_idle(0)
    instance.finish()
    assert answer(accepted).id == "a"
    assert scheduler.wait_until_idle(10)


def test_closing_answers_what_is_still_queued(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    (queued,) = harness.enqueue(scheduler, "queued")
    scheduler.close()
    assert error(queued)[0] is StatusCode.UNAVAILABLE
    instance.finish()
    assert scheduler.wait_until_idle(10)


def test_statistics_give_each_request_of_a_batch_its_durations_in_full(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    harness.enqueue(scheduler, "a")
    instance.wait_for_batch()
    harness.enqueue(scheduler, "b", "c")
    instance.finish()
    instance.finish()
    assert scheduler.wait_until_idle(10)
    statistics = scheduler.statistics("identity", "1")
    assert (statistics.inference_count, statistics.execution_count) == (3, 2)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in statistics.batch_stats] == [
        (1, 1),
        (2, 1),
    ]
    per_batch = [batch.compute_infer.ns for batch in statistics.batch_stats]
    assert statistics.inference_stats.compute_infer.ns == per_batch[0] + 2 * per_batch[1]
    assert statistics.inference_stats.success.count == statistics.inference_stats.queue.count == 3


def test_a_quick_model_runs_on_the_thread_that_collects_and_a_slow_one_does_not(harness: Harness) -> None:
    instance = InstantInstance()
    scheduler = harness.scheduler(instance)
    for index in range(20):
        (request,) = harness.enqueue(scheduler, str(index))
        answer(request)
        assert scheduler.wait_until_idle(10)
    with harness.workers.collecting() as work:
        (quick,) = harness.enqueue(scheduler, "quick")
        work.run()
    answer(quick)
    assert instance.threads[-1] == threading.current_thread().name


def test_a_model_that_turns_slow_is_handed_to_workers_again(harness: Harness) -> None:
    is_slow = threading.Event()

    def behave(execution: Execution) -> None:
        if is_slow.is_set():
            # As the scheduler sees it: an execution that began a second ago.
            execution.start_ns -= 1_000_000_000
        echo(execution)

    instance = InstantInstance(behave)
    scheduler = harness.scheduler(instance)
    with harness.workers.collecting() as work:
        for index in range(20):
            (request,) = harness.enqueue(scheduler, str(index))
            work.run_until(lambda: False)
        is_slow.set()
        harness.enqueue(scheduler, "turns slow")
        work.run()
        (slow,) = harness.enqueue(scheduler, "slow")
        work.run()
    answer(request)
    answer(slow)
    here = threading.current_thread().name
    assert [thread == here for thread in instance.threads[-2:]] == [True, False]


def test_a_queued_request_that_is_cancelled_is_answered_at_once(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    cancelled, other = harness.enqueue(scheduler, "cancelled", "other")
    cancelled.cancellation.cancel()
    # The instance is still busy with the first.
    assert error(cancelled) == (StatusCode.CANCELLED, "")
    assert scheduler.pending() == 1
    instance.finish()
    instance.finish()
    assert answer(other).id == "other"
    assert instance.batches == [["running"], ["other"]]
    assert scheduler.failures()["CANCELED"] == 1


def test_what_comes_while_an_instance_is_about_to_run_may_leave_too(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance, max_batch_size=1)
    with harness.workers.collecting() as work:
        # The instance is due, and has not taken its batch: it will be of the first request alone.
        first, second = harness.enqueue(scheduler, "first", "second")
        second.cancellation.cancel()
        assert error(second) == (StatusCode.CANCELLED, "")
        work.run()
    instance.finish()
    assert answer(first).id == "first"
    assert instance.batches == [["first"]]


def test_all_queued_requests_that_share_a_cancellation_leave(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    cancellation = Cancellation()
    requests = [harness.request(str(index)) for index in range(3)]
    for request in requests:
        request.cancellation = cancellation
        scheduler.enqueue(request)
    cancellation.cancel()
    assert [error(request)[0] for request in requests] == [StatusCode.CANCELLED] * 3
    assert scheduler.pending() == 0
    instance.finish()
    assert scheduler.wait_until_idle(10)


def test_a_request_that_was_cancelled_before_it_came_does_not_run(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    request = harness.request("late")
    request.cancellation.cancel()
    scheduler.enqueue(request)
    assert error(request)[0] is StatusCode.CANCELLED
    instance.finish()
    assert scheduler.wait_until_idle(10)
    assert instance.batches == [["running"]]


def test_what_ran_is_forgotten_by_its_cancellation(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    (queued,) = harness.enqueue(scheduler, "queued")
    instance.finish()
    instance.finish()
    assert answer(queued).id == "queued"
    queued.cancellation.cancel()
    assert scheduler.wait_until_idle(10)
    assert scheduler.failures()["CANCELED"] == 0


def test_a_request_past_its_timeout_is_answered_while_the_instance_is_busy(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance, policy=QueuePolicy(timeout_ns=60 * 10**9, allows_override=True))
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    late = harness.request("late")
    late.timeout_us = 1000
    scheduler.enqueue(late)
    assert error(late) == (StatusCode.UNAVAILABLE, "Request timeout expired")
    assert scheduler.failures()["REJECTED"] == 1
    instance.finish()
    assert scheduler.wait_until_idle(10)
    assert instance.batches == [["running"]]


def test_a_delayed_request_runs_after_its_timeout(harness: Harness) -> None:
    instance = ManualInstance()
    policy = QueuePolicy(timeout_ns=1_000_000, delays=True)
    scheduler = harness.scheduler(instance, policy=policy)
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    (late,) = harness.enqueue(scheduler, "late")
    harness.timer.call_at(late.queued_ns + 2_000_000, instance.finish)
    instance.finish()
    assert answer(late).id == "late"


def test_a_full_queue_refuses_at_once_and_counts_no_failure(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance, policy=QueuePolicy(max_size=2))
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    harness.enqueue(scheduler, "b", "c")
    with pytest.raises(InferenceError, match=r"\[request id: d\] Exceeds maximum queue size") as refused:
        scheduler.enqueue(harness.request("d"))
    assert refused.value.code is StatusCode.UNAVAILABLE
    assert sum(scheduler.failures().values()) == 0
    instance.finish()
    instance.finish()
    assert scheduler.wait_until_idle(10)


def test_responses_keep_the_order_of_their_requests(harness: Harness) -> None:
    instances = [ManualInstance(), ManualInstance()]
    scheduler = harness.scheduler(*instances, preserves_order=True, max_batch_size=1)
    order: list[str] = []

    class Recorder(WaitingSender):
        __slots__ = ()

        def send(self, response: InferenceResponse | None, final: bool) -> None:
            assert response is not None
            order.append(response.id)
            super().send(response, final)

    senders = []
    for id in ("first", "second", "third"):
        request = harness.request(id)
        request.sender = Recorder()
        senders.append(request.sender)
        scheduler.enqueue(request)
    running = {instance.wait_for_batch().requests[0].id: instance for instance in instances}
    running["second"].finish()
    running["second"].wait_for_batch()
    running["second"].finish()
    assert order == []
    running["first"].finish()
    for sender in senders:
        sender.wait()
    assert order == ["first", "second", "third"]


class CallingInstance(InstantInstance):
    """An instance that waits for calls of others, for nothing else, and takes as long as the test says."""

    makes_blocking_calls = True
    blocks_for_calls_only = True

    def __init__(self) -> None:
        super().__init__(self._take_time)
        self.duration_ns = 0

    def _take_time(self, execution: Execution) -> None:
        execution.start_ns -= self.duration_ns
        echo(execution)


def test_a_quick_model_that_calls_others_runs_where_nothing_is_held_back(harness: Harness) -> None:
    caller, plain = CallingInstance(), InstantInstance()
    schedulers = [harness.scheduler(caller), harness.scheduler(plain)]
    here = threading.current_thread().name
    with harness.workers.collecting() as work:
        for scheduler in schedulers:
            for index in range(20):
                harness.enqueue(scheduler, str(index))
                work.run_until(lambda: False)
        caller.threads.clear()
        plain.threads.clear()
        harness.enqueue(schedulers[0], "calls")
        harness.enqueue(schedulers[1], "plain")
        work.run()
    assert (caller.threads, plain.threads) == ([here], [here])


def test_a_caller_that_was_slow_is_not_trusted_for_long(harness: Harness) -> None:
    caller = CallingInstance()
    scheduler = harness.scheduler(caller)
    here = threading.current_thread().name

    def runs_until_trusted() -> int:
        for count in range(10_000):
            (request,) = harness.enqueue(scheduler, "again")
            work.run()
            answer(request)
            assert scheduler.wait_until_idle(10)
            if caller.threads[-1] == here:
                return count
        raise AssertionError("never trusted")

    with harness.workers.collecting() as work:
        first = runs_until_trusted()
        waits = []
        for _ in range(2):
            caller.duration_ns = 10_000_000
            harness.enqueue(scheduler, "slow")
            work.run()
            assert scheduler.wait_until_idle(10)
            caller.duration_ns = 0
            waits.append(runs_until_trusted())
    assert first < waits[0] < waits[1]


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "behind another"])
def test_a_step_of_a_sequence_is_answered_before_its_instance_runs_the_next(
    harness: Harness, others: int
) -> None:
    dispatched: list[Work] = []
    dispatched_meanwhile: list[int] = []

    class NotingPool(WorkerPool):
        def dispatch(self, work: Work) -> None:
            dispatched.append(work)
            super().dispatch(work)

    class SendsTheNext(WaitingSender):
        def send(self, response: InferenceResponse | None, final: bool) -> None:
            before = len(dispatched)
            scheduler.enqueue(follower)
            # Whatever is dispatched may run at once.
            dispatched_meanwhile.append(len(dispatched) - before)

    harness.workers = NotingPool()
    scheduler = harness.scheduler(InstantInstance())
    first, follower = harness.request("a"), harness.request("b")
    first.sender = SendsTheNext()
    first.correlation_id = follower.correlation_id = 7
    with harness.workers.collecting() as work:
        harness.enqueue(scheduler, *["other"] * others)
        scheduler.enqueue(first)
        work.run()
    assert answer(follower).error is None
    assert dispatched_meanwhile == [0]


def test_a_refused_request_is_answered_by_whoever_sent_it_and_counted_by_nobody(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance, policy=QueuePolicy(max_size=1))
    harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    harness.enqueue(scheduler, "queued")
    refused = harness.request("refused")
    with pytest.raises(InferenceError) as refusal:
        scheduler.enqueue(refused)
    refused.fail(refusal.value)
    assert error(refused)[0] is StatusCode.UNAVAILABLE
    assert scheduler.in_flight == 2
    assert sum(scheduler.failures().values()) == 0
    instance.finish()
    instance.finish()
    assert scheduler.wait_until_idle(10)


class ManualTimer:
    """Calls back as the test moves the time on (Timer)."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Callable[[], None]]] = []

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> None:
        self.calls.append((time_ns, callback))

    def advance(self, now_ns: int) -> None:
        due = sorted((call for call in self.calls if call[0] <= now_ns), key=lambda call: call[0])
        self.calls = [call for call in self.calls if call[0] > now_ns]
        for _, callback in due:
            callback()

    def close(self) -> None:
        """Nothing to end."""


def test_a_call_of_the_timer_that_an_earlier_one_has_replaced_arms_no_other(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = 1
    monkeypatch.setattr("cantata.runtime.scheduling.model_scheduler.monotonic_ns", lambda: now_ns)
    harness.timer.close()
    timer = ManualTimer()
    harness.timer = timer  # type: ignore[assignment]
    # Each request arms the timer for its end, and then, earlier, for its batch.
    policy = QueuePolicy(timeout_ns=1_000_000)
    scheduler = harness.scheduler(InstantInstance(), delay_us=10, policy=policy)
    with harness.workers.collecting() as work:
        for _ in range(200):
            (request,) = harness.enqueue(scheduler, "again")
            now_ns += 10_000
            timer.advance(now_ns)
            work.run_until(lambda: False)
            assert answer(request).error is None
    # Those that were replaced go when their time has come: as many as requests come within a timeout.
    assert len(timer.calls) <= 101
    now_ns += 2_000_000
    timer.advance(now_ns)
    assert timer.calls == []


@pytest.mark.parametrize("keeps_others", [False, True])
def test_an_instance_that_comes_while_all_others_are_away_serves(
    harness: Harness, keeps_others: bool
) -> None:
    gone = RestartingInstance()
    scheduler = harness.scheduler(gone)
    gone.go_away()
    assert scheduler.unavailability is not None
    scheduler.add_instances([InstantInstance()])
    assert scheduler.unavailability is None
    if not keeps_others:
        scheduler.remove_instances([gone])
    (request,) = harness.enqueue(scheduler, "a")
    assert answer(request).error is None


def test_what_waits_is_refused_when_only_instances_that_are_away_remain(harness: Harness) -> None:
    gone, busy = RestartingInstance(), ManualInstance()
    scheduler = harness.scheduler(gone, busy)
    gone.go_away()
    (running,) = harness.enqueue(scheduler, "running")
    busy.wait_for_batch()
    (queued,) = harness.enqueue(scheduler, "queued")
    scheduler.remove_instances([busy])
    text = "model 'identity' has no instance that runs until it is restarted: its process has ended"
    assert error(queued) == (StatusCode.UNAVAILABLE, text)
    with pytest.raises(InferenceError, match="its process has ended"):
        scheduler.enqueue(harness.request("late"))
    gone.come_back()
    (later,) = harness.enqueue(scheduler, "later")
    assert answer(later).error is None
    busy.finish()
    assert answer(running).error is None


def test_an_instance_that_went_away_before_it_was_added_is_not_waited_for(harness: Harness) -> None:
    gone = RestartingInstance()
    gone.go_away()
    scheduler = harness.scheduler(gone)
    with pytest.raises(InferenceError, match="its process has ended"):
        scheduler.enqueue(harness.request("a"))


def test_who_is_left_over_by_an_instance_that_goes_away_may_leave(harness: Harness) -> None:
    busy, gone = ManualInstance(), RestartingInstance()
    scheduler = harness.scheduler(busy, gone)
    gone.go_away()
    harness.enqueue(scheduler, "running")
    busy.wait_for_batch()
    gone.come_back()
    with harness.workers.collecting() as work:
        (left_over,) = harness.enqueue(scheduler, "left over")
        gone.go_away()
        work.run_until(lambda: False)
    left_over.cancellation.cancel()
    assert error(left_over) == (StatusCode.CANCELLED, "")
    busy.finish()
    assert scheduler.wait_until_idle(10)


def test_who_is_overtaken_may_leave(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance, policy=QueuePolicy(), levels=2, max_batch_size=1)
    low, high = harness.request("low"), harness.request("high")
    low.priority, high.priority = 2, 1
    with harness.workers.collecting() as work:
        scheduler.enqueue(low)
        scheduler.enqueue(high)
        work.run()
    instance.wait_for_batch()
    low.cancellation.cancel()
    assert error(low) == (StatusCode.CANCELLED, "")
    instance.finish()
    assert answer(high).id == "high"
    assert instance.batches == [["high"]]


def test_a_request_whose_caller_waits_runs_on_its_thread_at_once(harness: Harness) -> None:
    instance = InstantInstance()
    scheduler = harness.scheduler(instance)
    request = harness.request("a")
    assert scheduler.run_now(request)
    assert answer(request).id == "a"
    assert instance.threads == [threading.current_thread().name]
    (batch,) = scheduler.statistics("identity", "1").batch_stats
    assert (batch.batch_size, batch.compute_infer.count) == (1, 1)
    assert scheduler.in_flight == 0
    # The instance is there for the next one.
    assert scheduler.run_now(harness.request("b"))


def test_what_comes_while_it_runs_runs_next(harness: Harness) -> None:
    held: list[InferenceRequest] = []

    def answer_and_ask_again(execution: Execution) -> None:
        if not held:
            held.extend(harness.enqueue(scheduler, "next"))
        echo(execution)

    scheduler = harness.scheduler(InstantInstance(answer_and_ask_again))
    assert scheduler.run_now(harness.request("first"))
    assert answer(held[0]).id == "next"


def test_a_request_does_not_overtake_those_that_wait(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(instance)
    requests = harness.enqueue(scheduler, "running")
    instance.wait_for_batch()
    late = harness.request("late")
    assert not scheduler.run_now(late)
    requests += harness.enqueue(scheduler, "waiting")
    scheduler.enqueue(late)
    instance.finish()
    instance.finish()
    assert [answer(request).id for request in (*requests, late)] == ["running", "waiting", "late"]
    assert instance.batches == [["running"], ["waiting", "late"]]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"delay_us": 1_000_000}, id="that others may join"),
        pytest.param({"policy": QueuePolicy(), "levels": 2}, id="with priorities"),
        pytest.param({"preserves_order": True}, id="answered in order"),
    ],
)
def test_what_a_queue_decides_is_left_to_it(harness: Harness, options: dict[str, Any]) -> None:
    assert harness.scheduler(InstantInstance()).can_run_now
    assert not harness.scheduler(InstantInstance(), **options).can_run_now


def test_what_is_to_be_refused_is_not_run_at_once(harness: Harness) -> None:
    scheduler = harness.scheduler(InstantInstance())
    cancelled = harness.request()
    cancelled.cancellation.cancel()
    assert not scheduler.run_now(cancelled)
    late = harness.request()
    late.deadline_ns = 1
    assert not scheduler.run_now(late)
    scheduler.stop()
    assert not scheduler.run_now(harness.request())
    assert scheduler.in_flight == 0


def test_a_request_that_runs_at_once_has_its_timeout(harness: Harness) -> None:
    instance = BackgroundInstance()
    scheduler = harness.scheduler(instance)
    request = harness.request()
    ended = threading.Event()
    request.cancellation.add_listener("test", ended.set)
    request.timeout_us = 1
    assert scheduler.run_now(request)
    assert ended.wait(10)
    (execution,) = instance.running
    echo(execution)
    execution.finish()


def test_an_instance_is_busy_with_a_batch_that_another_thread_ends(harness: Harness) -> None:
    instance = LeavingInstance()
    scheduler = harness.scheduler(instance)
    first = harness.request("first")
    assert scheduler.run_now(first)
    second, third = harness.request("second"), harness.request("third")
    with harness.workers.collecting() as work:
        scheduler.enqueue(second)
        scheduler.enqueue(third)
        work.run()
        assert instance.batches == [["first"]]
        instance.finish()
        assert answer(first).id == "first"
        work.run_until(lambda: False)
    assert instance.batches == [["first"], ["second", "third"]]
    assert not scheduler.wait_until_idle(0)
    instance.finish()
    assert [answer(request).id for request in (second, third)] == ["second", "third"]
    batches = scheduler.statistics("identity", "1").batch_stats
    assert [(batch.batch_size, batch.compute_infer.count) for batch in batches] == [(1, 1), (2, 1)]


def test_a_thread_that_must_not_be_held_up_runs_quick_models_only(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 10**12)
    instance = InstantInstance()
    scheduler = harness.scheduler(instance)
    ran = [scheduler.run_now(harness.request(), only_if_quick=True)]
    for _ in range(8):
        assert scheduler.run_now(harness.request())
    ran.append(scheduler.run_now(harness.request(), only_if_quick=True))
    assert ran == [False, True]


def test_an_instance_that_warms_up_elsewhere_serves_nobody_yet(harness: Harness) -> None:
    instance = LeavingInstance()
    scheduler = harness.scheduler()
    request = harness.request("warm")
    scheduler.warm_up(instance, [request], [{}])
    instance.finish()
    assert answer(request).id == "warm"
    assert not scheduler.is_idle


def test_what_is_left_to_another_thread_keeps_its_resources(harness: Harness) -> None:
    """Of two models that share one resource the second waits until the batch of the first has ended."""
    limits = LimitedDispatch(harness.workers, ())
    instance = LeavingInstance()
    work = ScheduledInstance(harness.scheduler(), instance)
    work.is_quick_alone = True
    group, placement = ModelInstanceGroup(count=1), InstancePlacement("one", "CPU", 0)
    limit = instance_limit(group, placement)
    assert not LimitedWork(limits, work, limit).is_quick_alone
