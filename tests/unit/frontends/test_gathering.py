"""When answers leave that models give one after the other."""

from __future__ import annotations

import pytest

from cantata.runtime.frontends import gathering
from cantata.runtime.frontends.gathering import Gathering


class _Clock:
    def __init__(self) -> None:
        self.now_ns = 5_000_000_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(gathering, "monotonic_ns", clock)
    return clock


def test_the_first_answer_leaves_at_once(clock: _Clock) -> None:
    assert Gathering().is_over()


def test_those_that_follow_closely_wait_for_each_other_and_not_for_long(clock: _Clock) -> None:
    gathering = Gathering()
    assert gathering.is_over()
    over = []
    for _ in range(12):
        clock.now_ns += 300_000
        over.append(gathering.is_over())
    assert over == [False, False, False, False, True] * 2 + [False, False]
