"""How the places of a step are given out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cantata.dag.limiter import StepLimiter


def test_items_beyond_the_limit_wait_and_go_ahead_first_come_first_served() -> None:
    limiter = StepLimiter[str](2)
    assert [limiter.acquire(item) for item in "abcd"] == [True, True, False, False]
    assert [limiter.release() for _ in range(4)] == ["c", "d", None, None]
    assert (limiter.in_flight, limiter.waiting) == (0, 0)
    limiter.check_invariants()


def test_without_a_limit_nobody_waits() -> None:
    limiter = StepLimiter[int](0)
    assert all(limiter.acquire(item) for item in range(100))
    assert limiter.in_flight == 100


def test_a_withdrawn_item_is_passed_over() -> None:
    limiter = StepLimiter[str](1)
    for item in "abc":
        limiter.acquire(item)
    assert limiter.withdraw("b")
    assert limiter.release() == "c"


def test_what_went_ahead_can_not_be_withdrawn() -> None:
    limiter = StepLimiter[str](1)
    limiter.acquire("a")
    assert not limiter.withdraw("a")
    assert limiter.in_flight == 1


@given(st.integers(0, 4), st.lists(st.sampled_from(["acquire", "release", "withdraw"]), max_size=60))
def test_places_are_never_lost_nor_given_twice(limit: int, actions: list[str]) -> None:
    limiter = StepLimiter[int](limit)
    holders: list[int] = []
    queue: list[int] = []
    for item, action in enumerate(actions):
        if action == "acquire":
            (holders if limiter.acquire(item) else queue).append(item)
        elif action == "release" and holders:
            holders.pop(0)
            following = limiter.release()
            assert following == (queue.pop(0) if queue else None)
            holders.extend([following] if following is not None else [])
        elif action == "withdraw" and queue:
            assert limiter.withdraw(queue.pop())
        limiter.check_invariants()
        assert (limiter.in_flight, limiter.waiting) == (len(holders), len(queue))
