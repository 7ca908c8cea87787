"""A short wait joins the clients of two batches that take turns, and is given up where it brings nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cantata.grammars.model_config import ModelSequenceBatching
from cantata.runtime.scheduling.settling import Settling
from tests.support.sequences import BatcherBench, direct, ids_of, oldest

MS = 1_000_000
STRATEGIES = [pytest.param(direct, id="direct"), pytest.param(oldest, id="oldest")]


def lasting(strategy: Callable[..., ModelSequenceBatching]) -> ModelSequenceBatching:
    return strategy(max_sequence_idle_microseconds=10**9)


@pytest.fixture(params=STRATEGIES)
def two_groups(request: pytest.FixtureRequest) -> BatcherBench:
    """Sequences 1 and 2 have just been answered, by a batch of 2 ms, while requests of 3 and 4 came in."""
    bench = BatcherBench(lasting(request.param), max_batch_size=8)
    for number in (1, 2):
        bench.add(number, f"{number}a", start=True)
    turns = bench.take()
    for number in (3, 4):
        bench.add(number, f"{number}a", start=True)
    bench.now_ns = 2 * MS
    bench.finish(turns)
    return bench


def ids(bench: BatcherBench) -> list[str]:
    return sorted(id for id in ids_of(bench.take()) if id is not None)


def test_what_is_ready_waits_for_sequences_that_were_just_answered(two_groups: BatcherBench) -> None:
    assert two_groups.batcher.ready_at(0, 2 * MS) == 2 * MS + MS
    two_groups.add(1, "1b")
    assert ids(two_groups) == []
    two_groups.add(2, "2b")
    assert ids(two_groups) == ["1b", "2b", "3a", "4a"]


def test_the_wait_is_a_millisecond_at_most(two_groups: BatcherBench) -> None:
    two_groups.add(1, "1b")
    two_groups.now_ns += MS
    assert ids(two_groups) == ["1b", "3a", "4a"]


def test_the_wait_is_three_times_the_last_batch_at_most() -> None:
    settling = Settling()
    settling.begin(1, 1, MS // 10, 0, most=8)
    assert settling.waits_until(1, 0) == 3 * (MS // 10)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_waited_for_after_a_quick_batch(strategy: Callable[..., ModelSequenceBatching]) -> None:
    bench = BatcherBench(lasting(strategy))
    bench.add(1, "1a", start=True)
    turns = bench.take()
    bench.add(2, "2a", start=True)
    bench.now_ns = MS // 100
    bench.finish(turns)
    assert ids(bench) == ["2a"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_is_waited_for_after_the_ends_of_sequences(
    strategy: Callable[..., ModelSequenceBatching],
) -> None:
    bench = BatcherBench(lasting(strategy))
    bench.add(1, "1a", start=True, end=True)
    turns = bench.take()
    bench.add(2, "2a", start=True)
    bench.now_ns = 2 * MS
    bench.finish(turns)
    assert ids(bench) == ["2a"]


def test_a_wait_that_brings_little_is_given_up_for_a_while() -> None:
    settling = Settling()

    def waits(gained: int) -> bool:
        settling.begin(16, 8, 2 * MS, 0, most=32)
        has_waited = settling.is_on
        if has_waited:
            assert settling.waits_until(16, 0) == MS
            settling.end(16 + gained)
        return has_waited

    # For sixteen that wait, five more must come.
    assert [waits(gained) for gained in (4, 4, 4, 5, 4, 4, 4, 4)] == [True] * 8
    assert [waits(8) for _ in range(64)] == [False] * 64
    assert waits(8)


def test_a_full_batch_waits_for_nothing() -> None:
    settling = Settling()
    settling.begin(4, 4, 2 * MS, 0, most=6)
    assert [settling.waits_until(ready, 0) > 0 for ready in (4, 5, 6)] == [True, True, False]
    settling.end(6)
    settling.begin(6, 4, 2 * MS, 0, most=6)
    assert not settling.is_on
