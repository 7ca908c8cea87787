"""What statistics hold of requests."""

from __future__ import annotations

from cantata.runtime.errors import InferenceError, StatusCode, internal_error
from cantata.runtime.observe.snapshots import InferResponseStatistics, StatisticDuration
from cantata.runtime.observe.statistics import (
    _MOST_RESPONSES,
    REASON_BACKEND,
    REASON_CANCELED,
    REASON_OTHER,
    StatisticsCounter,
)
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from tests.support.requests import make_request, tensor

NONE = StatisticDuration(0, 0)
ANSWER = InferenceResponse("m", 1, "", {"OUTPUT": tensor(1)})


def running_request(started_ns: int = 100) -> InferenceRequest:
    request = make_request(1)
    request.started_ns = started_ns
    return request


def respond(
    counter: StatisticsCounter, request: InferenceRequest, response: InferenceResponse | None, now_ns: int
) -> None:
    counter.count_response(request, response, now_ns, final=response is None)
    request.response_count += 1


def failure(error: InferenceError) -> InferenceResponse:
    return InferenceResponse("m", 1, "", {}, error=error)


def test_a_stream_without_end_does_not_fill_the_memory() -> None:
    counter, request = StatisticsCounter(), running_request()
    for now_ns in range(_MOST_RESPONSES + 10):
        respond(counter, request, ANSWER, 101 + now_ns)
    figures = counter.snapshot("model", "1").response_stats
    assert list(figures)[-1] == str(_MOST_RESPONSES - 1)
    assert len(figures) == _MOST_RESPONSES


def test_a_response_took_from_the_one_before_it() -> None:
    counter, request = StatisticsCounter(), running_request(started_ns=100)
    respond(counter, request, ANSWER, 130)
    respond(counter, request, ANSWER, 135)
    respond(counter, request, None, 142)
    assert counter.snapshot("model", "1").response_stats == {
        "0": InferResponseStatistics(
            StatisticDuration(1, 30), StatisticDuration(1, 0), StatisticDuration(1, 30), NONE, NONE, NONE
        ),
        "1": InferResponseStatistics(
            StatisticDuration(1, 5), StatisticDuration(1, 0), StatisticDuration(1, 5), NONE, NONE, NONE
        ),
        "2": InferResponseStatistics(NONE, NONE, NONE, NONE, StatisticDuration(1, 7), NONE),
    }


def test_failed_and_cancelled_responses_have_no_output() -> None:
    counter = StatisticsCounter()
    respond(counter, running_request(), failure(internal_error("no")), 110)
    respond(counter, running_request(), failure(InferenceError(StatusCode.CANCELLED, "")), 104)
    respond(counter, running_request(), ANSWER, 120)
    assert counter.snapshot("model", "1").response_stats == {
        "0": InferResponseStatistics(
            compute_infer=StatisticDuration(2, 30),
            compute_output=StatisticDuration(1, 0),
            success=StatisticDuration(1, 20),
            fail=StatisticDuration(1, 10),
            empty_response=NONE,
            cancel=StatisticDuration(1, 4),
        )
    }


def test_a_failure_has_the_same_reason_wherever_the_request_was_by_then() -> None:
    counter = StatisticsCounter()
    cancelled, expired = make_request(1), make_request(1)
    cancelled.cancellation.cancel()
    expired.cancellation.expire()
    for reason in (REASON_BACKEND, REASON_CANCELED, REASON_OTHER):
        for request in (cancelled, expired):
            counter.count_failure(request, StatusCode.CANCELLED, reason, 100)
    counter.count_failure(make_request(1), StatusCode.INTERNAL, REASON_BACKEND, 100)
    assert counter.failures == {"REJECTED": 2, "CANCELED": 2, "BACKEND": 1, "OTHER": 2}
