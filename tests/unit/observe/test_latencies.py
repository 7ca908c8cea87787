"""Histograms and summaries of latencies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars.model_config import HistogramOptions, MetricControl, MetricIdentifier, ModelMetrics
from cantata.runtime.observe.latencies import (
    CACHE_HIT,
    CACHE_MISS,
    SUMMARIES,
    Durations,
    HistogramFigures,
    Latencies,
    latencies_of,
)
from cantata.runtime.observe.metrics_options import LatencyOptions
from tests.support.requests import identity_config

SECOND = 1_000_000_000
SUMMARISED = LatencyOptions(summaries=True, quantiles=((0.5, 0.05), (0.99, 0.001)))


def summaries() -> Latencies:
    return Latencies(SUMMARISED, ())


def observe(latencies: Latencies, duration_ns: int, now_ns: int) -> None:
    latencies.answered(Durations(duration_ns, 0, 0, 0, 0), now_ns)


def request_quantiles(latencies: Latencies, now_ns: int) -> list[float]:
    return [value for _, value in latencies.summaries(now_ns)["request"].quantiles]


def test_a_model_without_wishes_has_none() -> None:
    assert latencies_of(identity_config(), LatencyOptions()) is None


def test_first_responses_fall_into_buckets_up_to_their_bounds() -> None:
    latencies = latencies_of(identity_config(), LatencyOptions(histograms=True))
    assert latencies is not None
    for milliseconds in (1, 100, 101, 9000):
        latencies.first_response(milliseconds * 1_000_000)
    assert latencies.histogram() == HistogramFigures((100, 500, 2000, 5000), (2, 3, 3, 3, 4), 9202.0)
    assert latencies.summaries(0) == {}


def test_a_model_may_have_buckets_of_its_own() -> None:
    control = MetricControl(
        metric_identifier=MetricIdentifier(family="nv_inference_first_response_histogram_ms"),
        histogram_options=HistogramOptions(buckets=(5, 1)),
    )
    other = MetricControl(
        metric_identifier=MetricIdentifier(family="another"), histogram_options=HistogramOptions(buckets=(9,))
    )
    config = identity_config().model_copy(
        update={"model_metrics": ModelMetrics(metric_control=(other, control))}
    )
    latencies = latencies_of(config, LatencyOptions(histograms=True))
    assert latencies is not None
    latencies.first_response(2_000_000)
    assert latencies.histogram() == HistogramFigures((1, 5), (0, 1, 1), 2.0)


def test_every_part_of_a_request_is_summed_up_in_whole_microseconds() -> None:
    latencies = summaries()
    latencies.answered(Durations(10_999, 1_999, 2_000, 3_000, 4_500), SECOND)
    latencies.answered(Durations(10_999, 0, 0, 0, 0), SECOND)
    found = latencies.summaries(SECOND)
    assert tuple(found) == SUMMARIES
    assert [summary.total for summary in found.values()] == [20, 1, 2, 3, 4]
    assert {summary.count for summary in found.values()} == {2}


def test_one_value_is_every_quantile() -> None:
    latencies = summaries()
    observe(latencies, 42_541_000, SECOND)
    assert request_quantiles(latencies, SECOND) == [42541, 42541]


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=200))
def test_quantiles_are_right_to_a_hundredth(values: list[int]) -> None:
    latencies = summaries()
    for value in values:
        observe(latencies, value, SECOND)
    expected = np.quantile(values, (0.5, 0.99), method="inverted_cdf") / 1000
    assert request_quantiles(latencies, SECOND) == pytest.approx(expected.tolist(), rel=0.01)


def test_quantiles_are_of_the_last_minute_and_sums_of_all_time() -> None:
    latencies = summaries()
    observe(latencies, 1_000_000, SECOND)
    observe(latencies, 9_000_000, 40 * SECOND)
    assert request_quantiles(latencies, 50 * SECOND) == [pytest.approx(1000, rel=0.01), 9000]
    assert request_quantiles(latencies, 75 * SECOND) == [9000, 9000]
    assert all(math.isnan(value) for value in request_quantiles(latencies, 200 * SECOND))
    summary = latencies.summaries(200 * SECOND)["request"]
    assert (summary.total, summary.count) == (10_000, 2)


def test_many_values_take_no_room() -> None:
    latencies = summaries()
    for number in range(5000):
        observe(latencies, 1_000_000 + number % 7, SECOND)
    assert len(latencies._pending) < 1024
    assert latencies.summaries(SECOND)["request"].count == 5000


def test_a_model_with_a_cache_has_no_summary_of_whole_requests() -> None:
    latencies = Latencies(SUMMARISED, (), has_cache=True)
    observe(latencies, 5_000, SECOND)
    latencies.looked_up(CACHE_HIT, 7_000, SECOND)
    found = latencies.summaries(SECOND)
    assert found.keys() == {*SUMMARIES, CACHE_HIT, CACHE_MISS} - {"request"}
    assert {name: (summary.count, summary.total) for name, summary in found.items()} == {
        **dict.fromkeys(SUMMARIES[1:], (1, 0)),
        CACHE_HIT: (1, 7),
        CACHE_MISS: (0, 0),
    }
