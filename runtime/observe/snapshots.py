"""What the statistics say at one moment, in the shape of the protocol's ModelStatistics (reference, section 2).

Owns no counting: `observe/statistics.py` makes these, the front-ends encode them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cantata.runtime.observe.latencies import HistogramFigures, SummaryFigures
from cantata.runtime.observe.phases import StepFigures


@dataclass(frozen=True, slots=True)
class StatisticDuration:
    """How many times something happened, and how long that took in all."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class InferStatistics:
    """Durations of whole requests by outcome, and of a request's parts."""

    success: StatisticDuration
    fail: StatisticDuration
    queue: StatisticDuration
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration
    cache_hit: StatisticDuration
    cache_miss: StatisticDuration


@dataclass(frozen=True, slots=True)
class InferResponseStatistics:
    """The same for the responses that came as the n-th of their requests."""

    compute_infer: StatisticDuration
    compute_output: StatisticDuration
    success: StatisticDuration
    fail: StatisticDuration
    empty_response: StatisticDuration
    cancel: StatisticDuration


@dataclass(frozen=True, slots=True)
class InferBatchStatistics:
    """Executions of one batch size; `count`s are executions, not requests."""

    batch_size: int
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """One model version. `last_inference` is in milliseconds since the epoch, 0 if there was none.

    `response_stats` is keyed by the index of a response within its request, as text.
    """

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: tuple[InferBatchStatistics, ...]
    response_stats: dict[str, InferResponseStatistics]


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """How often the processes of a model's instances ended by themselves, were started again, ran out of time.

    Ends that ran out of time (EXECUTION_TIMEOUT, stub-timeout-seconds) count among the `deaths` too.
    """

    deaths: int = 0
    restarts: int = 0
    timeouts: int = 0


@dataclass(frozen=True, slots=True)
class ByteFigures:
    """A budget of bytes: how many requests hold now, how many they may, how many requests were refused for it."""

    held: int
    limit: int
    shed: int


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """A response cache as a whole. `utilization` is the used part of it, 0 to 1."""

    entries: int = 0
    evictions: int = 0
    utilization: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model version as its metrics show it: the statistics, and what the protocol's statistics do not hold.

    `failures` counts failed requests by reason (REJECTED, CANCELED, BACKEND, OTHER); a reason left out is 0.
    `pending` is the number of requests that wait for an instance now. `load_seconds` is how long the last load
    took. `metric_tags` are the configuration's, without the underscore that their labels get. `processes` is None
    for a model whose instances are no processes, `byte_budget` for one without. `is_cached`: its answers are kept.
    """

    name: str
    version: str
    metric_tags: dict[str, str]
    statistics: ModelStatistics
    failures: dict[str, int]
    pending: int
    load_seconds: float
    processes: ProcessFigures | None = None
    # Of an ensemble; and what is told of latencies where it is wanted, the summaries by what they are of.
    steps: tuple[StepFigures, ...] = ()
    histogram: HistogramFigures | None = None
    summaries: Mapping[str, SummaryFigures] = field(default_factory=dict)
    byte_budget: ByteFigures | None = None
    # Where the repositories are namespaces: the one that it is in.
    namespace: str = ""
    is_cached: bool = False
