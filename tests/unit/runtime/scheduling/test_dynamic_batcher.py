"""Which requests the dynamic batcher puts together, and when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars.model_config import DataType, ModelConfig, ModelInput, ModelOutput
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.batcher import NEVER, SingleRequestQueue
from cantata.runtime.scheduling.dynamic_batcher import DynamicBatcher
from tests.support.requests import identity_spec, make_request, tensor

MS = 1_000_000


@pytest.fixture
def batchers() -> Iterator[list[DynamicBatcher]]:
    made: list[DynamicBatcher] = []
    yield made
    for batcher in made:
        batcher.check_invariants()


def batcher_of(
    batchers: list[DynamicBatcher],
    *,
    max_batch_size: int = 8,
    preferred: tuple[int, ...] = (),
    delay_us: int = 0,
) -> DynamicBatcher:
    batcher = DynamicBatcher(identity_spec(max_batch_size=max_batch_size, dims=(4,)), preferred, delay_us)
    batchers.append(batcher)
    return batcher


def add(
    batcher: DynamicBatcher | SingleRequestQueue, *batch_sizes: int, now_ns: int = 0
) -> list[InferenceRequest]:
    requests = [make_request(size, 4, batch_size=size, queued_ns=now_ns) for size in batch_sizes]
    for request in requests:
        batcher.add(request, now_ns)
    return requests


def test_nothing_queued_is_never_ready(batchers: list[DynamicBatcher]) -> None:
    assert batcher_of(batchers).ready_at(5) == NEVER


def test_without_delay_all_that_is_queued_goes_at_once(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers)
    requests = add(batcher, 1, 2, 1)
    assert batcher.ready_at(7) == 7
    batch = batcher.take(7)
    assert (batch.requests, batch.size, batch.dropped) == (requests, 4, [])


def test_a_batch_never_exceeds_the_maximum_size(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers, max_batch_size=4)
    requests = add(batcher, 3, 2, 4)
    assert [batcher.take(0).requests for _ in range(3)] == [[request] for request in requests]


def test_the_largest_preferred_size_within_the_queue_is_taken(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers, preferred=(2, 4))
    add(batcher, *[1] * 7)
    assert [batcher.take(0).size for _ in range(3)] == [4, 2, 1]


def test_a_request_larger_than_every_preferred_size_is_still_sent(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers, preferred=(2, 4))
    add(batcher, 6)
    assert batcher.take(0).size == 6


def test_with_a_delay_a_batch_waits_for_its_oldest_request(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers, delay_us=1000)
    add(batcher, 1, now_ns=10)
    add(batcher, 1, now_ns=500)
    assert batcher.ready_at(600) == 10 + MS
    assert batcher.take(600).requests == []
    assert batcher.take(10 + MS).size == 2


def test_a_preferred_size_ends_the_delay(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers, preferred=(4,), delay_us=1000)
    add(batcher, 1, 1, 1)
    assert batcher.ready_at(1) == MS
    add(batcher, 1)
    assert batcher.ready_at(1) == 1
    assert batcher.take(1).size == 4


def test_when_the_delay_is_over_the_preferred_size_no_longer_matters(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers, preferred=(2,), delay_us=1000)
    add(batcher, 1, 1, 1)
    assert batcher.take(2 * MS).size == 3


def test_a_full_batch_is_ready_before_its_delay(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers, max_batch_size=4, delay_us=1000)
    add(batcher, 3, 3)
    assert batcher.ready_at(1) == 1
    assert batcher.take(1).size == 3


def test_requests_of_different_variable_shapes_do_not_share_a_batch(batchers: list[DynamicBatcher]) -> None:
    batcher = DynamicBatcher(identity_spec(max_batch_size=8, dims=(-1,)), (), 0)
    batchers.append(batcher)
    requests = [make_request(1, length) for length in (3, 3, 5, 3)]
    for request in requests:
        batcher.add(request, 0)
    assert [batcher.take(0).requests for _ in range(3)] == [requests[:2], [requests[2]], [requests[3]]]


def test_optional_inputs_must_be_the_same_to_share_a_batch(batchers: list[DynamicBatcher]) -> None:
    config = ModelConfig(
        name="optional",
        max_batch_size=8,
        input=(
            ModelInput(name="A", data_type=DataType.TYPE_FP32, dims=(4,)),
            ModelInput(name="B", data_type=DataType.TYPE_FP32, dims=(4,), optional=True),
        ),
        output=(ModelOutput(name="OUTPUT", data_type=DataType.TYPE_FP32, dims=(4,)),),
    )
    batcher = DynamicBatcher(ModelSpec(config, 1), (), 0)
    batchers.append(batcher)
    alone, both = make_request(A=tensor(1, 4)), make_request(A=tensor(1, 4), B=tensor(1, 4))
    batcher.add(alone, 0)
    batcher.add(both, 0)
    assert [batcher.take(0).requests for _ in range(2)] == [[alone], [both]]


def test_cancelled_requests_leave_their_neighbours_undisturbed(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers, max_batch_size=3)
    first, second, third, fourth = add(batcher, 1, 1, 1, 1)
    first.cancellation.cancel()
    third.cancellation.cancel()
    batch = batcher.take(0)
    assert (batch.requests, batch.dropped) == ([second, fourth], [first, third])


def test_requests_past_their_deadline_are_dropped(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers)
    late, early = add(batcher, 1, 1)
    late.deadline_ns = 100
    early.deadline_ns = 200
    batch = batcher.take(150)
    assert (batch.requests, batch.dropped) == ([early], [late])


def test_a_batch_of_only_cancelled_requests_is_empty(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers)
    (only,) = add(batcher, 1)
    only.cancellation.cancel()
    batch = batcher.take(0)
    assert (batch.requests, batch.dropped, batcher.ready_at(0)) == ([], [only], NEVER)


def test_draining_returns_everything_queued(batchers: list[DynamicBatcher]) -> None:
    batcher = batcher_of(batchers)
    requests = add(batcher, 1, 1)
    assert batcher.drain() == requests
    assert len(batcher) == 0


def test_the_default_queue_runs_one_request_an_execution_in_order() -> None:
    queue = SingleRequestQueue()
    first, second, third = add(queue, 1, 2, 1)
    second.cancellation.cancel()
    assert queue.take(0).requests == [first]
    batch = queue.take(0)
    assert (batch.requests, batch.dropped) == ([third], [second])
    assert queue.ready_at(0) == NEVER


@given(
    arrivals=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.booleans()), max_size=40),
    preferred=st.lists(st.integers(1, 6), max_size=3),
    delay_us=st.sampled_from([0, 5]),
    takes=st.lists(st.integers(0, 3000), max_size=40),
)
def test_every_request_leaves_once_and_batches_keep_the_rules(
    arrivals: list[tuple[int, int, bool]], preferred: list[int], delay_us: int, takes: list[int]
) -> None:
    batcher = DynamicBatcher(identity_spec(max_batch_size=6, dims=(-1,)), tuple(preferred), delay_us)
    requests, left, now = [], [], 0
    pauses = iter(takes)
    for size, length, is_cancelled in arrivals:
        request = make_request(size, length, batch_size=size, queued_ns=now)
        requests.append(request)
        batcher.add(request, now)
        if is_cancelled:
            request.cancellation.cancel()
        pause = next(pauses, None)
        if pause is not None:
            now += pause
            batch = batcher.take(now)
            left += batch.requests + batch.dropped
            batcher.check_invariants()
    while len(batcher):
        now = max(now, batcher.ready_at(now))
        batch = batcher.take(now)
        left += batch.requests + batch.dropped
        assert batch.requests or batch.dropped
        assert batch.size == sum(request.batch_size for request in batch.requests) <= 6
        assert len({request.inputs["INPUT"].shape[1:] for request in batch.requests}) <= 1
        assert not any(request.cancellation.is_cancelled for request in batch.requests)
        batcher.check_invariants()
    assert sorted(map(id, left)) == sorted(map(id, requests))
