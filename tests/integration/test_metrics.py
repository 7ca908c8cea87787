"""Every metric that docs/metrics.md lists, read from a real metrics port; and what --metrics-config makes of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.observe.metrics_options import LatencyOptions, MetricsOptions
from cantata.runtime.options import ServerOptions
from cantata.runtime.server import Server
from tests.support.model_files import write_model
from tests.unit.observe.test_machine_metrics import FakeNvml, gpu

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
# Name and type of each metric in the document's tables.
DOCUMENTED = dict(re.findall(r"^\| `((?:nv|cantata)_\w+)` \| (\w+) \|", DOCUMENT, re.MULTILINE))

IDENTITY = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(request, "IN").as_numpy())]
            )
            for request in requests
        ]
"""
# Its gauges are those of a language model's cache.
LANGUAGE_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.family = pb_utils.MetricFamily(
            name="nv_trt_llm_kv_cache_block_metrics", description="blocks", kind=pb_utils.MetricFamily.GAUGE
        )
        self.blocks = []
        for kind, value in (("used", 3), ("max", 12), ("tokens_per", 64)):
            metric = self.family.Metric(labels={"kv_cache_block_type": kind, "model": args["model_name"]})
            metric.set(value)
            self.blocks.append(metric)

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(request, "IN").as_numpy())]
            )
            for request in requests
        ]
"""
TENSORS = """
input { name: "IN" data_type: TYPE_INT32 dims: 1 }
output { name: "OUT" data_type: TYPE_INT32 dims: 1 }
metric_tags { key: "team" value: "blue" }
"""
PYTHON = 'backend: "python"' + TENSORS
PIPELINE = (
    'platform: "ensemble"'
    + TENSORS
    + """
ensemble_scheduling {
  step { model_name: "plain" model_version: -1
    input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "middle" } }
  step { model_name: "llm" model_version: -1
    input_map { key: "IN" value: "middle" } output_map { key: "OUT" value: "OUT" } }
}
"""
)
BUCKETS = """
model_metrics { metric_control {
  metric_identifier { family: "nv_inference_first_response_histogram_ms" }
  histogram_options { buckets: [ 0.001, 60000 ] } } }
"""


def write_pipeline(directory: Path) -> Path:
    """An ensemble and its models."""
    write_model(directory, "plain", PYTHON + BUCKETS, code=IDENTITY)
    write_model(directory, "llm", PYTHON, code=LANGUAGE_MODEL)
    write_model(directory, "pipeline", PIPELINE)
    return directory


def write_repository(directory: Path) -> Path:
    """Models of every kind."""
    cached = PYTHON + "response_cache { enable: true }"
    write_model(directory, "cached", cached, code=IDENTITY)
    isolated = PYTHON + 'parameters { key: "EXECUTION_ISOLATION" value { string_value: "process" } }'
    write_model(directory, "isolated", isolated, code=IDENTITY)
    return write_pipeline(directory)


class Frontend:
    """A server with an HTTP port and a metrics port."""

    def __init__(self, options: ServerOptions, metrics: MetricsOptions) -> None:
        self._server = Server(options)
        self._server.start()
        self._http = HttpServer(
            self._server, HttpOptions(address="127.0.0.1", port=0, metrics_port=0, metrics=metrics)
        )
        self._http.start()

    def close(self) -> None:
        self._server.close()
        self._http.close()

    def infer(self, model: str, **parameters: object) -> httpx.Response:
        entry = {"name": "IN", "shape": [1], "datatype": "INT32", "data": [7]}
        body = {"inputs": [entry], "parameters": parameters}
        answer = httpx.post(f"http://127.0.0.1:{self._http.port}/v2/models/{model}/infer", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    def generate(self, model: str, **headers: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self._http.port}/v2/models/{model}/generate"
        return httpx.post(url, json={"IN": 7}, headers=headers)

    def text(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self._http.metrics_port}/metrics").text

    def types(self) -> dict[str, str]:
        """The type of each of the server's own metrics."""
        found = dict(re.findall(r"^# TYPE (\S+) (\w+)$", self.text(), re.MULTILINE))
        return {name: kind for name, kind in found.items() if not name.startswith("nv_trt_llm")}

    def samples(self, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The values of the samples of that name and these labels, by their other labels."""
        return {
            tuple(sorted(sample.labels.items() - labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name.removesuffix("_total") == name.removesuffix("_total")
            and labels.items() <= sample.labels.items()
        }

    def value(self, name: str, **labels: str) -> float:
        (value,) = self.samples(name, **labels).values()
        return value


EVERYTHING = LatencyOptions(histograms=True, summaries=True, quantiles=((0.5, 0.05), (0.9, 0.01)))
OWN = {"model": "plain", "version": "1", "_team": "blue"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """All metrics that there are, those of a GPU among them."""
    options = ServerOptions(
        model_repository=(write_repository(tmp_path_factory.mktemp("models")),),
        latencies=EVERYTHING,
        max_queue_bytes=1 << 30,
        cache_config={"local": {"size": str(1 << 20)}},
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "pynvml", FakeNvml(gpu("GPU-7")))
        frontend = Frontend(options, MetricsOptions(interval_ms=0))
    for model in ("plain", "plain", "cached", "cached", "isolated", "pipeline"):
        frontend.infer(model)
    yield frontend
    frontend.close()


def test_the_port_has_what_the_document_lists(everything: Frontend) -> None:
    assert everything.types() == DOCUMENTED


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_documented_metric_has_samples(everything: Frontend, name: str) -> None:
    suffix = "_count" if DOCUMENTED[name] in ("histogram", "summary") else ""
    assert everything.samples(name + suffix)


def test_summaries_are_of_every_request(everything: Frontend) -> None:
    count = everything.value("nv_inference_request_success", **OWN)
    for part in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        name = f"nv_inference_{part}_summary_us"
        assert everything.value(f"{name}_count", **OWN) == count
        quantiles = everything.samples(name, **OWN)
        assert set(quantiles) == {(("quantile", "0.5"),), (("quantile", "0.9"),)}
        assert everything.value(f"{name}_sum", **OWN) <= count * max(quantiles.values()) * 1.01 + count
    requests = everything.value("nv_inference_request_summary_us_sum", **OWN)
    counter = everything.value("nv_inference_request_duration_us", **OWN)
    assert counter - count <= requests <= counter


def test_a_model_with_a_cache_has_no_summary_of_requests(everything: Frontend) -> None:
    assert not everything.samples("nv_inference_request_summary_us_count", model="cached")
    assert everything.samples("nv_inference_queue_summary_us_count", model="cached")


def test_a_histograms_bounds_are_the_models_own(everything: Frontend) -> None:
    name = "nv_inference_first_response_histogram_ms"
    count = everything.value("nv_inference_request_success", **OWN)
    assert everything.samples(f"{name}_bucket", **OWN) == {
        (("le", "0.001"),): 0,
        (("le", "60000"),): count,
        (("le", "+Inf"),): count,
    }
    seconds = everything.value("nv_inference_request_duration_us", **OWN) / 1e6
    assert everything.value(f"{name}_sum", **OWN) / 1e3 == pytest.approx(seconds, rel=0.01)
    default = everything.samples(f"{name}_bucket", model="llm")
    assert {dict(labels)["le"] for labels in default} == {"100", "500", "2000", "5000", "+Inf"}


def test_the_phases_of_steps_add_up_to_the_time_of_requests(everything: Frontend) -> None:
    labels = {"ensemble": "pipeline", "version": "1", "_team": "blue"}
    steps = {("ensemble", "pipeline"), ("0", "plain"), ("1", "llm")}
    phases = {"queue", "batch_wait", "input", "compute", "output", "blocked"}
    counts = everything.samples("cantata_ensemble_step_count", **labels)
    assert counts == {(("model", model), ("step", step)): 1 for step, model in steps}
    path = everything.samples("cantata_ensemble_path_duration_us", **labels)
    assert {dict(each)["phase"] for each in path} == phases
    assert {(dict(each)["step"], dict(each)["model"]) for each in path} == steps
    whole = everything.value("nv_inference_request_duration_us", model="pipeline")
    # Each series is in whole microseconds.
    assert whole - len(path) <= sum(path.values()) <= whole
    # A chain's steps are all that is waited for.
    assert path == everything.samples("cantata_ensemble_step_duration_us", **labels)


@pytest.mark.parametrize(("form", "start"), [("text", "TEXT named_metrics."), ("json", "JSON {")])
def test_a_generate_request_may_ask_for_a_load_report(everything: Frontend, form: str, start: str) -> None:
    answer = everything.generate("llm", **{"endpoint-load-metrics-format": form})
    assert answer.json()["OUT"] == 7
    report = answer.headers["endpoint-load-metrics"]
    assert report.startswith(start)
    assert "kv_cache_utilization" in report
    assert "0.25" in report
    assert "768" in report
    assert "endpoint-load-metrics" not in everything.generate("llm").headers


def served_types(repository: Path, latencies: LatencyOptions, metrics: MetricsOptions) -> dict[str, str]:
    options = ServerOptions(model_repository=(write_pipeline(repository),), latencies=latencies)
    frontend = Frontend(options, metrics)
    try:
        frontend.infer("pipeline")
        return frontend.types()
    finally:
        frontend.close()


def test_without_counters_of_latencies_everything_else_is_counted(tmp_path: Path) -> None:
    metrics = MetricsOptions(has_latency_counters=False, allow_gpu=False)
    found = served_types(tmp_path, LatencyOptions(counters=False), metrics)
    assert {name for name in found if "duration" in name and "cache" not in name} == {
        "nv_model_load_duration_secs"
    }
    assert {"nv_inference_request_success", "cantata_ensemble_step_count", "nv_inference_count"} <= set(found)
    assert {"summary", "histogram"}.isdisjoint(found.values())


def test_the_machines_metrics_may_be_left_out(tmp_path: Path) -> None:
    metrics = MetricsOptions(allow_cpu=False, allow_gpu=False)
    found = served_types(tmp_path, LatencyOptions(), metrics)
    assert {name for name in found if name.startswith(("nv_cpu", "nv_gpu", "nv_energy"))} == set()
    assert "nv_inference_request_duration_us" in found
