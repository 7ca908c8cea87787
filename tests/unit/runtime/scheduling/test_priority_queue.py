"""The order, the limits and the timeouts of queued requests; alone, and under a dynamic batcher."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars.model_config import ModelDynamicBatching, ModelQueuePolicy, TimeoutAction
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.batcher import NEVER
from cantata.runtime.scheduling.dynamic_batcher import DynamicBatcher
from cantata.runtime.scheduling.priority_queue import PriorityQueue, QueuePolicy, priority_queue
from tests.support.requests import identity_spec, make_request

US = 1_000


@pytest.fixture
def queues() -> Iterator[list[PriorityQueue]]:
    made: list[PriorityQueue] = []
    yield made
    for queue in made:
        queue.check_invariants()


def queue_of(
    queues: list[PriorityQueue],
    level_count: int = 0,
    default_level: int = 0,
    default: QueuePolicy | None = None,
    **levels: QueuePolicy,
) -> PriorityQueue:
    policies = {int(name.removeprefix("level_")): policy for name, policy in levels.items()}
    queue = PriorityQueue(level_count, default_level, default or QueuePolicy(), policies)
    queues.append(queue)
    return queue


def add(
    queue: PriorityQueue | DynamicBatcher, id: str, priority: int = 0, now_ns: int = 0, timeout_us: int = 0
) -> InferenceRequest:
    request = make_request(1, 4, id=id, queued_ns=now_ns)
    request.priority = priority
    request.timeout_us = timeout_us
    queue.add(request, now_ns)
    return request


def ids(requests: PriorityQueue | list[InferenceRequest]) -> str:
    return "".join(request.id for request in requests)


def test_lower_levels_go_first_and_a_level_is_first_in_first_out(queues: list[PriorityQueue]) -> None:
    queue = queue_of(queues, 3, 2)
    for id, priority in (("a", 3), ("b", 1), ("c", 2), ("d", 1), ("e", 3)):
        add(queue, id, priority)
    assert ids(queue) == "bdcae"
    assert ids([queue.popleft() for _ in range(5)]) == "bdcae"


@pytest.mark.parametrize("priority", [0, 4, 1000])
def test_a_priority_that_is_no_level_is_the_default_one(queues: list[PriorityQueue], priority: int) -> None:
    queue = queue_of(queues, 3, 2)
    assert add(queue, "a", priority).priority == 2


def test_without_levels_priorities_do_not_matter(queues: list[PriorityQueue]) -> None:
    queue = queue_of(queues, default=QueuePolicy(max_size=10))
    for id, priority in (("a", 3), ("b", 1), ("c", 0)):
        add(queue, id, priority)
    assert ids(queue) == "abc"


def test_a_full_level_refuses_and_the_others_do_not(queues: list[PriorityQueue]) -> None:
    queue = queue_of(queues, 2, 2, QueuePolicy(max_size=1), level_1=QueuePolicy(max_size=2))
    for id, priority in (("a", 1), ("b", 1), ("c", 2)):
        add(queue, id, priority)
    for priority in (1, 2):
        with pytest.raises(InferenceError) as refused:
            add(queue, "late", priority)
        assert refused.value.code is StatusCode.UNAVAILABLE
        assert refused.value.message == "[request id: late] Exceeds maximum queue size"
    queue.popleft()
    add(queue, "d", 1)
    assert ids(queue) == "bdc"


# (default timeout, override allowed, the request's timeout) -> when it expires, all in microseconds
TIMEOUTS = [
    (0, False, 0, NEVER),
    (0, True, 50, NEVER),
    (100, False, 0, 100),
    (100, False, 50, 100),
    (100, True, 50, 50),
    (100, True, 100, 100),
    (100, True, 200, 100),
    (100, True, 0, 100),
]


@pytest.mark.parametrize(("default_us", "allows_override", "own_us", "expires_us"), TIMEOUTS)
def test_a_request_may_shorten_its_timeout_where_that_is_allowed(
    queues: list[PriorityQueue], default_us: int, allows_override: bool, own_us: int, expires_us: int
) -> None:
    policy = QueuePolicy(timeout_ns=default_us * US, allows_override=allows_override)
    queue = queue_of(queues, default=policy)
    add(queue, "a", timeout_us=own_us)
    assert queue.expires_at() == (NEVER if expires_us == NEVER else expires_us * US)


def test_a_request_past_its_timeout_is_taken_out(queues: list[PriorityQueue]) -> None:
    queue = queue_of(queues, default=QueuePolicy(timeout_ns=100))
    late = add(queue, "a", now_ns=0)
    add(queue, "b", now_ns=50)
    assert queue.expire(99) == ([], False)
    assert queue.expire(100) == ([late], True)
    assert (ids(queue), queue.expires_at()) == ("b", 150)


def test_a_delayed_request_goes_behind_its_level_and_stays(queues: list[PriorityQueue]) -> None:
    queue = queue_of(queues, 2, 1, level_1=QueuePolicy(timeout_ns=100, delays=True, max_size=3))
    add(queue, "a", 1, now_ns=0)
    add(queue, "z", 2, now_ns=0)
    add(queue, "b", 1, now_ns=90)
    assert queue.expire(100) == ([], True)
    add(queue, "c", 1, now_ns=100)
    assert ids(queue) == "bcaz"
    queue.expire(1000)
    assert (ids(queue), queue.expires_at()) == ("abcz", NEVER)
    with pytest.raises(InferenceError):
        add(queue, "d", 1)


def test_what_has_left_does_not_expire(queues: list[PriorityQueue]) -> None:
    queue = queue_of(queues, default=QueuePolicy(timeout_ns=100))
    add(queue, "a")
    removed = add(queue, "b")
    queue.popleft()
    assert queue.remove(removed)
    assert not queue.remove(removed)
    assert queue.expires_at() == NEVER
    assert queue.expire(1000) == ([], False)


def test_deadlines_of_those_that_left_are_forgotten(queues: list[PriorityQueue]) -> None:
    queue = queue_of(queues, default=QueuePolicy(timeout_ns=10**12))
    for number in range(1000):
        add(queue, str(number), now_ns=number)
        queue.popleft()
    assert len(queue._deadlines) < 200


@pytest.mark.parametrize(
    ("batching", "is_plain"),
    [
        (ModelDynamicBatching(), True),
        (ModelDynamicBatching(default_queue_policy=ModelQueuePolicy()), True),
        (ModelDynamicBatching(priority_levels=2, default_priority_level=1), False),
        (ModelDynamicBatching(default_queue_policy=ModelQueuePolicy(max_queue_size=1)), False),
    ],
)
def test_only_what_needs_a_priority_queue_has_one(batching: ModelDynamicBatching, is_plain: bool) -> None:
    assert (priority_queue(batching) is None) is is_plain


def test_a_configuration_s_policies_are_those_of_its_levels(queues: list[PriorityQueue]) -> None:
    delaying = ModelQueuePolicy(
        timeout_action=TimeoutAction.DELAY, default_timeout_microseconds=5, max_queue_size=1
    )
    queue = priority_queue(
        ModelDynamicBatching(
            priority_levels=2,
            default_priority_level=2,
            default_queue_policy=ModelQueuePolicy(default_timeout_microseconds=7),
            priority_queue_policy={1: delaying},
        )
    )
    assert queue is not None
    queues.append(queue)
    add(queue, "a", 1)
    rejected = add(queue, "b", 2)
    assert queue.expire(7 * US) == ([rejected], True)
    assert ids(queue) == "a"


def batcher_of(queue: PriorityQueue, *, delay_us: int = 0, preferred: tuple[int, ...] = ()) -> DynamicBatcher:
    return DynamicBatcher(identity_spec(max_batch_size=4, dims=(4,)), preferred, delay_us, priorities=queue)


def test_an_urgent_request_joins_the_batch_that_was_forming(queues: list[PriorityQueue]) -> None:
    batcher = batcher_of(queue_of(queues, 2, 2))
    for id in "abcde":
        add(batcher, id, 2)
    add(batcher, "x", 1)
    batcher.check_invariants()
    assert [ids(batcher.take(0).requests) for _ in range(2)] == ["xabc", "de"]


def test_the_delay_is_that_of_the_oldest_request_whatever_its_level(queues: list[PriorityQueue]) -> None:
    batcher = batcher_of(queue_of(queues, 2, 2), delay_us=100)
    add(batcher, "a", 2, now_ns=10)
    add(batcher, "b", 1, now_ns=20)
    assert batcher.ready_at(30) == 10 + 100 * US
    assert ids(batcher.take(10 + 100 * US).requests) == "ba"


def test_an_expired_request_is_not_in_the_next_batch(queues: list[PriorityQueue]) -> None:
    batcher = batcher_of(queue_of(queues, default=QueuePolicy(timeout_ns=100)))
    late = add(batcher, "a", now_ns=0)
    add(batcher, "b", now_ns=50)
    batch = batcher.take(120)
    assert (ids(batch.requests), batch.dropped) == ("b", [late])


def test_expiry_is_announced_before_a_batch_is_due(queues: list[PriorityQueue]) -> None:
    batcher = batcher_of(queue_of(queues, default=QueuePolicy(timeout_ns=100)), delay_us=1)
    late = add(batcher, "a", now_ns=0)
    assert batcher.expires_at() == 100
    assert batcher.expire(100) == [late]
    assert (batcher.ready_at(100), len(batcher)) == (NEVER, 0)


def test_a_removed_request_makes_room_in_its_batch(queues: list[PriorityQueue]) -> None:
    batcher = batcher_of(queue_of(queues, 2, 2))
    requests = [add(batcher, id, 2) for id in "abcde"]
    requests[1].cancellation.cancel()
    batcher.remove(requests[1])
    batch = batcher.take(0)
    assert (ids(batch.requests), batch.dropped) == ("acde", [])


class NaiveQueue:
    """The same rules, said as a sort over all that is queued."""

    def __init__(self, levels: int, default: int, policies: dict[int, QueuePolicy]) -> None:
        self._levels, self._default, self._policies = levels, default, policies
        self.entries: list[tuple[int, bool, int, int, InferenceRequest]] = []
        self._order = 0

    def add(self, request: InferenceRequest, priority: int, now_ns: int) -> bool:
        level = priority if 1 <= priority <= self._levels else self._default
        policy = self._policies[level]
        if policy.max_size and sum(entry[0] == level for entry in self.entries) >= policy.max_size:
            return False
        self._order += 1
        self.entries.append((level, False, self._order, policy.deadline_ns(request, now_ns), request))
        return True

    def expire(self, now_ns: int) -> list[InferenceRequest]:
        rejected = []
        due = [entry for entry in self.entries if not entry[1] and entry[3] != NEVER and entry[3] <= now_ns]
        for entry in sorted(due, key=lambda entry: (entry[3], entry[2])):
            self.entries.remove(entry)
            if self._policies[entry[0]].delays:
                self._order += 1
                self.entries.append((entry[0], True, self._order, NEVER, entry[4]))
            else:
                rejected.append(entry[4])
        return rejected

    def in_order(self) -> list[InferenceRequest]:
        return [entry[4] for entry in sorted(self.entries, key=lambda entry: entry[:3])]

    def remove(self, request: InferenceRequest) -> None:
        self.entries = [entry for entry in self.entries if entry[4] is not request]


policies = st.builds(
    QueuePolicy,
    timeout_ns=st.sampled_from([0, 3000, 9000]),
    allows_override=st.booleans(),
    max_size=st.sampled_from([0, 0, 4]),
    delays=st.booleans(),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 4), st.integers(0, 10)),
        st.tuples(st.just("take"), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 5000), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
    ),
    max_size=60,
)


@given(levels=st.lists(policies, min_size=3, max_size=3), steps=steps)
def test_batches_are_those_of_a_queue_that_is_sorted_anew_each_time(
    levels: list[QueuePolicy], steps: list[tuple[str, int, int]]
) -> None:
    by_level = dict(enumerate(levels, 1))
    queue = PriorityQueue(3, 2, QueuePolicy(), by_level)
    batcher, naive, now = batcher_of(queue), NaiveQueue(3, 2, by_level), 0
    for step, number, timeout_us in steps:
        match step:
            case "add":
                request = make_request(1, 4, queued_ns=now)
                request.priority, request.timeout_us = number, timeout_us
                is_accepted = naive.add(request, number, now)
                if is_accepted:
                    batcher.add(request, now)
                else:
                    with pytest.raises(InferenceError):
                        batcher.add(request, now)
            case "wait":
                now += number
                if batcher.expires_at() != NEVER and batcher.expires_at() <= now:
                    assert batcher.expire(now) == naive.expire(now)
            case "cancel":
                waiting = naive.in_order()
                if number < len(waiting):
                    naive.remove(waiting[number])
                    batcher.remove(waiting[number])
            case _:
                assert naive.expire(now) == []
                batch = batcher.take(now)
                assert batch.requests == naive.in_order()[:4]
                for request in batch.requests:
                    naive.remove(request)
        assert list(queue) == naive.in_order()
        assert len(batcher) == len(naive.entries)
        batcher.check_invariants()


def seconds_for(depth: int, level_count: int) -> float:
    """What 2,000 arrivals and as many departures take while `depth` requests wait; the best of three."""
    queue = PriorityQueue(level_count, 1, QueuePolicy(timeout_ns=10**15), {})
    batcher = batcher_of(queue)
    for number in range(depth):
        add(batcher, "", 1 + number % level_count)
    requests = [make_request(1, 4) for _ in range(2000)]
    best = 1e9
    for _ in range(3):
        started = time.thread_time()
        for number, request in enumerate(requests):
            request.priority = 1 + number % level_count
            batcher.add(request, 0)
            if number % 4 == 3:
                batcher.take(0)
        best = min(best, time.thread_time() - started)
        requests = [make_request(1, 4) for _ in range(2000)]
    return best


def test_a_decision_costs_no_more_with_depth_or_levels() -> None:
    few = seconds_for(10, 2)
    assert seconds_for(50_000, 1000) < 6 * few + 0.01
