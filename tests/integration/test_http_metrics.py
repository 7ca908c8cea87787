"""What the real server counts, as the metrics port and the statistics tell it over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.options import ServerOptions
from cantata.runtime.server import Server

MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            if value.min() < 0:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
            else:
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
        return responses
"""

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "IN" data_type: TYPE_INT32 dims: 2 }
output { name: "OUT" data_type: TYPE_INT32 dims: 2 }
metric_tags { key: "team" value: "blue" }
"""


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[HttpServer]:
    directory = tmp_path / "counted" / "1"
    directory.mkdir(parents=True)
    (directory / "model.py").write_text(MODEL)
    (directory.parent / "config.pbtxt").write_text(CONFIG)
    server = Server(ServerOptions(model_repository=(tmp_path,)))
    server.start()
    started = HttpServer(server, HttpOptions(address="127.0.0.1", port=0, metrics_port=0))
    started.start()
    yield started
    server.close()
    started.close()


def infer(frontend: HttpServer, *rows: list[int]) -> int:
    entry = {"name": "IN", "shape": [len(rows), 2], "datatype": "INT32", "data": rows}
    url = f"http://127.0.0.1:{frontend.port}/v2/models/counted/infer"
    return httpx.post(url, json={"inputs": [entry]}).status_code


def metrics(frontend: HttpServer) -> dict[tuple[str, str], float]:
    """Samples of the model by name and reason."""
    text = httpx.get(f"http://127.0.0.1:{frontend.metrics_port}/metrics").text
    own = {"model": "counted", "version": "1", "_team": "blue"}
    return {
        (sample.name.removesuffix("_total"), sample.labels.get("reason", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if own.items() <= sample.labels.items()
    }


def test_requests_are_counted_once_wherever_they_are_told(frontend: HttpServer) -> None:
    assert metrics(frontend)["nv_inference_request_success", ""] == 0
    assert [infer(frontend, [1, 2]), infer(frontend, [3, 4], [5, 6]), infer(frontend, [-1, 0])] == [
        200,
        200,
        500,
    ]
    assert infer(frontend, *[[1, 2]] * 9) == 400
    found = metrics(frontend)
    counted = {key: value for key, value in found.items() if "duration" not in key[0]}
    assert counted == {
        ("nv_inference_request_success", ""): 2,
        ("nv_inference_request_failure", "REJECTED"): 0,
        ("nv_inference_request_failure", "CANCELED"): 0,
        ("nv_inference_request_failure", "BACKEND"): 1,
        ("nv_inference_request_failure", "OTHER"): 0,
        ("nv_inference_count", ""): counted["nv_inference_count", ""],
        ("nv_inference_exec_count", ""): 3,
        ("nv_inference_pending_request_count", ""): 0,
    }
    assert found["nv_inference_request_duration_us", ""] > 0
    assert found["nv_model_load_duration_secs", ""] > 0
    url = f"http://127.0.0.1:{frontend.port}/v2/models/counted/stats"
    (statistics,) = httpx.get(url).json()["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] == 2
    assert statistics["inference_stats"]["fail"]["count"] == 1
    assert statistics["execution_count"] == 3
