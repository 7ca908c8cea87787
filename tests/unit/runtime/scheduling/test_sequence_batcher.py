"""Which requests of which sequences run together, where, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cantata.grammars.model_config import ModelSequenceBatching
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.scheduling.batcher import NEVER
from cantata.runtime.scheduling.sequence_table import DropReason, grace_ns
from tests.support.sequences import IDLE_NS, BatcherBench, direct, ids_of, oldest

MakeBench = Callable[..., BatcherBench]


@pytest.fixture
def bench() -> Iterator[MakeBench]:
    made: list[BatcherBench] = []

    def make(*arguments: object, **fields: object) -> BatcherBench:
        made.append(BatcherBench(*arguments, **fields))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.batcher.check_invariants()


STRATEGIES = [pytest.param(direct, id="direct"), pytest.param(oldest, id="oldest")]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("correlation_id", "text"),
    [
        (0, "inference request to model 'model' must specify a non-zero or non-empty correlation ID"),
        ("", "inference request to model 'model' must specify a non-zero or non-empty correlation ID"),
        (
            7,
            "inference request for sequence 7 to model 'model' must specify the START flag on the first request of "
            "the sequence",
        ),
        (
            "seven",
            "inference request for sequence seven to model 'model' must specify the START flag on the first request "
            "of the sequence",
        ),
    ],
)
def test_a_request_that_belongs_to_no_sequence_is_refused(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching], correlation_id: int | str, text: str
) -> None:
    with pytest.raises(InferenceError) as refusal:
        bench(strategy()).add(correlation_id)
    assert (refusal.value.code, refusal.value.message) == (StatusCode.INVALID_ARG, text)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_id_and_its_text_are_two_sequences(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy())
    batcher.add(1, "number", start=True)
    batcher.add("1", "text", start=True)
    assert batcher.run() == ["number", "text"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_after_its_end_a_sequence_must_be_started_again(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy())
    batcher.add(1, "a", start=True, end=True)
    with pytest.raises(InferenceError):
        batcher.add(1, "b")
    batcher.add(1, "c", start=True)
    assert batcher.run() == ["a", "c"]


def test_direct_keeps_each_sequence_in_its_row(bench: MakeBench) -> None:
    batcher = bench(direct())
    for number in (1, 2, 3):
        batcher.add(number, f"{number}a", start=True)
    assert batcher.run() == ["1a", "2a", "3a"]
    batcher.add(3, "3b")
    batcher.add(1, "1b")
    assert batcher.run() == ["1b", None, "3b"]
    batcher.add(2, "2b")
    assert batcher.run() == [None, "2b"]


def test_direct_gives_the_row_of_an_ended_sequence_to_the_next(bench: MakeBench) -> None:
    batcher = bench(direct(), max_batch_size=2)
    batcher.add(1, "1a", start=True, end=True)
    batcher.add(2, "2a", start=True)
    batcher.add(3, "3a", start=True)
    batcher.add(2, "2b")
    assert batcher.run() == ["1a", "2a"]
    assert batcher.run() == ["3a", "2b"]


def test_direct_fills_rows_of_other_shapes_with_nobody(bench: MakeBench) -> None:
    batcher = bench(direct(), dims=(-1,))
    batcher.add(1, "small", start=True)
    batcher.add(2, "large", start=True, size=3)
    batcher.add(3, "small too", start=True)
    assert batcher.run() == ["small", None, "small too"]
    assert batcher.run() == [None, "large"]


def test_direct_runs_at_once_without_a_delay(bench: MakeBench) -> None:
    batcher = bench(direct(utilization=1.0))
    batcher.add(1, "a", start=True)
    assert batcher.batcher.ready_at(0, 0) == 0


@pytest.mark.parametrize(
    ("utilization", "sequences", "ready_ns"),
    [
        (0.0, 1, 0),
        (0.5, 1, 100_001),
        (0.5, 2, 0),
        (0.75, 2, 100_001),
        (0.75, 3, 0),
        (1.0, 3, 100_001),
        (1.0, 4, 0),
    ],
)
def test_direct_waits_for_enough_slots_or_for_the_delay(
    bench: MakeBench, utilization: float, sequences: int, ready_ns: int
) -> None:
    batcher = bench(direct(delay_us=100, utilization=utilization))
    for number in range(1, sequences + 1):
        batcher.add(number, str(number), start=True)
    assert batcher.batcher.ready_at(0, 0) == ready_ns
    batcher.now_ns = ready_ns
    assert len(batcher.run()) == sequences


def test_direct_counts_the_delay_from_the_oldest_request_that_is_left(bench: MakeBench) -> None:
    batcher = bench(direct(delay_us=100, utilization=1.0), max_batch_size=2)
    batcher.add(1, "a", start=True)
    batcher.now_ns = 40_000
    batcher.add(2, "b", start=True)
    batcher.now_ns = 50_000
    batcher.add(1, "c")
    assert batcher.run() == ["a", "b"]
    assert batcher.batcher.ready_at(0, 50_000) == 150_001


def test_oldest_has_one_request_of_a_sequence_at_a_time(bench: MakeBench) -> None:
    batcher = bench(oldest())
    batcher.add(1, "1a", start=True)
    batcher.add(1, "1b")
    batcher.add(2, "2a", start=True)
    turns = batcher.take()
    assert ids_of(turns) == ["1a", "2a"]
    assert batcher.take() == []
    batcher.finish(turns)
    assert batcher.run() == ["1b"]


def test_oldest_never_pads(bench: MakeBench) -> None:
    batcher = bench(oldest())
    for number in (1, 2, 3):
        batcher.add(number, f"{number}a", start=True)
    batcher.run()
    batcher.add(3, "3b")
    batcher.add(1, "1b")
    assert batcher.run() == ["3b", "1b"]


def test_oldest_has_as_many_sequences_as_candidates(bench: MakeBench) -> None:
    batcher = bench(oldest(candidates=6), max_batch_size=4)
    for number in range(1, 8):
        batcher.add(number, str(number), start=True)
    assert batcher.run() == ["1", "2", "3", "4"]
    assert batcher.run() == ["5", "6"]
    assert batcher.take() == []
    batcher.add(2, "2 ends", end=True)
    assert batcher.run() == ["2 ends"]
    assert batcher.run() == ["7"]


def test_oldest_waits_for_a_preferred_size(bench: MakeBench) -> None:
    batcher = bench(oldest(preferred=(2,), delay_us=100))
    batcher.add(1, "1", start=True)
    assert batcher.batcher.ready_at(0, 0) == 100_000
    batcher.add(2, "2", start=True)
    batcher.add(3, "3", start=True)
    assert batcher.run() == ["1", "2"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slots_are_given_away_lowest_first_across_instances(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), instances=2, max_batch_size=2)
    for number in range(1, 5):
        batcher.add(number, str(number), start=True)
    assert batcher.run(0) == ["1", "3"]
    assert batcher.run(1) == ["2", "4"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sequences_beyond_the_slots_wait_in_their_order(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=1)
    batcher.add(1, "1a", start=True)
    batcher.add(2, "2a", start=True)
    batcher.add(3, "3a", start=True, end=True)
    batcher.add(2, "2b", end=True)
    batcher.add(1, "1b", end=True)
    assert len(batcher.batcher) == 5
    assert [batcher.run() for _ in range(6)] == [["1a"], ["1b"], ["2a"], ["2b"], ["3a"], []]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_start_cuts_the_sequence_that_goes_on_in_its_slot(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=2)
    batcher.add(1, "a", start=True)
    assert batcher.batcher.is_live(1)
    batcher.add(1, "b", start=True)
    batcher.add(1, "c")
    assert [batcher.run() for _ in range(4)] == [["a"], ["b"], ["c"], []]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_idle_sequence_loses_its_slot(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=1)
    batcher.add(1, "1", start=True)
    batcher.add(2, "2", start=True)
    assert batcher.run() == ["1"]
    assert batcher.batcher.expires_at() == IDLE_NS
    batcher.batcher.expire(IDLE_NS - 1)
    assert batcher.run() == []
    batcher.now_ns = IDLE_NS
    batcher.batcher.expire(IDLE_NS)
    assert batcher.run() == ["2"]
    with pytest.raises(InferenceError, match="must specify the START flag"):
        batcher.add(1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_request_puts_idleness_off(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy())
    batcher.add(1, "1a", start=True)
    batcher.add(2, "2a", start=True)
    assert batcher.run() == ["1a", "2a"]
    batcher.now_ns = 600_000
    batcher.add(1, "1b")
    assert batcher.run() == ["1b"]
    batcher.batcher.expire(IDLE_NS)
    assert [batcher.batcher.is_live(number) for number in (1, 2)] == [True, False]
    assert batcher.batcher.expires_at() == 600_000 + IDLE_NS


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sequence_whose_request_waits_is_not_idle(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=1)
    batcher.add(1, "1a", start=True)
    batcher.add(1, "1b")
    batcher.now_ns = 5 * IDLE_NS
    batcher.batcher.expire(batcher.now_ns)
    assert [batcher.run() for _ in range(2)] == [["1a"], ["1b"]]
    batcher.add(1, "1c")
    assert batcher.run() == ["1c"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sequence_is_idle_from_the_end_of_its_last_request(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy())
    batcher.add(1, "1", start=True)
    turns = batcher.take()
    batcher.now_ns = 5 * IDLE_NS
    batcher.batcher.expire(batcher.now_ns)
    batcher.now_ns += 1
    batcher.finish(turns)
    batcher.batcher.expire(batcher.now_ns + IDLE_NS - 1)
    assert batcher.batcher.is_live(1)
    batcher.batcher.expire(batcher.now_ns + IDLE_NS)
    assert not batcher.batcher.is_live(1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_sequence_that_ends_has_waiting_still_runs(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=1)
    batcher.add(1, "1a", start=True)
    batcher.add(1, "1b", end=True)
    batcher.add(2, "2a", start=True)
    assert [batcher.run() for _ in range(3)] == [["1a"], ["1b"], ["2a"]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_sequences_that_become_idle_one_after_another_are_ended_together(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=200)
    for number in range(1, 101):
        batcher.now_ns = number
        batcher.add(number, start=True)
        batcher.run()
    wakes = 0
    while (expires_ns := batcher.batcher.expires_at()) != NEVER:
        batcher.now_ns = max(batcher.now_ns, expires_ns)
        batcher.batcher.expire(batcher.now_ns)
        wakes += 1
    assert wakes == 2
    assert batcher.now_ns == IDLE_NS + 1 + IDLE_NS // 32


def test_a_late_clock_gives_clients_as_long_again() -> None:
    millisecond = 1_000_000
    lateness = (0, 20, 21, 400, 60_000)
    assert [grace_ns(late * millisecond) // millisecond for late in lateness] == [0, 0, 21, 400, 1000]


def test_a_sequence_without_a_slot_is_not_idle(bench: MakeBench) -> None:
    batcher = bench(direct(), max_batch_size=1)
    batcher.add(1, "1", start=True)
    batcher.add(2, "2a", start=True)
    batcher.now_ns = IDLE_NS
    batcher.batcher.expire(IDLE_NS)
    batcher.add(2, "2b")
    assert batcher.dropped() == []
    assert batcher.run() == ["1"]
    batcher.now_ns = 2 * IDLE_NS
    batcher.batcher.expire(batcher.now_ns)
    assert [batcher.run() for _ in range(2)] == [["2a"], ["2b"]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_shortest_timeout_bounds_the_wait_for_a_slot(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(max_sequence_idle_microseconds=10**9), max_batch_size=1)
    batcher.add(1, "1", start=True, timeout_us=1)
    batcher.add(2, "2a", start=True, timeout_us=900)
    batcher.add(2, "2b", timeout_us=500)
    batcher.add(2, "2c")
    batcher.add(3, "3", start=True)
    assert batcher.batcher.expires_at() == 500_000
    batcher.batcher.expire(500_000)
    assert batcher.dropped() == [(id, DropReason.BACKLOG_TIMEOUT) for id in ("2a", "2b", "2c")]
    with pytest.raises(InferenceError, match="must specify the START flag"):
        batcher.add(2)
    batcher.add(1, "1 ends", end=True)
    assert [batcher.run() for _ in range(3)] == [["1"], ["1 ends"], ["3"]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cancelling_the_next_request_cancels_its_sequence(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=2)
    cancelled = batcher.add(1, "1a", start=True)
    batcher.add(1, "1b")
    batcher.add(2, "2a", start=True)
    batcher.add(3, "3a", start=True)
    cancelled.cancellation.cancel()
    first = batcher.take()
    assert batcher.dropped() == [("1a", DropReason.CANCELLED), ("1b", DropReason.CANCELLED)]
    batcher.finish(first)
    assert {id for turns in (ids_of(first), batcher.run()) for id in turns} == {"2a", "3a"}
    with pytest.raises(InferenceError):
        batcher.add(1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sequence_goes_as_soon_as_its_next_request_is_cancelled(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=1)
    batcher.add(1, "1a", start=True)
    turns = batcher.take()
    cancelled, later, waiting = batcher.add(1, "1b"), batcher.add(1, "1c"), batcher.add(2, "2", start=True)
    for request in (later, waiting, cancelled):
        request.cancellation.cancel()
        batcher.batcher.cancelled(request, batcher.now_ns)
    # What is not the next of its sequence waits for that, and goes with it.
    assert batcher.dropped() == [
        ("2", DropReason.CANCELLED),
        ("1b", DropReason.CANCELLED),
        ("1c", DropReason.CANCELLED),
    ]
    batcher.finish(turns)
    batcher.add(3, "3", start=True)
    assert batcher.run() == ["3"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cancelled_sequence_never_gets_a_slot(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), max_batch_size=1)
    batcher.add(1, "1", start=True, end=True)
    batcher.add(2, "2", start=True).cancellation.cancel()
    batcher.add(3, "3", start=True)
    assert [batcher.run() for _ in range(2)] == [["1"], ["3"]]
    assert batcher.dropped() == [("2", DropReason.CANCELLED)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_request_past_its_deadline_ends_its_sequence(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy())
    late = batcher.add(1, "late", start=True)
    batcher.add(1, "next")
    late.deadline_ns = 10
    batcher.now_ns = 10
    assert batcher.run() == []
    assert batcher.dropped() == [("late", DropReason.DEADLINE), ("next", DropReason.CANCELLED)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_iterations_keep_their_slot_until_they_are_not_repeated(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(iterative_sequence=True), max_batch_size=1)
    request = batcher.add(0, "a")
    batcher.add(0, "b")
    assert (request.correlation_id, request.flags) == (1, 1)
    for _ in range(3):
        turns = batcher.take()
        assert ids_of(turns) == ["a"]
        batcher.finish(turns, again=(request,))
        assert request.flags == 0
    assert batcher.run() == ["a"]
    assert batcher.batcher.expires_at() == NEVER
    assert batcher.run() == ["b"]
    assert batcher.run() == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_its_instance_go_the_sequences_it_has_begun(
    bench: MakeBench, strategy: Callable[..., ModelSequenceBatching]
) -> None:
    batcher = bench(strategy(), instances=2, max_batch_size=1)
    batcher.add(1, "lost", start=True)
    batcher.add(1, "lost too")
    batcher.add(2, "elsewhere", start=True)
    batcher.add(3, "waiting", start=True)
    batcher.batcher.instance_lost(0, 0)
    assert batcher.dropped() == [(id, DropReason.INSTANCE_LOST) for id in ("lost", "lost too")]
    assert batcher.run(1) == ["elsewhere"]
    assert batcher.run(0) == ["waiting"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_draining_leaves_nothing(strategy: Callable[..., ModelSequenceBatching]) -> None:
    batcher = BatcherBench(strategy(), max_batch_size=2)
    requests = [batcher.add(number, start=True) for number in (1, 2, 3)]
    requests.append(batcher.add(1))
    assert set(batcher.batcher.drain()) == set(requests)
    assert len(batcher.batcher) == 0
    assert batcher.batcher.ready_at(0, 0) == NEVER
    assert batcher.batcher.expires_at() == NEVER
