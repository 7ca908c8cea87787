"""The driver of sequences: what its batcher decides is carried out, and every accepted request is answered once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cantata.grammars.model_config import ModelSequenceBatching
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.calls import WaitingSender
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.worker_pool import Work, WorkerPool
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.sequence_inputs import SequenceInputs
from cantata.runtime.scheduling.sequence_scheduler import SequenceScheduler
from cantata.runtime.scheduling.sequence_strategies import sequence_batcher
from cantata.runtime.scheduling.timer import Timer
from tests.support.instances import (
    BackgroundInstance,
    InstantInstance,
    LeavingInstance,
    ManualInstance,
    RestartingInstance,
    echo,
)
from tests.support.sequences import IDLE_NS, direct, oldest, sequence_config, sequence_request

Instance = InstantInstance | ManualInstance | BackgroundInstance | LeavingInstance
LONG_US = 60_000_000


class Harness:
    """Schedulers over given instances, with real threads."""

    def __init__(self, tmp_path: Path) -> None:
        self.workers = WorkerPool()
        self.timer = Timer()
        self._directory = tmp_path
        self._schedulers: list[SequenceScheduler] = []

    def scheduler(
        self, batching: ModelSequenceBatching, *instances: Instance, max_batch_size: int = 4
    ) -> SequenceScheduler:
        config = sequence_config(batching, max_batch_size=max_batch_size)
        spec, inputs = ModelSpec(config, 1), SequenceInputs(config, self._directory)
        batcher = sequence_batcher(batching, spec, inputs.prepare)
        scheduler = SequenceScheduler(spec, batcher, inputs, self.workers, self.timer)
        scheduler.add_instances(instances)
        self._schedulers.append(scheduler)
        return scheduler

    def close(self) -> None:
        for scheduler in self._schedulers:
            scheduler.close()
            assert scheduler.in_flight == 0
        self.timer.close()
        self.workers.close()


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.close()


def send(scheduler: SequenceScheduler, number: int, id: str, **fields: bool | int) -> InferenceRequest:
    request = sequence_request(number, id=id, **fields)  # type: ignore[arg-type]
    request.sender = WaitingSender()
    scheduler.enqueue(request)
    return request


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


def lasting(strategy: Callable[..., ModelSequenceBatching], **fields: object) -> ModelSequenceBatching:
    return strategy(max_sequence_idle_microseconds=LONG_US, **fields)


STRATEGIES = [pytest.param(direct, id="direct"), pytest.param(oldest, id="oldest")]


def test_rows_of_nobody_run_with_the_others_and_are_not_counted_as_inferences(harness: Harness) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(lasting(direct), instance)
    requests = [send(scheduler, 1, "1a", start=True)]
    instance.wait_for_batch()
    requests += [send(scheduler, number, f"{number}a", start=True) for number in (2, 3)]
    instance.finish()
    instance.wait_for_batch()
    instance.finish()
    for request in requests:
        assert answer(request).error is None
    assert instance.batches == [["1a"], ["", "2a", "3a"]]
    statistics = scheduler.statistics("model", "1")
    assert (statistics.inference_count, statistics.execution_count) == (3, 2)
    assert [batch.batch_size for batch in statistics.batch_stats] == [1, 3]
    assert statistics.inference_stats.success.count == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_in_the_background_keeps_its_sequences_back(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    instance = BackgroundInstance()
    scheduler = harness.scheduler(lasting(strategy), instance)
    with harness.workers.collecting() as work:
        first, second = send(scheduler, 1, "a", start=True), send(scheduler, 1, "b")
        while not instance.running:
            work.run_until(lambda: bool(instance.running))
        assert len(instance.running) == 1
        echo(instance.running[0])
        instance.running.pop().finish()
        work.run_until(lambda: bool(instance.running))
        echo(instance.running[0])
        instance.running[0].finish()
    assert (answer(first).id, answer(second).id) == ("a", "b")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_failing_batch_ends_no_sequence(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    def fail(execution: Execution) -> None:
        if execution.requests[-1].id == "bad":
            raise RuntimeError("broken")
        echo(execution)

    scheduler = harness.scheduler(lasting(strategy), InstantInstance(fail))
    bad = send(scheduler, 1, "bad", start=True)
    assert error(bad) == (StatusCode.INTERNAL, "RuntimeError: broken")
    assert answer(send(scheduler, 1, "good")).error is None
    assert scheduler.failures()["BACKEND"] == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stopped_scheduler_goes_on_with_its_sequences(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    scheduler = harness.scheduler(lasting(strategy), InstantInstance())
    answer(send(scheduler, 1, "a", start=True))
    scheduler.stop()
    text = "Server is stopping, scheduler for model has stopped accepting new inference requests"
    with pytest.raises(InferenceError, match=text):
        send(scheduler, 2, "b", start=True)
    assert answer(send(scheduler, 1, "c", end=True)).error is None
    with pytest.raises(InferenceError, match=text):
        send(scheduler, 1, "d")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_closing_answers_all_that_waits(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(lasting(strategy), instance, max_batch_size=1)
    running = send(scheduler, 1, "a", start=True)
    instance.wait_for_batch()
    waiting = [send(scheduler, 1, "b"), send(scheduler, 2, "c", start=True)]
    assert scheduler.pending() == 2
    scheduler.close()
    for request in waiting:
        assert error(request) == (
            StatusCode.UNAVAILABLE,
            f"[request id: {request.id}] Server is stopping",
        )
    instance.finish()
    assert answer(running).error is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_wait_for_a_slot_ends_by_itself(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    scheduler = harness.scheduler(lasting(strategy), InstantInstance(), max_batch_size=1)
    answer(send(scheduler, 1, "a", start=True))
    waiting = send(scheduler, 2, "b", start=True, timeout_us=1_000)
    assert error(waiting) == (
        StatusCode.UNAVAILABLE,
        "timeout of the corresponding sequence has been expired",
    )
    assert scheduler.failures()["REJECTED"] == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_idleness_frees_the_slot_for_who_waits(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    scheduler = harness.scheduler(
        strategy(max_sequence_idle_microseconds=1_000), InstantInstance(), max_batch_size=1
    )
    answer(send(scheduler, 1, "a", start=True))
    assert answer(send(scheduler, 2, "b", start=True)).error is None


def test_a_batch_that_waits_for_more_runs_when_the_delay_is_over(harness: Harness) -> None:
    instance = InstantInstance()
    scheduler = harness.scheduler(lasting(direct, delay_us=2_000, utilization=1.0), instance)
    requests = [send(scheduler, number, str(number), start=True) for number in (1, 2)]
    for request in requests:
        answer(request)
    assert instance.batches == [["1", "2"]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cancelled_sequences_are_answered_when_their_turn_comes(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    instance = ManualInstance()
    scheduler = harness.scheduler(lasting(strategy), instance)
    running = send(scheduler, 1, "a", start=True)
    instance.wait_for_batch()
    cancelled = [send(scheduler, 2, "b", start=True), send(scheduler, 2, "c")]
    cancelled[0].cancellation.cancel()
    instance.finish()
    answer(running)
    for request in cancelled:
        assert error(request) == (StatusCode.CANCELLED, "")
    assert scheduler.failures()["CANCELED"] == 2


def test_answers_may_keep_the_order_of_their_turns(harness: Harness) -> None:
    instances = BackgroundInstance()
    batching = ModelSequenceBatching.model_validate(
        {
            "max_sequence_idle_microseconds": LONG_US,
            "oldest": {"preserve_ordering": True, "max_candidate_sequences": 2, "preferred_batch_size": [1]},
        }
    )
    scheduler = harness.scheduler(batching, instances, max_batch_size=1)
    answered: list[str] = []

    class Noting(WaitingSender):
        def send(self, response: InferenceResponse | None, final: bool) -> None:
            assert response is not None
            answered.append(response.id)

    with harness.workers.collecting() as work:
        for number, id in ((1, "first"), (2, "second")):
            request = sequence_request(number, id=id, start=True)
            request.sender = Noting()
            scheduler.enqueue(request)
            work.run_until(lambda: False)
        first, second = instances.running
        echo(second)
        second.finish()
        assert answered == []
        echo(first)
        first.finish()
    assert answered == ["first", "second"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_request_runs_before_the_one_ahead_in_its_sequence_has_its_answer(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    dispatched: list[Work] = []

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

    dispatched_meanwhile: list[int] = []
    harness.workers = NotingPool()
    instance = InstantInstance()
    scheduler = harness.scheduler(lasting(strategy), instance)
    first, follower = (
        sequence_request(1, id="a", start=True),
        sequence_request(1, id="b", end=True),
    )
    first.sender, follower.sender = SendsTheNext(), WaitingSender()
    scheduler.enqueue(first)
    assert answer(follower).error is None
    assert dispatched_meanwhile == [0]
    assert instance.batches == [["a"], ["b"]]


class ManualTimer:
    """Remembers what it is to call, and when; the test calls it."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Callable[[], None]]] = []

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> None:
        self.calls.append((time_ns, callback))

    def close(self) -> None:
        """Nothing to end."""


def test_a_process_that_stood_still_gives_its_clients_as_long_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = 0
    monkeypatch.setattr("cantata.runtime.scheduling.sequence_scheduler.monotonic_ns", lambda: now_ns)
    timer = ManualTimer()
    harness.timer.close()
    harness.timer = timer  # type: ignore[assignment]
    scheduler = harness.scheduler(direct(), InstantInstance())

    def run(id: str, **fields: bool) -> None:
        with harness.workers.collecting() as work:
            request = send(scheduler, 1, id, **fields)
            work.run_until(lambda: False)
        assert answer(request).error is None

    run("a", start=True)
    (due_ns, expire) = timer.calls.pop()
    assert due_ns == IDLE_NS
    # The process was suspended: what the client sent in the meantime is read after the timer has called.
    now_ns = due_ns + 400_000_000
    expire()
    run("b")
    (due_ns, expire) = timer.calls.pop()
    assert due_ns == now_ns + 400_000_000
    now_ns = due_ns
    expire()
    with pytest.raises(InferenceError, match="must specify the START flag"):
        send(scheduler, 1, "c")


def test_a_refused_request_is_answered_by_whoever_sent_it_and_counted_by_nobody(harness: Harness) -> None:
    scheduler = harness.scheduler(direct(), InstantInstance())
    refused = sequence_request(1, id="no start")
    refused.sender = WaitingSender()
    with pytest.raises(InferenceError) as refusal:
        scheduler.enqueue(refused)
    refused.fail(refusal.value)
    assert error(refused)[0] is StatusCode.INVALID_ARG
    assert (scheduler.in_flight, sum(scheduler.failures().values())) == (0, 0)


def test_a_removed_instance_is_left_when_what_waited_there_is_cancelled(harness: Harness) -> None:
    instance = InstantInstance()
    scheduler = harness.scheduler(lasting(direct, delay_us=LONG_US, utilization=1.0), instance)
    waiting = send(scheduler, 1, "a", start=True)
    (leaving,) = scheduler.remove_instances([instance])
    assert leaving.left is not None
    assert not leaving.left.is_set()
    waiting.cancellation.cancel()
    assert error(waiting) == (StatusCode.CANCELLED, "")
    assert leaving.left.is_set()


def test_an_instance_that_comes_while_all_others_are_away_serves(harness: Harness) -> None:
    gone = RestartingInstance()
    scheduler = harness.scheduler(lasting(direct), gone)
    gone.go_away()
    with pytest.raises(InferenceError, match="its process has ended"):
        send(scheduler, 1, "a", start=True)
    scheduler.add_instances([InstantInstance()])
    scheduler.remove_instances([gone])
    assert answer(send(scheduler, 1, "b", start=True)).error is None


def test_a_leaving_instance_ends_its_sequences_while_all_others_are_away(harness: Harness) -> None:
    leaving, gone = InstantInstance(), RestartingInstance()
    scheduler = harness.scheduler(lasting(direct), leaving, gone, max_batch_size=1)
    assert answer(send(scheduler, 1, "a", start=True)).error is None
    gone.go_away()
    assert scheduler.unavailability is None
    scheduler.remove_instances([leaving])
    with pytest.raises(InferenceError, match="its process has ended"):
        send(scheduler, 2, "b", start=True)
    assert answer(send(scheduler, 1, "c", end=True)).error is None
    gone.come_back()
    assert answer(send(scheduler, 3, "d", start=True)).error is None
    assert (leaving.batches, gone.batches) == ([["a"], ["c"]], [["d"]])


@pytest.mark.parametrize("strategy", [direct, oldest])
def test_an_instance_is_busy_with_a_batch_that_another_thread_ends(
    harness: Harness, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    instance = LeavingInstance()
    scheduler = harness.scheduler(lasting(strategy), instance)
    first = send(scheduler, 1, "1a", start=True)
    left = instance.left.get(timeout=10)
    other = send(scheduler, 2, "2a", start=True, end=True)
    assert instance.batches == [["1a"]]
    instance.left.put(left)
    instance.finish()
    assert answer(first).id == "1a"
    instance.finish()
    assert answer(other).id == "2a"
    last = send(scheduler, 1, "1b", end=True)
    instance.finish()
    assert answer(last).id == "1b"
    assert scheduler.wait_until_idle(10)
