"""Metrics that models define themselves: families of counters, gauges and histograms, beside the server's own.

Owns their values and their text. Whoever defines one holds a number for it and gives that back; who that is, and in
which process, is not known here.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from cantata.runtime.errors import invalid_argument, unsupported

MetricKind = Literal["counter", "gauge", "histogram"]
MetricChange = Literal["increment", "set", "observe"]

_FAMILY_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# A family of the same name as one of the server's would make the whole text unreadable to Prometheus.
_OWN_PREFIXES: Final = (
    "nv_inference_",
    "nv_model_",
    "nv_cache_",
    "nv_gpu_",
    "nv_cpu_",
    "nv_energy_",
    "nv_pinned_",
    "cantata_",
)
_DELETED: Final = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should "
    "be deleted AFTER its corresponding 'Metric' objects have been deleted."
)

Labels = tuple[tuple[str, str], ...]


class _Series:
    """The values under one set of labels; `users` counts the numbers that were given out for it."""

    __slots__ = ("bounds", "buckets", "total", "users", "value")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.users = 0
        self.value = 0.0
        self.bounds = bounds
        # How many observations are at most each bound and above the one before, then those above all.
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0


class _Family:
    """One name with its series; `users` counts the numbers that were given out for it."""

    __slots__ = ("description", "kind", "name", "series", "users")

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        self.name = name
        self.description = description
        self.kind = kind
        self.users = 0
        self.series: dict[Labels, _Series] = {}


class CustomMetrics:
    """The models' metrics of one server. Every method may be called from any thread, and raises InferenceError.

    `_lock` guards everything else. Two families of one name are one, as are two metrics of one family with the same
    labels; each is shown until the last number for it is given back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._families: dict[str, _Family] = {}
        self._open_families: dict[int, _Family] = {}
        # The family's number and the labels, by the metric's number.
        self._open_metrics: dict[int, tuple[int, Labels]] = {}

    def open_family(self, name: str, description: str, kind: MetricKind) -> int:
        """The number of a family, made unless there is one of that name."""
        if _FAMILY_NAME.fullmatch(name) is None:
            raise invalid_argument(f"Failed to create metric family. '{name}' is not a metric's name.")
        if name.startswith(_OWN_PREFIXES):
            raise invalid_argument(f"Failed to create metric family. '{name}' belongs to the server.")
        with self._lock:
            family = self._families.get(name)
            if family is None:
                family = self._families[name] = _Family(name, description, kind)
            elif family.kind != kind:
                raise invalid_argument(
                    f"Failed to create metric family. '{name}' exists already as a {family.kind}, not a {kind}."
                )
            family.users += 1
            number = next(self._numbers)
            self._open_families[number] = family
            return number

    def open_metric(self, family_number: int, labels: Mapping[str, str], bounds: Sequence[float]) -> int:
        """The number of a family's metric with `labels`; `bounds` are a histogram's buckets, ascending."""
        for name in labels:
            if _LABEL_NAME.fullmatch(name) is None:
                raise invalid_argument(f"Failed to create metric. '{name}' is not a label's name.")
        if any(low >= high for low, high in itertools.pairwise(bounds)):
            raise invalid_argument("Failed to create metric. Buckets must be in ascending order.")
        key = tuple(sorted(labels.items()))
        with self._lock:
            family = self._family(family_number)
            series = family.series.get(key)
            if series is None:
                series = family.series[key] = _Series(tuple(map(float, bounds)))
            series.users += 1
            number = next(self._numbers)
            self._open_metrics[number] = (family_number, key)
            return number

    def change(self, number: int, change: MetricChange, amount: float) -> None:
        """Increment, set or observe, as the kind of the metric allows."""
        with self._lock:
            family, series = self._series(number)
            match family.kind, change:
                case "counter", "increment" if amount < 0:
                    raise invalid_argument("A COUNTER metric cannot be incremented by a negative value.")
                case (("counter" | "gauge"), "increment"):
                    series.value += amount
                case "gauge", "set":
                    series.value = amount
                case "histogram", "observe":
                    series.buckets[bisect_left(series.bounds, amount)] += 1
                    series.total += amount
                case kind, _:
                    raise unsupported(f"A {kind.upper()} metric does not support '{change}'.")

    def value(self, number: int) -> float:
        """The value of a counter or gauge."""
        with self._lock:
            family, series = self._series(number)
            if family.kind == "histogram":
                raise unsupported("A HISTOGRAM metric does not support 'value'.")
            return series.value

    def close(self, number: int) -> None:
        """Give a metric's or a family's number back; a family's metrics go with it. Twice is no error."""
        with self._lock:
            if number in self._open_metrics:
                self._close_metric(number)
            elif (family := self._open_families.get(number)) is not None:
                for metric, (family_number, _) in list(self._open_metrics.items()):
                    if family_number == number:
                        self._close_metric(metric)
                del self._open_families[number]
                family.users -= 1
                if not family.users:
                    del self._families[family.name]

    def values(self, family_name: str) -> list[tuple[dict[str, str], float]]:
        """The values of a family of counters or gauges, with their labels; none where there is no such family."""
        with self._lock:
            family = self._families.get(family_name)
            if family is None:
                return []
            return [(dict(labels), series.value) for labels, series in family.series.items()]

    def lines(self) -> list[str]:
        """All families in Prometheus' text format, by name."""
        with self._lock:
            return [
                line
                for name in sorted(self._families)
                if self._families[name].series
                for line in _family_lines(self._families[name])
            ]

    def _close_metric(self, number: int) -> None:
        family_number, key = self._open_metrics.pop(number)
        series = self._open_families[family_number].series
        series[key].users -= 1
        if not series[key].users:
            del series[key]

    def _family(self, number: int) -> _Family:
        family = self._open_families.get(number)
        if family is None:
            raise invalid_argument(_DELETED)
        return family

    def _series(self, number: int) -> tuple[_Family, _Series]:
        """The caller holds the lock."""
        opened = self._open_metrics.get(number)
        if opened is None:
            raise invalid_argument(_DELETED)
        family = self._open_families[opened[0]]
        return family, family.series[opened[1]]


def _family_lines(family: _Family) -> Iterator[str]:
    name = family.name
    description = family.description.replace("\\", "\\\\").replace("\n", "\\n")
    yield f"# HELP {name} {description}"
    yield f"# TYPE {name} {family.kind}"
    for labels, series in family.series.items():
        if family.kind == "histogram":
            yield from _histogram_lines(name, labels, series)
        else:
            yield f"{name}{_labels_text(labels)} {_number_text(series.value)}"


def _histogram_lines(name: str, labels: Labels, series: _Series) -> Iterator[str]:
    counts = list(itertools.accumulate(series.buckets))
    yield f"{name}_count{_labels_text(labels)} {counts[-1]}"
    yield f"{name}_sum{_labels_text(labels)} {_number_text(series.total)}"
    for bound, count in zip((*series.bounds, math.inf), counts, strict=True):
        yield f"{name}_bucket{_labels_text((*labels, ('le', _number_text(bound))))} {count}"


def _labels_text(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{escaped_label(text)}"' for name, text in labels) + "}"


def _number_text(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def escaped_label(text: str) -> str:
    """A label's value between its quotes."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
