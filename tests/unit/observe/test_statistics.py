"""What statistics hold of requests."""

from __future__ import annotations

from cantata.runtime.observe.statistics import _MOST_RESPONSES, StatisticsCounter


def test_a_stream_without_end_does_not_fill_the_memory() -> None:
    counter = StatisticsCounter()
    for index in range(_MOST_RESPONSES + 10):
        counter.count_response(index, infer_ns=1, output_ns=1, is_empty=False, is_failure=False)
    figures = counter.snapshot("model", "1").response_stats
    assert list(figures)[-1] == str(_MOST_RESPONSES - 1)
    assert len(figures) == _MOST_RESPONSES
