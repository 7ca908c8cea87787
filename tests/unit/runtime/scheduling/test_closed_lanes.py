"""A lane that is closed lets no further sequence in, and is drained when those that are there have ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cantata.grammars.model_config import ModelSequenceBatching
from tests.support.sequences import BatcherBench, direct, oldest

BOTH = pytest.mark.parametrize("strategy", [direct, oldest])
Strategy = Callable[[], ModelSequenceBatching]


@BOTH
def test_sequences_go_on_in_a_closed_lane_and_new_ones_go_elsewhere(strategy: Strategy) -> None:
    bench = BatcherBench(strategy(), instances=2, max_batch_size=2)
    bench.add(1, "1a", start=True)
    bench.add(2, "2a", start=True)
    bench.batcher.close_lane(1)
    bench.batcher.check_invariants()
    assert (bench.run(0), bench.run(1)) == (["1a"], ["2a"])
    assert not bench.batcher.is_drained(1)
    bench.add(3, "3a", start=True)
    bench.add(2, "2b", end=True)
    assert sorted(filter(None, bench.run(0))) == ["3a"]
    assert bench.run(1) == ["2b"]
    assert bench.batcher.is_drained(1)
    bench.batcher.check_invariants()


@BOTH
def test_what_waits_for_a_slot_gets_none_in_a_closed_lane(strategy: Strategy) -> None:
    bench = BatcherBench(strategy(), instances=2, max_batch_size=1)
    for number in (1, 2, 3):
        bench.add(number, f"{number}a", start=True, end=True)
    bench.batcher.close_lane(0)
    assert (bench.run(0), bench.run(0)) == (["1a"], [])
    assert bench.batcher.is_drained(0)
    assert (bench.run(1), bench.run(1)) == (["2a"], ["3a"])
    bench.batcher.check_invariants()


@BOTH
def test_a_closed_lane_without_sequences_is_drained_at_once(strategy: Strategy) -> None:
    bench = BatcherBench(strategy(), instances=1)
    bench.batcher.close_lane(0)
    assert bench.batcher.is_drained(0)
    bench.add(1, "1a", start=True)
    assert bench.run(0) == []
    # A lane that comes later takes what waits.
    assert bench.batcher.add_lane(0) == 1
    assert [name for name in bench.run(1) if name] == ["1a"]
    bench.batcher.check_invariants()
