"""Prometheus metrics (reference, section 9): names, types and labels, as text when they are scraped.

Owns no counting: everything is read from the server's snapshots and from the machine at the moment of the scrape, so
a model's series are gone with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cantata.runtime.observe.latency_metrics import Labelled, latency_lines, step_lines
from cantata.runtime.observe.machine_metrics import CpuReading, GpuReading, MachineFigures
from cantata.runtime.observe.metrics_text import Labels, family
from cantata.runtime.observe.snapshots import (
    ByteFigures,
    CacheFigures,
    ModelFigures,
    ModelStatistics,
    ProcessFigures,
)
from cantata.runtime.observe.statistics import FAILURE_REASONS

METRICS_CONTENT_TYPE: Final = "text/plain; charset=utf-8"


def _no_cache() -> None:
    """A server without a response cache."""


class ByteBudgetFigures(Protocol):
    """Where the figures of a budget of bytes are."""

    @property
    def figures(self) -> ByteFigures: ...


@dataclass(frozen=True, slots=True)
class _ModelMetric:
    """A metric with one value for each model version."""

    name: str
    kind: str
    help: str
    value: Callable[[ModelFigures], int | float]
    # Whether it is told only where latencies are told as counters.
    is_latency: bool = False


def _microseconds(duration_ns: Callable[[ModelStatistics], int]) -> Callable[[ModelFigures], int]:
    return lambda figures: duration_ns(figures.statistics) // 1000


_MODEL_METRICS: Final = (
    _ModelMetric(
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests, all batch sizes",
        lambda figures: figures.statistics.inference_stats.success.count,
    ),
    _ModelMetric(
        "nv_inference_count",
        "counter",
        "Number of inferences performed, the sum of the batch sizes (without cached requests)",
        lambda figures: figures.statistics.inference_count,
    ),
    _ModelMetric(
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (without cached requests)",
        lambda figures: figures.statistics.execution_count,
    ),
    _ModelMetric(
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative duration of successful inference requests in microseconds (with cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.success.ns),
        is_latency=True,
    ),
    _ModelMetric(
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative time that requests waited in the queue in microseconds (with cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.queue.ns),
        is_latency=True,
    ),
    _ModelMetric(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative time of preparing inputs in microseconds (without cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.compute_input.ns),
        is_latency=True,
    ),
    _ModelMetric(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative time of computing in microseconds (without cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.compute_infer.ns),
        is_latency=True,
    ),
    _ModelMetric(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative time of handling outputs in microseconds (without cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.compute_output.ns),
        is_latency=True,
    ),
    _ModelMetric(
        "nv_inference_pending_request_count",
        "gauge",
        "Number of requests that wait to be executed",
        lambda figures: figures.pending,
    ),
    _ModelMetric(
        "nv_model_load_duration_secs",
        "gauge",
        "Duration of the model's last load in seconds",
        lambda figures: figures.load_seconds,
    ),
)


_PROCESS_METRICS: Final[tuple[tuple[str, str, Callable[[ProcessFigures], int]], ...]] = (
    (
        "cantata_python_instance_deaths_total",
        "Number of times that a process of the model's instances ended by itself or was killed",
        lambda processes: processes.deaths,
    ),
    (
        "cantata_python_instance_restarts_total",
        "Number of times that a model instance was started again after its process had ended",
        lambda processes: processes.restarts,
    ),
    (
        "cantata_python_instance_timeouts_total",
        "Number of times that a process of the model's instances was killed for taking too long",
        lambda processes: processes.timeouts,
    ),
)


_CACHE_METRICS: Final = (
    _ModelMetric(
        "nv_cache_num_hits_per_model",
        "counter",
        "Number of requests that were answered from the response cache",
        lambda figures: figures.statistics.inference_stats.cache_hit.count,
    ),
    _ModelMetric(
        "nv_cache_num_misses_per_model",
        "counter",
        "Number of requests whose answer was not in the response cache, and has been put there",
        lambda figures: figures.statistics.inference_stats.cache_miss.count,
    ),
    _ModelMetric(
        "nv_cache_hit_duration_per_model",
        "counter",
        "Cumulative time of finding answers in the response cache in microseconds",
        _microseconds(lambda statistics: statistics.inference_stats.cache_hit.ns),
    ),
    _ModelMetric(
        "nv_cache_miss_duration_per_model",
        "counter",
        "Cumulative time of not finding answers in the response cache, and of putting them there, in microseconds",
        _microseconds(lambda statistics: statistics.inference_stats.cache_miss.ns),
    ),
)


_CPU_METRICS: Final[tuple[tuple[str, str, Callable[[CpuReading], int | float]], ...]] = (
    ("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", lambda cpu: cpu.utilization),
    ("nv_cpu_memory_total_bytes", "Total memory in bytes", lambda cpu: cpu.memory_total),
    ("nv_cpu_memory_used_bytes", "Used memory in bytes", lambda cpu: cpu.memory_used),
)

_GPU_METRICS: Final[tuple[tuple[str, str, str, Callable[[GpuReading], int | float | None]], ...]] = (
    ("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0]", lambda gpu: gpu.utilization),
    ("nv_gpu_memory_total_bytes", "gauge", "GPU memory in bytes", lambda gpu: gpu.memory_total),
    ("nv_gpu_memory_used_bytes", "gauge", "Used GPU memory in bytes", lambda gpu: gpu.memory_used),
    ("nv_gpu_power_usage", "gauge", "Power that the GPU draws in watts", lambda gpu: gpu.power_usage),
    ("nv_gpu_power_limit", "gauge", "Power that the GPU may draw in watts", lambda gpu: gpu.power_limit),
    ("nv_energy_consumption", "counter", "Energy that the GPU has used in joules", lambda gpu: gpu.energy),
)


class MetricsText:
    """Renders the metrics of one server.

    `model_figures` tells of the models, `machine` of the machine, `custom_lines` what models tell by themselves.
    Without `has_latency_counters` no latency is told as a counter.
    """

    def __init__(
        self,
        model_figures: Callable[[], Sequence[ModelFigures]],
        machine: MachineFigures | None,
        custom_lines: Callable[[], Sequence[str]] = tuple,
        byte_budget: ByteBudgetFigures | None = None,
        cache: Callable[[], CacheFigures | None] = _no_cache,
        *,
        has_latency_counters: bool = True,
    ) -> None:
        self._model_figures = model_figures
        self._machine = machine
        self._has_latency_counters = has_latency_counters
        self._custom_lines = custom_lines
        self._byte_budget = byte_budget
        self._cache = cache

    def render(self) -> bytes:
        """All metrics now, in Prometheus' text format."""
        lines: list[str] = []
        labelled = [(_labels_of(figures), figures) for figures in self._model_figures()]
        for metric in _MODEL_METRICS:
            if metric.is_latency and not self._has_latency_counters:
                continue
            samples = [(labels, metric.value(figures)) for labels, figures in labelled]
            lines += family(metric.name, metric.kind, metric.help, samples)
        lines += family(
            "nv_inference_request_failure",
            "counter",
            "Number of failed inference requests, all batch sizes, by reason",
            (
                ((*labels, ("reason", reason)), figures.failures.get(reason, 0))
                for labels, figures in labelled
                for reason in FAILURE_REASONS
            ),
        )
        for name, help_text, value in _PROCESS_METRICS:
            counts = [
                (labels, value(figures.processes))
                for labels, figures in labelled
                if figures.processes is not None
            ]
            if counts:
                lines += family(name, "counter", help_text, counts)
        lines += latency_lines(labelled)
        lines += step_lines(labelled, has_durations=self._has_latency_counters)
        lines += self._byte_lines(labelled)
        lines += self._cache_lines(labelled)
        if self._machine is not None:
            lines += _machine_lines(self._machine)
        lines += self._custom_lines()
        return ("\n".join(lines) + "\n").encode()

    def _byte_lines(self, labelled: Labelled) -> Iterator[str]:
        """The server's budget without labels of a model, and those of the models that have one."""
        budgets: list[tuple[Labels, str, ByteFigures]] = []
        if self._byte_budget is not None:
            budgets.append(((), "SERVER_BYTES", self._byte_budget.figures))
        budgets += [
            (labels, "MODEL_BYTES", figures.byte_budget)
            for labels, figures in labelled
            if figures.byte_budget is not None
        ]
        if not budgets:
            return
        help_text = "Number of bytes of requests that wait or run"
        yield from family(
            "cantata_queue_bytes", "gauge", help_text, ((labels, of.held) for labels, _, of in budgets)
        )
        help_text = "Number of bytes of requests that may wait or run"
        yield from family(
            "cantata_queue_limit_bytes", "gauge", help_text, ((labels, of.limit) for labels, _, of in budgets)
        )
        help_text = "Number of requests that were refused because there was no room for their bytes"
        shed = (((*labels, ("reason", reason)), of.shed) for labels, reason, of in budgets)
        yield from family("cantata_shed_requests_total", "counter", help_text, shed)

    def _cache_lines(self, labelled: Labelled) -> Iterator[str]:
        """The models whose answers are kept, and the cache as a whole."""
        cached = [(labels, figures) for labels, figures in labelled if figures.is_cached]
        if cached:
            for metric in _CACHE_METRICS:
                samples = [(labels, metric.value(figures)) for labels, figures in cached]
                yield from family(metric.name, metric.kind, metric.help, samples)
        whole = self._cache()
        if whole is None:
            return
        for name, help_text, value in (
            ("nv_cache_util", "Used part of the response cache [0.0 - 1.0]", whole.utilization),
            ("nv_cache_num_entries", "Number of answers in the response cache", whole.entries),
            ("nv_cache_num_evictions", "Number of answers that had to make room for others", whole.evictions),
        ):
            yield from family(name, "gauge", help_text, [((), value)])


def _labels_of(figures: ModelFigures) -> Labels:
    tags = tuple((f"_{name}", value) for name, value in figures.metric_tags.items())
    if figures.namespace:
        tags += (("namespace", figures.namespace),)
    return (*tags, ("model", figures.name), ("version", figures.version))


def _machine_lines(machine: MachineFigures) -> Iterator[str]:
    gpus = () if machine.gpus is None else machine.gpus.value()
    for name, kind, help_text, of_gpu in _GPU_METRICS:
        told = [((("gpu_uuid", gpu.uuid),), value) for gpu in gpus if (value := of_gpu(gpu)) is not None]
        if told:
            yield from family(name, kind, help_text, told)
    if machine.cpu is not None:
        cpu = machine.cpu.value()
        for name, help_text, of_cpu in _CPU_METRICS:
            yield from family(name, "gauge", help_text, [((), of_cpu(cpu))])
    help_text = "Size of the pool of pinned memory in bytes, as it was asked for"
    total = machine.pinned_memory_pool_bytes
    yield from family("nv_pinned_memory_pool_total_bytes", "gauge", help_text, [((), total)])
    help_text = "Used bytes of the pool of pinned memory: no tensor passes through it"
    yield from family("nv_pinned_memory_pool_used_bytes", "gauge", help_text, [((), 0)])
