"""Answers leave in the order of their requests, however they come."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.response_order import ResponseOrder


@dataclass
class Recorder:
    """Notes what is sent through it, under its name."""

    name: str
    log: list[str] = field(default_factory=list)

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        assert response is not None
        self.log.append(f"{self.name}{response.id}")

    def wait_until_ready(self) -> None:
        """Always ready."""


def response(id: str) -> InferenceResponse:
    return InferenceResponse("identity", 1, id, {})


def test_the_responses_of_a_stream_wait_for_the_final_one_before() -> None:
    order, log = ResponseOrder(), []
    first, second = (order.next_sender(Recorder(name, log)) for name in "ab")
    second.send(response("1"), False)
    first.send(response("1"), False)
    second.send(response("2"), True)
    assert log == ["a1"]
    first.send(response("2"), True)
    assert log == ["a1", "a2", "b1", "b2"]


def test_a_delivery_that_fails_does_not_hold_up_the_next(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        def send(self, response: InferenceResponse | None, final: bool) -> None:
            raise OSError("the client is gone")

    order, log = ResponseOrder(), []
    first, second = order.next_sender(Failing("a")), order.next_sender(Recorder("b", log))
    second.send(response("1"), True)
    first.send(response("1"), True)
    assert log == ["b1"]
    assert "could not be delivered" in caplog.text


@given(st.data())
def test_any_interleaving_comes_out_in_order(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    order, log = ResponseOrder(), []
    senders = [order.next_sender(Recorder(str(index), log)) for index in range(len(counts))]
    left = list(counts)
    while any(left):
        index = data.draw(st.sampled_from([index for index, count in enumerate(left) if count]))
        left[index] -= 1
        senders[index].send(response(str(counts[index] - left[index])), left[index] == 0)
    assert log == [f"{index}{number}" for index, count in enumerate(counts) for number in range(1, count + 1)]
