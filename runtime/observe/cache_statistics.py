"""Counting what a response cache did for one model version, beside the figures of the model itself.

As the other counters it has no lock: its owner, a caching scheduler, updates and reads it under its own. What each
field means is said in the reference, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.observe.latencies import CACHE_HIT, CACHE_MISS, QUEUE, Latencies
from cantata.runtime.observe.snapshots import ModelStatistics, StatisticDuration
from cantata.runtime.observe.statistics import FAILURE_REASONS


class CacheCounter:
    """Requests that were answered without the model, and what looking up and keeping took for the others."""

    def __init__(self, latencies: Latencies | None = None) -> None:
        """`latencies` are the model's histograms and summaries, where these are wanted."""
        self._latencies = latencies
        self._hits = 0
        self._hit_ns = 0
        # Of whole requests that were hits.
        self._request_ns = 0
        self._queue_ns = 0
        self._misses = 0
        self._miss_ns = 0
        # The part of `_miss_ns` that the model's own figures do not hold.
        self._insert_ns = 0
        # Of requests that failed while they waited for the answer to an equal one.
        self._failures = dict.fromkeys(FAILURE_REASONS, 0)
        self._failure_ns = 0

    def count_hit(self, *, request_ns: int, queue_ns: int, lookup_ns: int) -> None:
        """A request that was answered from the cache; `queue_ns` is how long it waited for an equal one before."""
        self._hits += 1
        self._hit_ns += lookup_ns
        self._request_ns += request_ns
        self._queue_ns += queue_ns
        if self._latencies is not None:
            if self._latencies.has_histogram:
                self._latencies.first_response(request_ns)
            self._look(self._latencies, CACHE_HIT, lookup_ns)
            self._look(self._latencies, QUEUE, queue_ns)

    def count_miss(self, *, lookup_ns: int, insert_ns: int) -> None:
        """A request that the model has answered with success; looking up came before, keeping the answer after."""
        self._misses += 1
        self._miss_ns += lookup_ns + insert_ns
        self._insert_ns += insert_ns
        if self._latencies is not None:
            self._look(self._latencies, CACHE_MISS, lookup_ns + insert_ns)

    def count_insertion(self, insert_ns: int) -> None:
        """What keeping the answer took, where that went on after the request had been answered."""
        self._miss_ns += insert_ns

    def count_failure(self, *, request_ns: int, reason: str) -> None:
        """A request that failed while it waited for the answer to an equal one."""
        self._failures[reason] += 1
        self._failure_ns += request_ns

    @staticmethod
    def _look(latencies: Latencies, part: str, duration_ns: int) -> None:
        if latencies.has_summaries:
            latencies.looked_up(part, duration_ns, monotonic_ns())

    def added_to(self, statistics: ModelStatistics) -> ModelStatistics:
        """The model's own figures and these together."""
        inner = statistics.inference_stats
        return replace(
            statistics,
            inference_stats=replace(
                inner,
                success=_sum(inner.success, self._hits, self._request_ns + self._insert_ns),
                fail=_sum(inner.fail, sum(self._failures.values()), self._failure_ns),
                queue=_sum(inner.queue, self._hits, self._queue_ns),
                cache_hit=StatisticDuration(self._hits, self._hit_ns),
                cache_miss=StatisticDuration(self._misses, self._miss_ns),
            ),
        )

    def failures_with(self, failures: Mapping[str, int]) -> dict[str, int]:
        """Failed requests by reason: the model's own, and those that failed while they waited."""
        return {reason: failures.get(reason, 0) + count for reason, count in self._failures.items()}


def _sum(duration: StatisticDuration, count: int, ns: int) -> StatisticDuration:
    return StatisticDuration(duration.count + count, duration.ns + ns)
