"""The documented example models of the Python backend, served over both protocols to Triton's own clients."""

from __future__ import annotations

import io
import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.support.python_examples import write_examples
from tests.support.wire_servers import wire_server

Array = npt.NDArray[Any]
ONES, TWOS = np.ones(4, np.float32), np.full(4, 2, np.float32)


class Clients(NamedTuple):
    """The stock clients of one server; `metrics` is where its metrics are."""

    http: triton_http.InferenceServerClient
    grpc: triton_grpc.InferenceServerClient
    metrics: str


@pytest.fixture(scope="module", params=["thread", "process"])
def clients(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    repository = tmp_path_factory.mktemp("models")
    write_examples(repository)
    isolation = {"python": {"execution-isolation": request.param}}
    with wire_server(repository, backend_config=isolation) as ports:
        http = triton_http.InferenceServerClient(f"127.0.0.1:{ports.http}")
        grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}")
        yield Clients(http, grpc, f"http://127.0.0.1:{ports.metrics}/metrics")
        http.close()
        grpc.close()


def tensors_of(api: Any, inputs: dict[str, Array]) -> list[Any]:
    tensors = []
    for name, array in inputs.items():
        tensor = api.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def ask(client: Any, api: Any, model: str, inputs: dict[str, Array], **fields: Any) -> Any:
    return client.infer(model, tensors_of(api, inputs), **fields)


def stream(
    client: triton_grpc.InferenceServerClient, model: str, inputs: dict[str, Array], **fields: Any
) -> list[Any]:
    """All responses of one request that have outputs."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        tensors = tensors_of(triton_grpc, inputs)
        client.async_stream_infer(model, tensors, enable_empty_final_response=True, **fields)
        found = []
        while True:
            result, error = answers.get(timeout=20)
            if error is not None:
                raise error
            response = result.get_response()
            if response.outputs:
                found.append(result)
            if response.parameters["triton_final_response"].bool_param:
                return found
    finally:
        client.stop_stream()


def words(*texts: str) -> Array:
    return np.array([text.encode() for text in texts], np.object_)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", ["add_sub", "nobatch_auto_complete", "bls_async"])
def test_the_sum_and_the_difference_of_two_inputs(clients: Clients, model: str, protocol: str) -> None:
    api = {"http": triton_http, "grpc": triton_grpc}[protocol]
    result = ask(getattr(clients, protocol), api, model, {"INPUT0": ONES, "INPUT1": TWOS})
    assert result.as_numpy("OUTPUT0").tolist() == [3] * 4
    assert result.as_numpy("OUTPUT1").tolist() == [-1] * 4


def test_a_model_says_its_own_configuration(clients: Clients) -> None:
    batching = clients.http.get_model_config("batch_auto_complete")
    plain = clients.http.get_model_config("nobatch_auto_complete")
    assert [batching["max_batch_size"], plain["max_batch_size"]] == [4, 0]
    assert ["dynamic_batching" in batching, "dynamic_batching" in plain] == [True, False]
    for config in (batching, plain):
        found = [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in config["input"]]
        assert found == [("INPUT0", "TYPE_FP32", [4]), ("INPUT1", "TYPE_FP32", [4])]
    result = ask(
        clients.http, triton_http, "batch_auto_complete", {"INPUT0": ONES[None], "INPUT1": TWOS[None]}
    )
    assert result.as_numpy("OUTPUT0").tolist() == [[3] * 4]


def test_a_model_calls_the_one_that_is_named(clients: Clients) -> None:
    inputs = {"INPUT0": ONES, "INPUT1": TWOS, "MODEL_NAME": words("add_sub")}
    assert ask(clients.http, triton_http, "bls_sync", inputs).as_numpy("OUTPUT0").tolist() == [3] * 4
    with pytest.raises(InferenceServerException, match="Model 'nobody' is not ready"):
        ask(clients.http, triton_http, "bls_sync", inputs | {"MODEL_NAME": words("nobody")})


@pytest.mark.parametrize(("model", "total"), [("bls_decoupled_sync", 16), ("bls_decoupled_async", 32)])
def test_a_model_adds_up_all_that_a_decoupled_one_answers(clients: Clients, model: str, total: int) -> None:
    for count, expected in ((4, total), (0, 0), (1, total // 16)):
        result = ask(clients.grpc, triton_grpc, model, {"IN": np.array([count], np.int32)})
        assert result.as_numpy("SUM").tolist() == [expected]


def test_a_model_counts_on_the_metrics_port(clients: Clients) -> None:
    def samples() -> dict[tuple[str, str], float]:
        return {
            (sample.name.removesuffix("_total"), sample.labels.get("le", "")): sample.value
            for family in text_string_to_metric_families(httpx.get(clients.metrics).text)
            for sample in family.samples
            if sample.name.startswith("request") and sample.labels["model"] == "custom_metrics"
        }

    before = samples()
    for _ in range(2):
        result = ask(clients.http, triton_http, "custom_metrics", {"INPUT0": ONES})
        assert result.as_numpy("OUTPUT").tolist() == [b"20.5"]
    assert {key: value - before[key] for key, value in samples().items()} == {
        ("requests_process_latency_ns", ""): 41,
        ("request_elements_bucket", "2"): 0,
        ("request_elements_bucket", "4.5"): 2,
        ("request_elements_bucket", "+Inf"): 2,
        ("request_elements_count", ""): 2,
        ("request_elements_sum", ""): 8,
    }


def test_each_element_is_repeated_from_a_thread_in_order(clients: Clients) -> None:
    values = np.arange(40, 60, dtype=np.int32)
    inputs = {"IN": values, "DELAY": np.zeros(20, np.uint32), "WAIT": np.array([1], np.uint32)}
    found = stream(clients.grpc, "repeat_int32", inputs)
    assert [int(result.as_numpy("OUT")[0]) for result in found] == values.tolist()
    assert [int(result.as_numpy("IDX")[0]) for result in found] == list(range(20))


@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_number_answers_that_many_times(clients: Clients, count: int) -> None:
    found = stream(clients.grpc, "square_int32", {"IN": np.array([count], np.int32)})
    assert [int(result.as_numpy("OUT")[0]) for result in found] == [count] * count


def test_one_answer_cannot_be_asked_of_a_decoupled_model(clients: Clients) -> None:
    for client, api in ((clients.http, triton_http), (clients.grpc, triton_grpc)):
        with pytest.raises(InferenceServerException, match="decoupled transaction policy"):
            ask(client, api, "square_int32", {"IN": np.array([1], np.int32)})


def test_an_instance_knows_where_it_runs(clients: Clients) -> None:
    result = ask(clients.http, triton_http, "instance_kind", {"INPUT0": ONES})
    assert result.as_numpy("OUTPUT").tolist() == [b"cpu:0"]


def test_parameters_reach_the_model_and_come_back_from_it(clients: Clients) -> None:
    wanted = {"text": "a", "number": 7, "flag": True}
    for client, api in ((clients.http, triton_http), (clients.grpc, triton_grpc)):
        inputs = {"RESPONSE_PARAMETERS": words(json.dumps(wanted))}
        result = ask(client, api, "parameters", inputs, parameters={"mine": "yes", "count": 3})
        assert json.loads(result.as_numpy("REQUEST_PARAMETERS")[0]) == {"mine": "yes", "count": 3}
    assert ask(clients.http, triton_http, "parameters", inputs).get_response()["parameters"] == wanted


def test_a_request_that_is_rescheduled_runs_until_nothing_is_left(clients: Clients) -> None:
    inputs = {"IN": np.array([[5]], np.int32)}
    found = stream(
        clients.grpc, "rescheduling", inputs, sequence_id=7, sequence_start=True, sequence_end=True
    )
    assert [int(result.as_numpy("OUT")[0, 0]) for result in found] == [4, 3, 2, 1, 0]


def test_an_encoded_image_becomes_a_tensor(clients: Clients, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    encoded = io.BytesIO()
    image.new("RGB", (30, 20), (255, 0, 0)).save(encoded, "PNG")
    inputs = {"INPUT_0": np.frombuffer(encoded.getvalue(), np.uint8)}
    tensor = ask(clients.http, triton_http, "preprocessing", inputs).as_numpy("OUTPUT_0")
    assert tensor.shape == (1, 3, 224, 224)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    np.testing.assert_allclose(tensor[0, :, 100, 100], expected, rtol=1e-5)
