"""Requests that end when their own timeout is over, by a clock and a timer of the test's."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from cantata.runtime.execution.calls import WaitingSender
from cantata.runtime.request import InferenceRequest, LinkedCancellation
from cantata.runtime.scheduling import expiry
from cantata.runtime.scheduling.expiry import Expiries


class FakeTimer:
    """Calls back as the test moves the time on."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.calls: list[tuple[int, Callable[[], None]]] = []

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> None:
        self.calls.append((time_ns, callback))

    def advance(self, now_ns: int) -> None:
        self.now_ns = now_ns
        due = [call for call in self.calls if call[0] <= now_ns]
        self.calls = [call for call in self.calls if call[0] > now_ns]
        for _, callback in due:
            callback()


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> FakeTimer:
    timer = FakeTimer()
    monkeypatch.setattr(expiry, "monotonic_ns", lambda: timer.now_ns)
    return timer


@pytest.fixture
def expiries(timer: FakeTimer) -> Expiries:
    return Expiries(timer)  # type: ignore[arg-type]


def request_with(timeout_us: int, received_ns: int = 0) -> InferenceRequest:
    return InferenceRequest("model", {}, WaitingSender(), received_ns, timeout_us=timeout_us)


def test_each_request_is_cancelled_at_its_own_time(timer: FakeTimer, expiries: Expiries) -> None:
    late, early = request_with(20, received_ns=1_000), request_with(10)
    expiries.add(late)
    expiries.add(early)
    timer.advance(9_999)
    assert not early.cancellation.is_cancelled
    timer.advance(10_000)
    assert (early.cancellation.has_expired, late.cancellation.is_cancelled) == (True, False)
    timer.advance(21_000)
    assert (late.cancellation.is_cancelled, late.cancellation.has_expired) == (True, True)


def test_a_part_that_ends_with_the_whole_is_not_timed_again(timer: FakeTimer, expiries: Expiries) -> None:
    whole = request_with(10)
    expiries.add(whole)
    part = request_with(whole.timeout_left_us(2_500), received_ns=2_500)
    part.cancellation = whole.cancellation
    expiries.add(part)
    assert len(timer.calls) == 1


def test_a_request_that_is_over_is_not_kept(timer: FakeTimer, expiries: Expiries) -> None:
    for _ in range(5_000):
        expiries.add(request_with(3_600_000_000))
    gc.collect()
    assert len(expiries._heap) <= 2_048


def test_however_many_come_the_timer_has_one_call_that_counts(timer: FakeTimer, expiries: Expiries) -> None:
    requests = [request_with(timeout_us) for timeout_us in range(100, 0, -10)]
    for request in requests:
        expiries.add(request)
    for now_ns in range(10_000, 100_000, 10_000):
        timer.advance(now_ns)
    # The first that was armed, and the one that counts.
    assert [at_ns for at_ns, _ in timer.calls] == [100_000, 100_000]
    timer.advance(100_000)
    assert timer.calls == []
    assert all(request.cancellation.has_expired for request in requests)


def test_a_client_that_left_before_has_not_expired(timer: FakeTimer, expiries: Expiries) -> None:
    request = request_with(10)
    expiries.add(request)
    request.cancellation.cancel()
    timer.advance(10_000)
    assert not request.cancellation.has_expired


def test_what_follows_another_ends_as_it_does_and_not_the_other_way_round() -> None:
    outer = request_with(0).cancellation
    inner, gone = LinkedCancellation(outer), LinkedCancellation(outer)
    alone = LinkedCancellation(outer)
    alone.cancel()
    assert not outer.is_cancelled
    gone.unlink()
    outer.expire()
    assert (inner.is_cancelled, inner.has_expired, gone.is_cancelled) == (True, True, False)
    assert LinkedCancellation(outer).has_expired


@pytest.mark.parametrize(
    ("now_ns", "left_us"), [(1_000, 10), (1_999, 10), (2_000, 9), (10_999, 1), (11_000, 1), (50_000, 1)]
)
def test_what_is_left_of_a_timeout_is_never_none(now_ns: int, left_us: int) -> None:
    assert request_with(10, received_ns=1_000).timeout_left_us(now_ns) == left_us


def test_a_request_without_a_timeout_leaves_none() -> None:
    request = request_with(0)
    assert (request.timeout_left_us(1), request.ends_ns) == (0, 0)


@pytest.mark.parametrize(("deadline_ns", "ends_ns"), [(0, 11_000), (5_000, 5_000), (20_000, 11_000)])
def test_whichever_limit_comes_first_ends_a_request(deadline_ns: int, ends_ns: int) -> None:
    request = request_with(10, received_ns=1_000)
    request.deadline_ns = deadline_ns
    assert request.ends_ns == ends_ns
