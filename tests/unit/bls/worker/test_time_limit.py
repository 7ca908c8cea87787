"""A time limit under a timer that the test winds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cantata.bls.worker import time_limit
from cantata.bls.worker.time_limit import TimeLimit


class WoundTimer:
    """Keeps appointments when the test moves the clock."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.appointments: list[tuple[int, Callable[[], None]]] = []

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> None:
        self.appointments.append((time_ns, callback))

    def wind_to(self, now_s: float) -> None:
        self.now_ns = int(now_s * 1e9)
        due = [callback for time_ns, callback in self.appointments if time_ns <= self.now_ns]
        self.appointments = [later for later in self.appointments if later[0] > self.now_ns]
        for callback in due:
            callback()


class Watched:
    def __init__(self) -> None:
        self.timer = WoundTimer()
        self.excesses = 0
        self.limit = TimeLimit(self.timer, 1.0, self.count)  # type: ignore[arg-type]

    def count(self) -> None:
        self.excesses += 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(time_limit, "monotonic_ns", lambda: watched.timer.now_ns)
    return watched


def test_what_takes_too_long_is_reported_when_its_time_is_up(watched: Watched) -> None:
    watched.limit.begin(1)
    watched.timer.wind_to(0.9)
    assert watched.excesses == 0
    watched.timer.wind_to(1.0)
    assert watched.excesses == 1


def test_what_ends_in_time_is_not(watched: Watched) -> None:
    watched.limit.begin(1)
    watched.limit.end(1)
    watched.timer.wind_to(5)
    assert watched.excesses == 0


def test_the_one_that_began_first_counts(watched: Watched) -> None:
    watched.limit.begin(1)
    watched.timer.wind_to(0.5)
    watched.limit.begin(2)
    watched.limit.end(1)
    watched.timer.wind_to(1.2)
    assert watched.excesses == 0
    watched.timer.wind_to(1.5)
    assert watched.excesses == 1


def test_any_number_of_quick_ones_makes_one_appointment(watched: Watched) -> None:
    for key in range(1000):
        watched.limit.begin(key)
        watched.limit.end(key)
    assert len(watched.timer.appointments) == 1
