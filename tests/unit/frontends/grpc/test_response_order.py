"""The order of a stream's answers, against the rule that defines it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.frontends.grpc.response_order import ResponseOrder


def test_the_first_requests_messages_pass_at_once() -> None:
    order = ResponseOrder()
    place = order.enter()
    assert order.add(place, b"1", False) == [b"1"]
    assert order.add(place, b"2", True) == [b"2"]


def test_later_requests_wait_and_follow_in_order() -> None:
    order = ResponseOrder()
    first, second, third = order.enter(), order.enter(), order.enter()
    assert order.add(third, b"3", True) == []
    assert order.add(second, b"2", False) == []
    assert order.add(first, b"1", True) == [b"1", b"2"]
    assert order.add(second, None, True) == [b"3"]


@given(st.lists(st.integers(1, 3), max_size=6), st.randoms())
def test_whatever_order_messages_come_in_they_leave_in_the_order_of_requests(
    counts: list[int], random: object
) -> None:
    order = ResponseOrder()
    places = [order.enter() for _ in counts]
    arrivals = [index for index, count in enumerate(counts) for _ in range(count)]
    random.shuffle(arrivals)  # type: ignore[attr-defined]
    seen = [0] * len(counts)
    left: list[bytes] = []
    for index in arrivals:
        seen[index] += 1
        left += order.add(places[index], b"%d.%d" % (index, seen[index]), seen[index] == counts[index])
    assert left == [
        b"%d.%d" % (index, number + 1) for index, count in enumerate(counts) for number in range(count)
    ]
