"""Prometheus' text format: families of samples as lines.

The text is written here, since prometheus_client's writer would add `_total` to the names of counters, which Triton's
do not have. Knows no metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from cantata.runtime.observe.custom_metrics import escaped_label
from cantata.runtime.observe.latencies import HistogramFigures, SummaryFigures

Labels = tuple[tuple[str, str], ...]
Samples = Iterable[tuple[Labels, int | float]]


def family(name: str, kind: str, help_text: str, samples: Samples) -> Iterator[str]:
    """A counter or gauge with its samples."""
    yield from _heading(name, kind, help_text)
    for labels, value in samples:
        yield f"{name}{_labels_text(labels)} {value}"


def histogram_family(
    name: str, help_text: str, histograms: Iterable[tuple[Labels, HistogramFigures]]
) -> Iterator[str]:
    """A metric whose samples are histograms."""
    yield from _heading(name, "histogram", help_text)
    for labels, histogram in histograms:
        yield f"{name}_count{_labels_text(labels)} {histogram.counts[-1]}"
        yield f"{name}_sum{_labels_text(labels)} {histogram.total}"
        for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
            text = "+Inf" if math.isinf(bound) else f"{bound:g}"
            yield f"{name}_bucket{_labels_text((*labels, ('le', text)))} {count}"


def summary_family(
    name: str, help_text: str, summaries: Iterable[tuple[Labels, SummaryFigures]]
) -> Iterator[str]:
    """A metric whose samples are summaries."""
    yield from _heading(name, "summary", help_text)
    for labels, summary in summaries:
        yield f"{name}_count{_labels_text(labels)} {summary.count}"
        yield f"{name}_sum{_labels_text(labels)} {summary.total}"
        for quantile, value in summary.quantiles:
            text = "NaN" if math.isnan(value) else f"{value:.9g}"
            yield f"{name}{_labels_text((*labels, ('quantile', f'{quantile:g}')))} {text}"


def _heading(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"


def _labels_text(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{escaped_label(text)}"' for key, text in sorted(labels)) + "}"
