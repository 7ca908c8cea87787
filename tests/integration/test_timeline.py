"""A request's own timeline, over both protocols and embedded: every entry's phases add up to its time."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from cantata.runtime.embedded import EmbeddedServer
from tests.support.model_files import write_model
from tests.support.wire_servers import Ports, wire_server

ASK = {"cantata_timeline": True}
PHASES = ["receive", "queue", "batch_wait", "input", "compute", "output", "blocked"]
# A lone request waits for so long for others to share its batch.
DELAY_US = 20_000

TENSORS = """
input { name: "IN" data_type: TYPE_INT32 dims: 1 }
output { name: "OUT" data_type: TYPE_INT32 dims: 1 }
"""
ECHO = """
def execute(self, requests):
    responses = []
    for request in requests:
        value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        error = pb_utils.TritonError("negative") if value.min() < 0 else None
        parameters = json.loads(request.parameters())
        output = pb_utils.Tensor("OUT", value)
        response = (
            pb_utils.InferenceResponse(error=error)
            if error is not None
            else pb_utils.InferenceResponse([output], parameters={"seen": json.dumps(parameters)})
        )
        responses.append(response)
    return responses
"""
CALL = """
def execute(self, requests):
    return [self.answer(request) for request in requests]

def answer(self, request):
    tensor = pb_utils.get_input_tensor_by_name(request, "IN")
    for name in ("echo", "chain"):
        call = pb_utils.InferenceRequest(model_name=name, requested_output_names=["OUT"], inputs=[tensor])
        answer = call.exec()
        if answer.has_error():
            raise pb_utils.TritonModelException(answer.error().message())
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("OUT", pb_utils.get_output_tensor_by_name(answer, "OUT").as_numpy())]
    )
"""
AWAIT = """
async def execute(self, requests):
    return [await self.answer(request) for request in requests]

async def answer(self, request):
    tensor = pb_utils.get_input_tensor_by_name(request, "IN")
    calls = [
        pb_utils.InferenceRequest(model_name="echo", requested_output_names=["OUT"], inputs=[tensor])
        for _ in range(2)
    ]
    first, _ = await asyncio.gather(*(call.async_exec() for call in calls))
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("OUT", pb_utils.get_output_tensor_by_name(first, "OUT").as_numpy())]
    )
"""
REPEAT = """
def execute(self, requests):
    for request in requests:
        tensor = pb_utils.get_input_tensor_by_name(request, "IN")
        sender = request.get_response_sender()
        for _ in range(int(tensor.as_numpy()[0])):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy())]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
IN_A_PROCESS = 'parameters { key: "EXECUTION_ISOLATION" value { string_value: "process" } }'


def python(extra: str = "", max_batch_size: int = 0) -> str:
    return f'backend: "python"\nmax_batch_size: {max_batch_size}\n{TENSORS}\n{extra}'


def ensemble(*steps: tuple[str, str, str]) -> str:
    """Steps as the model, the tensor that it reads and the one that it writes."""
    texts = [
        f'step {{ model_name: "{model}" model_version: -1\n'
        f'  input_map {{ key: "IN" value: "{read}" }} output_map {{ key: "OUT" value: "{written}" }} }}'
        for model, read, written in steps
    ]
    return f'platform: "ensemble"\n{TENSORS}\nensemble_scheduling {{\n' + "\n".join(texts) + "\n}"


def write_repository(repository: Path) -> Path:
    write_model(repository, "echo", python(), ECHO)
    delay = f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}"
    write_model(repository, "waiting", python(delay, 4), ECHO)
    write_model(repository, "caller", python(), CALL)
    write_model(repository, "isolated", python(IN_A_PROCESS), CALL)
    write_model(repository, "async_caller", python(), AWAIT)
    write_model(repository, "repeat", python("model_transaction_policy { decoupled: true }"), REPEAT)
    write_model(repository, "chain", ensemble(("echo", "IN", "middle"), ("echo", "middle", "OUT")))
    write_model(
        repository, "pipeline", ensemble(("echo", "IN", "a"), ("chain", "a", "b"), ("caller", "b", "OUT"))
    )
    write_model(repository, "stream", ensemble(("repeat", "IN", "a"), ("echo", "a", "OUT")))
    return repository


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    with wire_server(write_repository(tmp_path_factory.mktemp("models"))) as served:
        yield served


def over_http(ports: Ports, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    entry = {"name": "IN", "shape": [1], "datatype": "INT32", "data": [1]}
    url = f"http://127.0.0.1:{ports.http}/v2/models/{model}/infer"
    answer = httpx.post(url, json={"inputs": [entry], "parameters": parameters}).json()
    return dict(answer.get("parameters", {}))


def over_grpc(ports: Ports, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        answer = client.infer(model, [tensor(1)], parameters=parameters).get_response()
    return {name: each.string_param for name, each in answer.parameters.items()}


def generated(ports: Ports, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    url = f"http://127.0.0.1:{ports.http}/v2/models/{model}/generate"
    return dict(httpx.post(url, json={"IN": 1, **parameters}).json())


def embedded(ports: Ports, model: str, parameters: dict[str, Any]) -> dict[str, Any]:
    made = EmbeddedServer([])
    made.core = ports.server
    return dict(made.infer(model, {"IN": np.array([1], np.int32)}, parameters=parameters).parameters)


Way = Callable[[Ports, str, dict[str, Any]], dict[str, Any]]
WAYS = pytest.mark.parametrize("ask", [over_http, over_grpc, generated, embedded])


def tensor(value: int) -> triton_grpc.InferInput:
    made = triton_grpc.InferInput("IN", [1], "INT32")
    made.set_data_from_numpy(np.array([value], np.int32))
    return made


def checked(text: str) -> dict[str, Any]:
    """A timeline whose every entry adds up, and lies within the one that it is in."""
    timeline: dict[str, Any] = json.loads(text)
    assert timeline["start_us"] == 0
    check_entry(timeline)
    return timeline


def check_entry(entry: dict[str, Any]) -> None:
    assert list(entry["phases_us"]) == PHASES
    assert all(time >= 0 for time in entry["phases_us"].values())
    assert sum(entry["phases_us"].values()) == pytest.approx(entry["total_us"], abs=0.01)
    for inner in (*entry.get("steps", ()), *entry.get("calls", ())):
        assert entry["start_us"] <= inner["start_us"]
        assert inner["start_us"] + inner["total_us"] <= entry["start_us"] + entry["total_us"]
        check_entry(inner)


def outline(entry: dict[str, Any]) -> Any:
    """The models of an entry and of those within it."""
    inner = [outline(each) for each in (*entry.get("steps", ()), *entry.get("calls", ()))]
    return (entry["model"], *inner) if inner else entry["model"]


CHAIN = ("chain", "echo", "echo")


@WAYS
def test_a_pipelines_timeline_has_its_steps_and_their_calls(ports: Ports, ask: Way) -> None:
    timeline = checked(ask(ports, "pipeline", ASK)["cantata_timeline"])
    assert outline(timeline) == ("pipeline", "echo", CHAIN, ("caller", "echo", CHAIN))
    assert [step["step"] for step in timeline["steps"]] == [0, 1, 2]
    assert timeline["version"] == "1"
    # A chain's time is that of its steps and its own.
    steps = sum(step["total_us"] for step in timeline["steps"])
    assert steps <= timeline["total_us"]
    computed = sum(step["phases_us"]["compute"] for step in timeline["steps"])
    assert timeline["phases_us"]["compute"] == pytest.approx(computed, abs=0.01)


@WAYS
def test_nobody_gets_a_timeline_without_asking(ports: Ports, ask: Way) -> None:
    assert "cantata_timeline" not in ask(ports, "pipeline", {"cantata_timeline": False, "other": 1})


@pytest.mark.parametrize(
    ("model", "calls"),
    [("caller", ("echo", CHAIN)), ("isolated", ("echo", CHAIN)), ("async_caller", ("echo", "echo"))],
)
def test_calls_are_told_wherever_the_model_runs(ports: Ports, model: str, calls: tuple[Any, ...]) -> None:
    timeline = checked(over_grpc(ports, model, ASK)["cantata_timeline"])
    assert outline(timeline) == (model, *calls)
    spent = sum(call["total_us"] for call in timeline["calls"])
    if model != "async_caller":
        assert spent <= timeline["phases_us"]["compute"]


def test_waiting_for_a_batch_is_told_apart_from_waiting_for_an_instance(ports: Ports) -> None:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        made = triton_grpc.InferInput("IN", [1, 1], "INT32")
        made.set_data_from_numpy(np.ones((1, 1), np.int32))
        answer = client.infer("waiting", [made], parameters=ASK).get_response()
    timeline = checked(answer.parameters["cantata_timeline"].string_param)
    assert timeline["batch_size"] == 1
    assert timeline["phases_us"]["batch_wait"] > 0.9 * DELAY_US
    assert timeline["phases_us"]["batch_wait"] <= timeline["total_us"]


def test_the_model_does_not_see_that_a_timeline_is_asked_for(ports: Ports) -> None:
    told = over_grpc(ports, "echo", {**ASK, "other": "x"})
    assert json.loads(told["seen"]) == {"other": "x"}
    checked(told["cantata_timeline"])


@pytest.mark.parametrize("model", ["repeat", "stream"])
def test_every_response_of_a_stream_has_the_timeline_so_far(ports: Ports, model: str) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(model, [tensor(3)], parameters=ASK)
        timelines = []
        for _ in range(3):
            result, error = answers.get(timeout=30)
            assert error is None
            parameters = result.get_response().parameters
            timelines.append(json.loads(parameters["cantata_timeline"].string_param))
        client.stop_stream()
    for timeline in timelines:
        assert timeline["model"] == model
        assert sum(timeline["phases_us"].values()) == pytest.approx(timeline["total_us"], abs=0.01)
    totals = [timeline["total_us"] for timeline in timelines]
    assert totals == sorted(totals)


def test_an_error_has_no_timeline(ports: Ports) -> None:
    entry = {"name": "IN", "shape": [1], "datatype": "INT32", "data": [-1]}
    url = f"http://127.0.0.1:{ports.http}/v2/models/chain/infer"
    answer = httpx.post(url, json={"inputs": [entry], "parameters": ASK})
    assert (answer.status_code, list(answer.json())) == (500, ["error"])
