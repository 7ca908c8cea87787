"""Metrics that models define: what they allow, and how long they are shown."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cantata.runtime.errors import InferenceError
from cantata.runtime.observe.custom_metrics import CustomMetrics, MetricChange, MetricKind


def shown(metrics: CustomMetrics) -> dict[tuple[str, str], float]:
    """Samples by name and labels, as Prometheus reads them."""
    return {
        (sample.name.removesuffix("_total"), str(sample.labels)): sample.value
        for family in text_string_to_metric_families("\n".join(metrics.lines()) + "\n")
        for sample in family.samples
    }


def test_metrics_with_the_same_labels_are_one() -> None:
    metrics = CustomMetrics()
    families = [metrics.open_family("count", "Some.", "counter") for _ in range(2)]
    numbers = [metrics.open_metric(family, {"a": 'b"\\\n'}, ()) for family in families]
    metrics.change(numbers[0], "increment", 1.5)
    metrics.change(numbers[1], "increment", 2)
    assert [metrics.value(number) for number in numbers] == [3.5, 3.5]
    assert shown(metrics) == {("count", str({"a": 'b"\\\n'})): 3.5}


def test_a_metric_is_shown_until_its_last_holder_lets_go() -> None:
    metrics = CustomMetrics()
    family = metrics.open_family("level", "Some.", "gauge")
    one, other = (metrics.open_metric(family, {}, ()) for _ in range(2))
    metrics.close(one)
    metrics.close(one)
    assert shown(metrics) == {("level", "{}"): 0}
    metrics.close(other)
    assert metrics.lines() == []
    with pytest.raises(InferenceError, match="Invalid metric operation"):
        metrics.value(other)


def test_a_family_takes_its_metrics_with_it() -> None:
    metrics = CustomMetrics()
    family = metrics.open_family("level", "Some.", "gauge")
    number = metrics.open_metric(family, {}, ())
    metrics.close(family)
    with pytest.raises(
        InferenceError, match="Invalid metric operation as the corresponding 'MetricFamily' has been deleted"
    ):
        metrics.change(number, "set", 1)
    with pytest.raises(InferenceError, match="has been deleted"):
        metrics.open_metric(family, {}, ())
    metrics.close(number)
    # The name is free for another kind.
    metrics.open_family("level", "Some.", "counter")


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    metrics = CustomMetrics()
    number = metrics.open_metric(metrics.open_family("size", "Some.", "histogram"), {}, (1, 2.5))
    for value in (0.5, 1, 2, 100):
        metrics.change(number, "observe", value)
    assert shown(metrics) == {
        ("size_count", "{}"): 4,
        ("size_sum", "{}"): 103.5,
        ("size_bucket", str({"le": "1"})): 2,
        ("size_bucket", str({"le": "2.5"})): 3,
        ("size_bucket", str({"le": "+Inf"})): 4,
    }


@pytest.mark.parametrize(
    ("kind", "change", "amount", "reason"),
    [
        ("counter", "increment", -1, "cannot be incremented by a negative value"),
        ("counter", "set", 1, "does not support 'set'"),
        ("gauge", "observe", 1, "does not support 'observe'"),
        ("histogram", "increment", 1, "does not support 'increment'"),
    ],
)
def test_each_kind_refuses_what_it_cannot_do(
    kind: MetricKind, change: MetricChange, amount: float, reason: str
) -> None:
    metrics = CustomMetrics()
    number = metrics.open_metric(metrics.open_family("name", "Some.", kind), {}, ())
    with pytest.raises(InferenceError, match=reason):
        metrics.change(number, change, amount)


def test_a_histogram_has_no_value() -> None:
    metrics = CustomMetrics()
    number = metrics.open_metric(metrics.open_family("size", "Some.", "histogram"), {}, (1,))
    with pytest.raises(InferenceError, match="does not support 'value'"):
        metrics.value(number)


@pytest.mark.parametrize("name", ["", "1st", "with space", "nv_inference_count", "cantata_up"])
def test_names_that_would_spoil_the_text_are_refused(name: str) -> None:
    with pytest.raises(InferenceError, match="Failed to create metric family"):
        CustomMetrics().open_family(name, "Some.", "counter")


def test_a_name_has_one_kind_and_buckets_ascend() -> None:
    metrics = CustomMetrics()
    family = metrics.open_family("size", "Some.", "histogram")
    with pytest.raises(InferenceError, match="exists already as a histogram, not a gauge"):
        metrics.open_family("size", "Some.", "gauge")
    with pytest.raises(InferenceError, match="ascending"):
        metrics.open_metric(family, {}, (2, 1))
    with pytest.raises(InferenceError, match="not a label's name"):
        metrics.open_metric(family, {"no-label": "x"}, (1,))
