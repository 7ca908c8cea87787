"""How an instance that calls others earns trust, loses it, and is forgiven."""

from __future__ import annotations

import pytest

from cantata.runtime.execution.execution import Execution
from cantata.runtime.scheduling.scheduled_instance import ScheduledInstance

QUICK_NS, SLOW_NS = 100_000, 20_000_000


class CallsOthers:
    makes_blocking_calls = True
    blocks_for_calls_only = True

    def execute(self, execution: Execution) -> bool:
        return True

    def close(self) -> None:
        """Nothing to release."""


class Driver:
    def run_instance(self, instance: ScheduledInstance) -> None:
        """Never called: the test says how long each run took."""


@pytest.fixture
def instance() -> ScheduledInstance:
    return ScheduledInstance(Driver(), CallsOthers())


def runs_until_trusted(instance: ScheduledInstance) -> int:
    runs = 0
    while not instance.is_quick_alone:
        instance.kept_thread_for(QUICK_NS)
        runs += 1
    return runs


def be_quick(instance: ScheduledInstance, runs: int) -> None:
    for _ in range(runs):
        instance.kept_thread_for(QUICK_NS)


def test_each_time_it_is_slow_it_must_prove_itself_for_longer(instance: ScheduledInstance) -> None:
    needed = [runs_until_trusted(instance)]
    for _ in range(4):
        be_quick(instance, 100)
        instance.kept_thread_for(SLOW_NS)
        needed.append(runs_until_trusted(instance))
    assert needed == [8, 64, 456, 3_592, 28_680]


def test_it_is_forgiven_when_it_has_been_quick_for_much_longer_than_it_was_distrusted(
    instance: ScheduledInstance,
) -> None:
    needed = []
    for _ in range(4):
        runs_until_trusted(instance)
        be_quick(instance, 24 + 8 * 448)
        instance.kept_thread_for(SLOW_NS)
        needed.append(runs_until_trusted(instance))
    assert needed == [64, 64, 64, 64]
