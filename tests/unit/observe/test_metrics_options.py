"""What `--metrics-config` says."""

from __future__ import annotations

import pytest

from cantata.runtime.observe.metrics_options import LatencyOptions, parse_latency_options


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), LatencyOptions()),
        (("counter_latencies=false",), LatencyOptions(counters=False)),
        (("counter_latencies=false", "counter_latencies=TRUE"), LatencyOptions()),
        (
            ("histogram_latencies=true", "summary_latencies=1"),
            LatencyOptions(histograms=True, summaries=True),
        ),
        (("summary_quantiles=0.25:0.01,0.75:0.02",), LatencyOptions(quantiles=((0.25, 0.01), (0.75, 0.02)))),
        (('summary_quantiles="0.5:0.05"',), LatencyOptions(quantiles=((0.5, 0.05),))),
    ],
)
def test_settings_are_read(texts: tuple[str, ...], expected: LatencyOptions) -> None:
    assert parse_latency_options(texts) == (expected, ())


def test_a_setting_that_there_is_not_is_pointed_out() -> None:
    assert parse_latency_options(["gauges=true"]) == (
        LatencyOptions(),
        ("--metrics-config gauges has no effect: there is no such setting",),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("counter_latencies", "expects <setting>=<value>, got 'counter_latencies'"),
        ("=true", "expects <setting>=<value>, got '=true'"),
        ("local,counter_latencies=true", "expects <setting>=<value>, got 'local,counter_latencies=true'"),
        ("counter_latencies=maybe", "counter_latencies expects true or false, got 'maybe'"),
        ("summary_quantiles=0.5", "summary_quantiles expects <quantile>:<error>, got '0.5'"),
        ("summary_quantiles=0.5:0.05,x:1", "summary_quantiles expects <quantile>:<error>, got 'x:1'"),
        ("summary_quantiles=1.5:0.1", "summary_quantiles expects numbers from 0 to 1, got '1.5:0.1'"),
    ],
)
def test_what_cannot_be_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as failure:
        parse_latency_options([text])
    assert str(failure.value) == message
