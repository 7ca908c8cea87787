"""Equal requests are answered without running, and run once where several come; nobody else's end is anybody's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cantata.runtime.errors import InferenceError, StatusCode, internal_error, unavailable
from cantata.runtime.execution.execution import Execution
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.priority_queue import QueuePolicies, QueuePolicy
from cantata.runtime.tensor import tensor_of_array
from tests.support.caching import Caching, values_of
from tests.support.requests import RecordingSender, identity_spec

CANCELLED = InferenceError(StatusCode.CANCELLED, "")


@pytest.fixture(params=[False, True], ids=["local", "remote"])
def caching(request: pytest.FixtureRequest) -> Caching:
    return Caching(is_remote=request.param)


def run(caching: Caching, *values: float) -> list[InferenceRequest]:
    requests = caching.enqueue(*values)
    caching.threads.run_all()
    return requests


def test_an_equal_request_is_answered_without_running(caching: Caching) -> None:
    [first] = run(caching, 1.0)
    caching.inner.answer(first, 7.0)
    caching.threads.run_all()
    [second] = run(caching, 1.0)
    [other] = run(caching, 2.0)
    assert (values_of(first), values_of(second), values_of(other)) == ([7.0], [7.0], None)
    assert caching.inner.running == [other]
    assert caching.figures()[2:] == (1, 1)


def test_equal_requests_on_their_way_run_once(caching: Caching) -> None:
    requests = run(caching, 1.0, 1.0, 1.0)
    assert caching.inner.running == requests[:1]
    assert caching.scheduler.in_flight == 3
    caching.inner.answer(requests[0], 7.0)
    assert [values_of(request) for request in requests] == [[7.0]] * 3
    caching.threads.run_all()
    assert caching.scheduler.in_flight == 0
    assert caching.figures()[2:] == (2, 1)


def test_a_failure_is_not_kept_and_those_who_waited_run_each(caching: Caching) -> None:
    requests = run(caching, 1.0, 1.0, 1.0)
    caching.inner.started(requests[0])
    caching.inner.fail(requests[0], internal_error("broken"))
    assert caching.inner.running == requests[1:]
    caching.inner.answer(requests[1], 7.0)
    caching.inner.fail(requests[2], internal_error("again"))
    caching.threads.run_all()
    assert [values_of(request) for request in requests] == ["broken", [7.0], "again"]
    [later] = run(caching, 1.0)
    assert values_of(later) == [7.0]


@pytest.mark.parametrize("was_running", [False, True])
def test_when_a_leader_is_cancelled_the_next_leads(caching: Caching, was_running: bool) -> None:
    requests = run(caching, 1.0, 1.0, 1.0)
    if was_running:
        caching.inner.started(requests[0])
    requests[0].cancellation.cancel()
    caching.inner.fail(requests[0], CANCELLED)
    assert caching.inner.running == requests[1:2]
    [late] = run(caching, 1.0)
    caching.inner.answer(requests[1], 7.0)
    assert [values_of(request) for request in (*requests, late)] == ["Cancelled", [7.0], [7.0], [7.0]]


def test_a_leader_that_waited_too_long_for_an_instance_is_succeeded(caching: Caching) -> None:
    requests = run(caching, 1.0, 1.0, 1.0)
    caching.inner.fail(requests[0], unavailable("Request timeout expired"))
    assert caching.inner.running == requests[1:2]


def test_a_waiter_that_is_cancelled_leaves_alone(caching: Caching) -> None:
    requests = run(caching, 1.0, 1.0, 1.0)
    requests[1].cancellation.cancel()
    assert [values_of(request) for request in requests] == [None, "Cancelled", None]
    caching.inner.answer(requests[0], 7.0)
    caching.threads.run_all()
    assert [values_of(request) for request in requests] == [[7.0], "Cancelled", [7.0]]
    assert caching.scheduler.failures()["CANCELED"] == 1
    assert caching.figures()[1] == 1
    assert caching.scheduler.in_flight == 0


def test_a_waiter_whose_own_time_is_over_leaves_alone() -> None:
    caching = Caching(has_own_timeouts=True)
    leader, waiter = caching.enqueue(1.0), caching.enqueue(1.0, timeout_us=50)[0]
    [(at_ns, _)] = caching.timer.calls
    assert at_ns <= waiter.queued_ns + 50_000
    waiter.cancellation.expire()
    assert values_of(waiter) == "Request timeout expired"
    assert caching.scheduler.failures()["REJECTED"] == 1
    caching.inner.answer(leader[0], 7.0)
    assert caching.scheduler.in_flight == 0


def test_when_a_leaders_own_time_is_over_the_next_leads() -> None:
    caching = Caching()
    leader, waiter = caching.enqueue(1.0, 1.0)
    caching.inner.started(leader)
    leader.cancellation.expire()
    caching.inner.fail(leader, CANCELLED)
    assert values_of(leader) == "Request timeout expired"
    assert caching.inner.running == [waiter]


def test_a_waiter_is_not_cancelled_with_what_it_waits_for(caching: Caching) -> None:
    leader, waiter = run(caching, 1.0, 1.0)
    leader.cancellation.cancel()
    caching.inner.answer(leader, 7.0)
    assert values_of(waiter) == [7.0]


def policies(timeout_ns: int = 0, *, allows_override: bool = False, delays: bool = False) -> QueuePolicies:
    policy = QueuePolicy(timeout_ns=timeout_ns, allows_override=allows_override, delays=delays)
    return QueuePolicies(0, 0, policy, {})


def test_a_waiter_waits_no_longer_than_its_queue_would_let_it() -> None:
    caching = Caching(policies=policies(5_000_000, allows_override=True))
    requests = [caching.request(timeout_us=timeout) for timeout in (0, 0, 1000)]
    for request in requests:
        caching.scheduler.enqueue(request)
    assert [
        at - request.queued_ns for (at, _), request in zip(caching.timer.calls, requests[1:], strict=True)
    ] == [
        5_000_000,
        1_000_000,
    ]
    caching.timer.fire()
    assert [values_of(request) for request in requests] == [None, *["Request timeout expired"] * 2]
    caching.inner.answer(requests[0], 7.0)
    assert caching.scheduler.failures()["REJECTED"] == 2
    assert caching.scheduler.in_flight == 0


def test_a_waiters_deadline_is_its_own() -> None:
    caching = Caching(policies=policies(5_000_000_000_000_000_000, delays=True))
    caching.enqueue(1.0)
    [waiter] = caching.enqueue(1.0, deadline_ns=2_000_000_000_000_000_000)
    assert [at for at, _ in caching.timer.calls] == [2_000_000_000_000_000_000]
    caching.timer.fire()
    assert values_of(waiter) == "Request timeout expired"


def test_a_time_that_comes_after_the_answer_changes_nothing() -> None:
    caching = Caching(policies=policies(5_000_000))
    leader, waiter = caching.enqueue(1.0, 1.0)
    caching.inner.answer(leader, 7.0)
    caching.timer.fire()
    assert values_of(waiter) == [7.0]
    assert caching.figures()[1] == 0


def test_the_more_urgent_does_not_wait_for_the_less_urgent() -> None:
    caching = Caching(policies=QueuePolicies(3, 2, QueuePolicy(), {}))
    [usual, urgent, idle] = [caching.request(priority=level) for level in (0, 1, 3)]
    for request in (usual, urgent, idle):
        caching.scheduler.enqueue(request)
    assert caching.inner.running == [usual, urgent]
    caching.inner.answer(urgent, 7.0)
    assert (values_of(urgent), values_of(idle)) == ([7.0], None)
    caching.inner.answer(usual, 7.0)
    assert values_of(idle) == [7.0]
    assert caching.scheduler.in_flight == 0


@pytest.mark.parametrize(("calls_nobody", "running"), [(True, 1), (False, 2)])
def test_a_call_that_keeps_an_instance_waits_only_for_what_needs_no_other(
    calls_nobody: bool, running: int
) -> None:
    caching = Caching(calls_nobody=calls_nobody)
    execution = Execution(identity_spec(), [], 0, 0, lambda _: None, instance=object())
    caching.enqueue(1.0)
    caching.enqueue(1.0, waiting=(execution,))
    assert len(caching.inner.running) == running
    # One that keeps none any more may wait for anything.
    execution.instance = None
    caching.enqueue(1.0, waiting=(execution,))
    assert len(caching.inner.running) == running


def test_a_refusal_is_its_callers_and_who_joined_meanwhile_runs() -> None:
    caching = Caching()
    joined: list[InferenceRequest] = []

    def refuse_first(_: InferenceRequest) -> None:
        if not joined:
            joined.append(caching.request())
            caching.scheduler.enqueue(joined[0])
            raise unavailable("Exceeds maximum queue size")

    caching.inner.on_enqueue = refuse_first
    first = caching.request()
    with pytest.raises(InferenceError, match="Exceeds maximum queue size"):
        caching.scheduler.enqueue(first)
    assert isinstance(first.sender, RecordingSender)
    assert caching.inner.running == joined
    caching.inner.answer(joined[0], 7.0)
    assert (values_of(first), values_of(joined[0])) == (None, [7.0])
    assert caching.scheduler.in_flight == 0


def test_those_who_waited_are_answered_where_the_queue_refuses_them(caching: Caching) -> None:
    requests = run(caching, 1.0, 1.0, 1.0)
    caching.refuse(unavailable("full"))
    caching.inner.fail(requests[0], CANCELLED)
    assert [values_of(request) for request in requests] == ["Cancelled", "full", "full"]
    assert caching.scheduler.in_flight == 0


def test_a_refusal_after_the_cache_was_asked_is_the_answer() -> None:
    caching = Caching(is_remote=True)
    caching.refuse(unavailable("full"))
    requests = run(caching, 1.0, 1.0)
    assert [values_of(request) for request in requests] == ["full", "full"]
    assert caching.scheduler.in_flight == 0


def large(caching: Caching, value: float) -> InferenceRequest:
    request = caching.request()
    request.inputs["INPUT"] = tensor_of_array(np.full(300_000, value, np.float32))
    caching.scheduler.enqueue(request)
    return request


def test_large_requests_are_compared_by_another_thread(caching: Caching) -> None:
    requests = [large(caching, value) for value in (1.0, 1.0, 2.0)]
    assert (caching.inner.running, caching.scheduler.in_flight) == ([], 3)
    caching.threads.run_all()
    assert caching.inner.running == [requests[0], requests[2]]
    caching.inner.answer(requests[0], 7.0)
    caching.refuse(unavailable("full"))
    refused = large(caching, 3.0)
    caching.threads.run_all()
    assert [values_of(request) for request in (*requests, refused)] == [[7.0], [7.0], None, "full"]
    assert caching.scheduler.in_flight == 1


def test_large_requests_are_compared_at_once_where_no_thread_is_left() -> None:
    caching = Caching()
    caching.threads.is_full = True
    request = large(caching, 1.0)
    assert caching.inner.running == [request]
    caching.refuse(unavailable("full"))
    with pytest.raises(InferenceError, match="full"):
        large(caching, 2.0)
    assert caching.scheduler.in_flight == 1


def test_answers_keep_the_order_of_their_requests() -> None:
    caching = Caching(is_ordered=True)
    [first] = caching.enqueue(1.0)
    caching.inner.answer(first, 7.0)
    slow, cached = caching.enqueue(2.0, 1.0)
    assert (values_of(slow), values_of(cached)) == (None, None)
    caching.refuse(unavailable("full"))
    [refused] = caching.enqueue(3.0)
    assert values_of(refused) is None
    caching.inner.answer(slow, 8.0)
    assert [values_of(request) for request in (slow, cached, refused)] == [[8.0], [7.0], "full"]


def test_a_request_answered_twice_or_never_is_not_kept(caching: Caching) -> None:
    answer = InferenceResponse("identity", 1, "", {"OUTPUT": tensor_of_array(np.zeros(1, np.float32))})
    [twice], [never] = run(caching, 1.0), run(caching, 2.0)
    twice.respond(answer, False)
    caching.inner.end(twice, answer)
    caching.inner.end(never, None)
    caching.threads.run_all()
    again = run(caching, 1.0, 2.0)
    assert caching.inner.running == again


def test_an_answer_before_its_final_mark_is_kept(caching: Caching) -> None:
    leader, waiter = run(caching, 1.0, 1.0)
    answer = InferenceResponse("identity", 1, "", {"OUTPUT": tensor_of_array(np.ones(1, np.float32))})
    leader.respond(answer, False)
    caching.inner.end(leader, None)
    assert values_of(waiter) == [1.0]


def test_what_is_kept_is_nobodys_to_change() -> None:
    caching = Caching()
    [first] = caching.enqueue(1.0)
    own = caching.inner.answer(first, 7.0).outputs["OUTPUT"].array
    own[:] = 0
    second, third = caching.enqueue(1.0, 1.0)
    assert (values_of(second), values_of(third)) == ([7.0], [7.0])
    sender = second.sender
    assert isinstance(sender, RecordingSender)
    response = sender.responses[0]
    assert response is not None
    with pytest.raises(ValueError, match="read-only"):
        response.outputs["OUTPUT"].array[:] = 0
    response.outputs.clear()
    assert values_of(caching.enqueue(1.0)[0]) == [7.0]


def test_the_figures_hold_every_request_once() -> None:
    caching = Caching()
    leader, *_ = caching.enqueue(1.0, 1.0)
    caching.inner.answer(leader, 7.0)
    caching.enqueue(1.0)
    statistics = caching.scheduler.statistics("identity", "1")
    stats = statistics.inference_stats
    # The inner scheduler of this test counts nothing: what it would count comes on top.
    assert (stats.success.count, stats.queue.count, stats.compute_infer.count) == (2, 2, 0)
    assert (stats.cache_hit.count, stats.cache_miss.count, stats.fail.count) == (2, 1, 0)
    assert min(stats.cache_hit.ns, stats.cache_miss.ns, stats.success.ns) > 0
    assert (statistics.inference_count, statistics.execution_count, statistics.batch_stats) == (0, 0, ())


def test_what_comes_while_the_cache_is_asked_waits_for_that() -> None:
    caching = Caching(is_remote=True)
    [first] = run(caching, 1.0)
    caching.inner.answer(first, 7.0)
    caching.threads.run_all()
    requests = caching.enqueue(1.0, 1.0)
    assert [values_of(request) for request in requests] == [None, None]
    caching.threads.run_all()
    assert [values_of(request) for request in requests] == [[7.0], [7.0]]
    assert caching.scheduler.in_flight == 0


def test_what_comes_before_the_cache_has_the_answer_gets_it() -> None:
    caching = Caching(is_remote=True)
    [first] = run(caching, 1.0)
    caching.inner.answer(first, 7.0)
    [second] = caching.enqueue(1.0)
    assert values_of(second) == [7.0]
    assert not caching.cache.entries
    caching.threads.run_all()
    assert len(caching.cache.entries) == 1


def test_a_cache_with_too_much_to_do_is_left_alone() -> None:
    caching = Caching(is_remote=True)
    caching.threads.is_full = True
    [first, second] = caching.enqueue(1.0, 1.0)
    caching.inner.answer(first, 7.0)
    [third] = caching.enqueue(1.0)
    assert (values_of(first), values_of(second)) == ([7.0], [7.0])
    assert caching.inner.running == [third]


def test_a_cache_that_breaks_is_a_cache_without_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    caching = Caching(is_remote=True)
    caching.cache.lookup = lambda _: 1 / 0
    [first] = run(caching, 1.0)
    caching.inner.answer(first, 7.0)
    assert values_of(first) == [7.0]
    assert "the response cache failed" in caplog.text


def test_nothing_is_accepted_once_stopped_and_waiters_are_answered_when_closed() -> None:
    caching = Caching()
    leader, waiter = caching.enqueue(1.0, 1.0)
    caching.scheduler.stop()
    with pytest.raises(InferenceError, match="Server is stopping"):
        caching.enqueue(2.0)
    assert not caching.scheduler.wait_until_idle(0)
    caching.scheduler.close()
    assert values_of(waiter) == "[request id: 2] Server is stopping"
    assert caching.inner.is_closed
    caching.inner.answer(leader, 7.0)
    assert caching.scheduler.wait_until_idle(0)


def test_closing_forgets_what_was_kept() -> None:
    caching = Caching()
    [first] = caching.enqueue(1.0)
    caching.inner.answer(first, 7.0)
    assert caching.cache.figures().entries == 1
    caching.scheduler.close()
    assert caching.cache.figures().entries == 0


class _Chain:
    """A sender that asks for the next when it is answered, as an ensemble of cached steps does."""

    def __init__(self, caching: Caching, left: int, done: Callable[[], None]) -> None:
        self._caching = caching
        self._left = left
        self._done = done

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        if not self._left:
            self._done()
            return
        request = self._caching.request()
        request.sender = _Chain(self._caching, self._left - 1, self._done)
        self._caching.scheduler.enqueue(request)

    def wait_until_ready(self) -> None: ...


def test_answers_that_lead_to_answers_do_not_pile_up_on_the_stack() -> None:
    caching = Caching()
    [first] = caching.enqueue(1.0)
    caching.inner.answer(first, 7.0)
    done: list[bool] = []
    with caching.workers.collecting() as work:
        request = caching.request()
        request.sender = _Chain(caching, 2000, lambda: done.append(True))
        caching.scheduler.enqueue(request)
        work.run()
    caching.workers.close()
    assert done == [True]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "answer", "fail", "start", "cancel", "threads", "expire"]), st.integers(0, 5)
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, st.booleans(), st.booleans())
def test_every_request_is_answered_once_whatever_happens(
    operations: list[tuple[str, int]], is_remote: bool, is_ordered: bool
) -> None:
    caching = Caching(is_remote=is_remote, is_ordered=is_ordered, policies=policies(1_000_000))
    requests: list[InferenceRequest] = []
    running = caching.inner.running
    for operation, number in operations:
        if operation == "ask":
            requests += caching.enqueue(float(number % 3))
        elif operation == "cancel" and requests:
            requests[number % len(requests)].cancellation.cancel()
        elif operation == "threads":
            caching.threads.run_all()
        elif operation == "expire":
            caching.timer.fire()
        elif running:
            chosen = running[number % len(running)]
            if operation == "start":
                caching.inner.started(chosen)
            elif operation == "fail":
                caching.inner.fail(chosen, CANCELLED if number % 2 else internal_error("broken"))
            else:
                caching.inner.answer(chosen, *chosen.inputs["INPUT"].array.tolist())
    while running or caching.threads.work:
        caching.threads.run_all()
        for request in list(running):
            caching.inner.answer(request, *request.inputs["INPUT"].array.tolist())
    for request in requests:
        expected = request.inputs["INPUT"].array.tolist()
        assert values_of(request) in (expected, "broken", "Cancelled", "Request timeout expired")
    assert caching.scheduler.in_flight == 0
    if not is_remote:
        caching.cache.check_invariants()


def test_an_answer_that_cannot_be_kept_is_sent_all_the_same(
    caching: Caching, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: InferenceResponse) -> None:
        raise MemoryError("no room")

    leader, waiter = run(caching, 1.0, 1.0)
    caching.inner.started(leader)
    with monkeypatch.context() as patched:
        patched.setattr("cantata.runtime.scheduling.caching_scheduler.kept_copy", fail)
        caching.inner.answer(leader, 7.0)
    assert (values_of(leader), caching.inner.running) == ([7.0], [waiter])
    assert "no room" in caplog.text
    caching.inner.answer(waiter, 7.0)
    assert values_of(waiter) == [7.0]
    caching.threads.run_all()
    assert caching.scheduler.in_flight == 0
