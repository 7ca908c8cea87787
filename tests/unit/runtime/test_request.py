"""A request is answered once, whatever else fails."""

from __future__ import annotations

import pytest

from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from tests.support.requests import RecordingSender, make_request


class BrokenTrace:
    """A trace that fails wherever it is told something."""

    def answered(self, request: InferenceRequest, response: InferenceResponse | None, final: bool) -> None:
        raise ValueError("no encoding")

    def ended(self, request: InferenceRequest) -> None:
        raise ValueError("no room")


class Queue:
    """Notes whom it was told of."""

    def __init__(self) -> None:
        self.left: list[InferenceRequest] = []

    def cancelled(self, request: InferenceRequest) -> None:
        self.left.append(request)


@pytest.mark.parametrize("goes_first", [True, False])
def test_a_request_that_was_watched_twice_is_forgotten_at_once(goes_first: bool) -> None:
    queue = Queue()
    first, request = make_request(1), make_request(1)
    cancellation = request.cancellation
    first.queue = request.queue = queue
    if goes_first:
        cancellation.watch(first)
    cancellation.watch(request)
    cancellation.unwatch(first)
    cancellation.watch(request)
    cancellation.unwatch(request)
    cancellation.cancel()
    assert queue.left == []


def test_a_trace_that_fails_does_not_keep_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    request = make_request(1)
    request.trace = BrokenTrace()  # type: ignore[assignment]
    response = InferenceResponse("identity", 1, "", {})
    request.respond(response, False)
    request.respond(None, True)
    assert isinstance(request.sender, RecordingSender)
    assert request.sender.responses == [response, None]
    assert [record.getMessage() for record in caplog.records] == [
        "an answer of model 'identity' could not be traced",
        "an answer of model 'identity' could not be traced",
        "the end of a request of model 'identity' could not be traced",
    ]
