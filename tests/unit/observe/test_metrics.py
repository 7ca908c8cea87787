"""Metrics as Prometheus reads them."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from cantata.runtime.observe.machine_metrics import CpuFigures, MachineFigures, Measured
from cantata.runtime.observe.metrics import MetricsText
from cantata.runtime.observe.snapshots import (
    InferStatistics,
    ModelFigures,
    ModelStatistics,
    ProcessFigures,
    StatisticDuration,
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def figures(name: str, version: str = "1", **changes: object) -> ModelFigures:
    durations = [StatisticDuration(10 + index, 1_500_999 + index * 1_000_000) for index in range(8)]
    statistics = ModelStatistics(name, version, 5, 60, 20, InferStatistics(*durations), (), {})
    values: dict[str, object] = {
        "metric_tags": {},
        "statistics": statistics,
        "failures": {"BACKEND": 2},
        "pending": 3,
        "load_seconds": 0.25,
        **changes,
    }
    return ModelFigures(name=name, version=version, **values)  # type: ignore[arg-type]


def scraped(text: bytes) -> Samples:
    """The samples as Prometheus' own parser reads them; the suffix it gives to counters is taken off again."""
    return {
        (sample.name.removesuffix("_total"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def types_in(text: bytes) -> dict[str, str]:
    return {
        line.split()[2]: line.split()[3] for line in text.decode().splitlines() if line.startswith("# TYPE")
    }


def test_every_metric_of_a_model_has_tritons_name() -> None:
    own = (("model", "m"), ("version", "1"))
    failure = "nv_inference_request_failure"
    assert scraped(MetricsText(lambda: [figures("m")], None).render()) == {
        ("nv_inference_request_success", own): 10,
        (failure, (("model", "m"), ("reason", "REJECTED"), ("version", "1"))): 0,
        (failure, (("model", "m"), ("reason", "CANCELED"), ("version", "1"))): 0,
        (failure, (("model", "m"), ("reason", "BACKEND"), ("version", "1"))): 2,
        (failure, (("model", "m"), ("reason", "OTHER"), ("version", "1"))): 0,
        ("nv_inference_count", own): 60,
        ("nv_inference_exec_count", own): 20,
        ("nv_inference_request_duration_us", own): 1500,
        ("nv_inference_queue_duration_us", own): 3500,
        ("nv_inference_compute_input_duration_us", own): 4500,
        ("nv_inference_compute_infer_duration_us", own): 5500,
        ("nv_inference_compute_output_duration_us", own): 6500,
        ("nv_inference_pending_request_count", own): 3,
        ("nv_model_load_duration_secs", own): 0.25,
    }


def test_counters_and_gauges_say_so_without_a_suffix() -> None:
    text = MetricsText(lambda: [figures("m")], None).render()
    types = types_in(text)
    gauges = {name for name, kind in types.items() if kind == "gauge"}
    assert gauges == {"nv_inference_pending_request_count", "nv_model_load_duration_secs"}
    assert set(types.values()) == {"gauge", "counter"}
    assert not any(name.endswith("_total") for name in types)
    samples = [line for line in text.decode().splitlines() if not line.startswith("#")]
    assert {line.split("{")[0] for line in samples} == set(types)


def test_samples_of_one_metric_stand_together() -> None:
    text = MetricsText(lambda: [figures("a"), figures("b")], None).render().decode()
    names = [line.split("{")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len({*names}) == sum(
        1 for index, name in enumerate(names) if index == 0 or names[index - 1] != name
    )


def test_tags_become_labels_with_an_underscore_and_any_text_is_a_value() -> None:
    value = 'a "quoted"\\ line\nand another'
    text = MetricsText(lambda: [figures("m", metric_tags={"team": value})], None).render()
    assert ("nv_inference_count", (("_team", value), ("model", "m"), ("version", "1"))) in scraped(text)


def test_a_model_that_is_gone_has_no_series() -> None:
    models = [figures("m")]
    metrics = MetricsText(lambda: models, None)
    assert scraped(metrics.render())
    models.clear()
    assert scraped(metrics.render()) == {}


def proc_with(directory: Path, busy: int, idle: int) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    (directory / "meminfo").write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 40 kB\n")
    return directory


def test_the_machines_figures_are_read_from_proc(tmp_path: Path) -> None:
    proc = proc_with(tmp_path / "proc", busy=100, idle=100)
    cpu = CpuFigures.available(proc)
    assert cpu is not None
    metrics = MetricsText(list, MachineFigures(Measured(cpu.read, 0), None, 512))
    proc_with(proc, busy=130, idle=170)
    assert scraped(metrics.render()) == {
        ("nv_cpu_utilization", ()): 0.3,
        ("nv_cpu_memory_total_bytes", ()): 100 * 1024,
        ("nv_cpu_memory_used_bytes", ()): 60 * 1024,
        ("nv_pinned_memory_pool_total_bytes", ()): 512,
        ("nv_pinned_memory_pool_used_bytes", ()): 0,
    }
    assert scraped(metrics.render())[("nv_cpu_utilization", ())] == 0


def test_a_system_without_proc_has_no_machine_figures(tmp_path: Path) -> None:
    assert CpuFigures.available(tmp_path) is None


def test_models_in_processes_show_how_those_fared() -> None:
    own = figures("own", processes=ProcessFigures(deaths=3, restarts=2, timeouts=1))
    text = MetricsText(lambda: [figures("shared"), own], None).render().decode()
    labels = '{model="own",version="1"}'
    assert [line for line in text.splitlines() if line.startswith("cantata_python")] == [
        f"cantata_python_instance_deaths_total{labels} 3",
        f"cantata_python_instance_restarts_total{labels} 2",
        f"cantata_python_instance_timeouts_total{labels} 1",
    ]
