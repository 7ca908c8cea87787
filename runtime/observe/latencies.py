"""Histograms and summaries of one model's latencies, for those who asked for them.

Owns the buckets, the quantiles of the last minute, and their sums. What is off is None and costs a look.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from cantata.runtime.observe.metrics_options import LatencyOptions

if TYPE_CHECKING:
    # A model's own process needs the counting, but no configuration.
    from cantata.grammars.model_config import ModelConfig

FIRST_RESPONSE_HISTOGRAM: Final = "nv_inference_first_response_histogram_ms"
_DEFAULT_BOUNDS_MS: Final = (100.0, 500.0, 2000.0, 5000.0)

# What summaries are of, in the order in which they are told.
SUMMARIES: Final = ("request", "queue", "compute_input", "compute_infer", "compute_output")

QUEUE: Final = SUMMARIES[1]
# And of a model whose answers are kept, each for requests of its own.
CACHE_HIT: Final = "cache_hit"
CACHE_MISS: Final = "cache_miss"

# Quantiles are of the last minute, which passes in so many parts.
_WINDOW_NS: Final = 60_000_000_000
_PARTS: Final = 5
# Values are told apart when they differ by more than 1%: a quantile is off by half of that at most.
_RESOLUTION: Final = 1 / math.log(1.01)
# So many values are put into their classes at once.
_MOST_PENDING: Final = 1024


@dataclass(frozen=True, slots=True)
class HistogramFigures:
    """How many values were at most each bound, and at last how many there were; and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class SummaryFigures:
    """The quantiles of the last minute (NaN where nothing happened), the sum and the number of all values."""

    quantiles: tuple[tuple[float, float], ...]
    total: int
    count: int


class Durations(NamedTuple):
    """One request's, in nanoseconds, in the order of SUMMARIES."""

    request: int
    queue: int
    compute_input: int
    compute_infer: int
    compute_output: int


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def figures(self) -> HistogramFigures:
        return HistogramFigures(self._bounds, tuple(accumulate(self._counts)), self._total)


class _Part:
    """The classes of values that came within one part of the window, and the least and the greatest of them."""

    __slots__ = ("classes", "greatest", "least")

    def __init__(self) -> None:
        self.classes: dict[int, int] = {}
        self.least = math.inf
        self.greatest = 0

    def add(self, values: Sequence[int]) -> None:
        indices = np.ceil(np.log(np.maximum(values, 1)) * _RESOLUTION).astype(np.int64)
        for index, count in zip(
            *(each.tolist() for each in np.unique(indices, return_counts=True)), strict=True
        ):
            self.classes[index] = self.classes.get(index, 0) + count
        self.least = min(self.least, min(values))
        self.greatest = max(self.greatest, max(values))


class _Summary:
    def __init__(self) -> None:
        self.total_us = 0
        self.count = 0
        self.parts: deque[_Part] = deque([_Part()], maxlen=_PARTS)

    def add(self, values: Sequence[int]) -> None:
        self.total_us += sum(value // 1000 for value in values)
        self.count += len(values)
        self.parts[-1].add(values)

    def quantiles(self, wanted: Sequence[float]) -> tuple[tuple[float, float], ...]:
        """Each with its value in microseconds."""
        merged: dict[int, int] = {}
        for part in self.parts:
            for index, count in part.classes.items():
                merged[index] = merged.get(index, 0) + count
        ordered = sorted(merged)
        ranks = list(accumulate(merged[index] for index in ordered))
        if not ranks:
            return tuple((quantile, math.nan) for quantile in wanted)
        least = min(part.least for part in self.parts)
        greatest = max(part.greatest for part in self.parts)
        found = []
        for quantile in wanted:
            index = ordered[bisect_left(ranks, max(1, math.ceil(quantile * ranks[-1])))]
            middle = math.exp((index - 0.5) / _RESOLUTION)
            found.append((quantile, min(max(middle, least), greatest) / 1000))
        return tuple(found)


class Latencies:
    """What is told of one model version's latencies. `_lock` guards all that changes."""

    def __init__(
        self, options: LatencyOptions, bounds_ms: tuple[float, ...], *, has_cache: bool = False
    ) -> None:
        """A model whose answers are kept `has_cache`: its requests are too unlike for one summary."""
        self._lock = threading.Lock()
        self._histogram = _Histogram(bounds_ms) if options.histograms else None
        self._quantiles = tuple(quantile for quantile, _ in options.quantiles)
        self._summaries = {name: _Summary() for name in SUMMARIES} if options.summaries else {}
        self._lookups: dict[str, list[int]] = {}
        if has_cache and options.summaries:
            del self._summaries["request"]
            self._summaries.update((name, _Summary()) for name in (CACHE_HIT, CACHE_MISS))
            self._lookups = {name: [] for name in (CACHE_HIT, CACHE_MISS, QUEUE)}
        self._pending: list[Durations] = []
        self._part_ends_ns = 0
        # Whoever counts looks here first.
        self.has_histogram = options.histograms
        self.has_summaries = options.summaries

    def first_response(self, duration_ns: int) -> None:
        """A request's first response has come."""
        if self._histogram is not None:
            with self._lock:
                self._histogram.observe(duration_ns / 1e6)

    def answered(self, durations: Durations, now_ns: int) -> None:
        """A request has been answered."""
        with self._lock:
            if now_ns >= self._part_ends_ns:
                self._pass_parts(now_ns)
            self._pending.append(durations)
            if len(self._pending) >= _MOST_PENDING:
                self._sort_in()

    def looked_up(self, part: str, duration_ns: int, now_ns: int) -> None:
        """A request of a model with a cache took so long for this part of it alone.

        Finding its answer (CACHE_HIT) and waiting for that (QUEUE), or not finding it and then keeping it (CACHE_MISS).
        """
        with self._lock:
            if now_ns >= self._part_ends_ns:
                self._pass_parts(now_ns)
            lookups = self._lookups[part]
            lookups.append(duration_ns)
            if len(lookups) >= _MOST_PENDING:
                self._sort_in()

    def histogram(self) -> HistogramFigures | None:
        """The time to the first response, in milliseconds; None where that is not told."""
        if self._histogram is None:
            return None
        with self._lock:
            return self._histogram.figures()

    def summaries(self, now_ns: int) -> dict[str, SummaryFigures]:
        """The summaries that are told, by what they are of, in microseconds."""
        with self._lock:
            if self._summaries and now_ns >= self._part_ends_ns:
                self._pass_parts(now_ns)
            self._sort_in()
            return {
                name: SummaryFigures(summary.quantiles(self._quantiles), summary.total_us, summary.count)
                for name, summary in self._summaries.items()
            }

    def _pass_parts(self, now_ns: int) -> None:
        """Begin the part of the window that `now_ns` is in, and forget what is too old."""
        self._sort_in()
        part_ns = _WINDOW_NS // _PARTS
        passed = min(_PARTS, 1 + (now_ns - self._part_ends_ns) // part_ns)
        for summary in self._summaries.values():
            summary.parts.extend(_Part() for _ in range(passed))
        self._part_ends_ns = (now_ns // part_ns + 1) * part_ns

    def _sort_in(self) -> None:
        for name, lookups in self._lookups.items():
            if lookups:
                self._summaries[name].add(lookups)
                lookups.clear()
        if not self._pending:
            return
        columns = zip(*self._pending, strict=True)
        for name, column in zip(SUMMARIES, columns, strict=True):
            if name in self._summaries:
                self._summaries[name].add(column)
        self._pending.clear()


def latencies_of(
    config: ModelConfig, options: LatencyOptions, *, has_cache: bool = False
) -> Latencies | None:
    """What is told of a model's latencies beyond their sums; None where nothing is."""
    if not options.histograms and not options.summaries:
        return None
    return Latencies(options, _bounds_of(config), has_cache=has_cache)


def _bounds_of(config: ModelConfig) -> tuple[float, ...]:
    controls = () if config.model_metrics is None else config.model_metrics.metric_control
    for control in controls:
        identifier, options = control.metric_identifier, control.histogram_options
        if identifier is not None and identifier.family == FIRST_RESPONSE_HISTOGRAM and options is not None:
            return tuple(sorted(set(options.buckets)))
    return _DEFAULT_BOUNDS_MS
