"""Prometheus metrics (reference, section 9): names, types and labels, as text when they are scraped.

Owns no counting: everything is read from the server's snapshots and from /proc at the moment of the scrape, so a
model's series are gone with it. The text is written here, since prometheus_client's writer would add `_total` to the
names of counters, which Triton's do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cantata.runtime.observe.custom_metrics import escaped_label
from cantata.runtime.observe.snapshots import ByteFigures, ModelFigures, ModelStatistics, ProcessFigures
from cantata.runtime.observe.statistics import FAILURE_REASONS

METRICS_CONTENT_TYPE: Final = "text/plain; charset=utf-8"

Labels = tuple[tuple[str, str], ...]
Samples = Iterable[tuple[Labels, int | float]]


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
    ),
    _ModelMetric(
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative time that requests waited in the queue in microseconds (with cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.queue.ns),
    ),
    _ModelMetric(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative time of preparing inputs in microseconds (without cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.compute_input.ns),
    ),
    _ModelMetric(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative time of computing in microseconds (without cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.compute_infer.ns),
    ),
    _ModelMetric(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative time of handling outputs in microseconds (without cached requests)",
        _microseconds(lambda statistics: statistics.inference_stats.compute_output.ns),
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


class MetricsText:
    """Renders the metrics of one server.

    `model_figures` tells of the models, `cpu` of the machine, `custom_lines` what models tell by themselves.
    """

    def __init__(
        self,
        model_figures: Callable[[], Sequence[ModelFigures]],
        cpu: CpuFigures | None,
        custom_lines: Callable[[], Sequence[str]] = tuple,
        byte_budget: ByteBudgetFigures | None = None,
    ) -> None:
        self._model_figures = model_figures
        self._cpu = cpu
        self._custom_lines = custom_lines
        self._byte_budget = byte_budget

    def render(self) -> bytes:
        """All metrics now, in Prometheus' text format."""
        lines: list[str] = []
        labelled = [(_labels_of(figures), figures) for figures in self._model_figures()]
        for metric in _MODEL_METRICS:
            samples = [(labels, metric.value(figures)) for labels, figures in labelled]
            lines += _family(metric.name, metric.kind, metric.help, samples)
        lines += _family(
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
                lines += _family(name, "counter", help_text, counts)
        lines += self._byte_lines(labelled)
        if self._cpu is not None:
            lines += self._cpu_lines(self._cpu)
        lines += self._custom_lines()
        return ("\n".join(lines) + "\n").encode()

    def _byte_lines(self, labelled: Sequence[tuple[Labels, ModelFigures]]) -> Iterator[str]:
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
        yield from _family(
            "cantata_queue_bytes", "gauge", help_text, ((labels, of.held) for labels, _, of in budgets)
        )
        help_text = "Number of bytes of requests that may wait or run"
        yield from _family(
            "cantata_queue_limit_bytes", "gauge", help_text, ((labels, of.limit) for labels, _, of in budgets)
        )
        help_text = "Number of requests that were refused because there was no room for their bytes"
        shed = (((*labels, ("reason", reason)), of.shed) for labels, reason, of in budgets)
        yield from _family("cantata_shed_requests_total", "counter", help_text, shed)

    def _cpu_lines(self, cpu: CpuFigures) -> Iterator[str]:
        used, total = cpu.memory_bytes()
        for name, help_text, value in (
            ("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", cpu.utilization()),
            ("nv_cpu_memory_total_bytes", "Total memory in bytes", total),
            ("nv_cpu_memory_used_bytes", "Used memory in bytes", used),
        ):
            yield from _family(name, "gauge", help_text, [((), value)])


def _labels_of(figures: ModelFigures) -> Labels:
    tags = tuple((f"_{name}", value) for name, value in figures.metric_tags.items())
    return (*tags, ("model", figures.name), ("version", figures.version))


def _family(name: str, kind: str, help_text: str, samples: Samples) -> Iterator[str]:
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        pairs = ",".join(f'{key}="{escaped_label(text)}"' for key, text in sorted(labels))
        yield f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}"


class CpuFigures:
    """How busy the machine's processors and memory are, from Linux's /proc."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._stat = proc / "stat"
        self._meminfo = proc / "meminfo"
        self._busy, self._total = self._processor_ticks()

    @staticmethod
    def available(proc: Path = Path("/proc")) -> CpuFigures | None:
        """The figures, or None on a system that does not have them."""
        return CpuFigures(proc) if (proc / "stat").is_file() and (proc / "meminfo").is_file() else None

    def utilization(self) -> float:
        """The busy part of the time since this was last asked for, 0 to 1."""
        busy, total = self._processor_ticks()
        spent, passed = busy - self._busy, total - self._total
        self._busy, self._total = busy, total
        return min(1.0, max(0.0, spent / passed)) if passed > 0 else 0.0

    def memory_bytes(self) -> tuple[int, int]:
        """Memory in use, and all there is."""
        sizes = {
            name: int(value.split()[0]) * 1024
            for name, _, value in (line.partition(":") for line in self._meminfo.read_text().splitlines())
        }
        return sizes["MemTotal"] - sizes["MemAvailable"], sizes["MemTotal"]

    def _processor_ticks(self) -> tuple[int, int]:
        """Ticks spent working, and all ticks, of all processors together."""
        first_line = self._stat.read_text().split("\n", 1)[0]
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted within user.
        ticks = [int(field) for field in first_line.split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
