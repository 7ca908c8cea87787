"""Unary calls over a real connection: the stock clients, and messages that these would not send."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from cantata.grammars import messages
from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor
from tests.support.fake_server import FakeModel, FakeServer, identity_model, model_config, respond_with
from tests.support.grpc_servers import FOUR, INFER_SERVICE, four, grpc_server, infer_input, stock_client

NOTHING: dict[str, tuple[DataType, tuple[int, ...]]] = {}


def failing(request: InferenceRequest) -> Iterator[InferenceResponse]:
    codes = {code.name: code for code in StatusCode}
    raise InferenceError(codes[str(request.parameters and request.parameters["code"])], "it failed")
    yield


def echoing_parameters(request: InferenceRequest) -> Iterator[InferenceResponse]:
    yield respond_with(request, {}, request.parameters)


def several(count: int) -> Any:
    def respond(request: InferenceRequest) -> Iterator[InferenceResponse]:
        for index in range(count):
            request.respond(respond_with(request, {}), final=index == count - 1)
        if not count:
            request.respond(None, final=True)
        yield from ()

    return respond


class HeldModel:
    """A model that runs on a worker until it is released, or its request is cancelled."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.release = threading.Event()
        self.cancelled = threading.Event()

    def compute(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        request.cancellation.add_listener(self, self._on_cancelled)
        self.has_begun.set()
        self.release.wait(10)
        yield respond_with(request, {"OUT": request.inputs["IN"]})

    def _on_cancelled(self) -> None:
        self.cancelled.set()
        self.release.set()


@pytest.fixture
def held() -> HeldModel:
    return HeldModel()


@pytest.fixture
def server(held: HeldModel) -> FakeServer:
    fp32 = (DataType.FP32, (4,))
    return FakeServer(
        identity_model("identity"),
        identity_model("identity", is_quick=False),
        identity_model("batched", max_batch_size=8),
        identity_model("on_a_worker", is_quick=False),
        *(identity_model(f"any_{datatype.name}", datatype, (-1, -1)) for datatype in DataType),
        identity_model("vector", DataType.FP32, (-1,)),
        FakeModel(model_config("failing", NOTHING, NOTHING), failing),
        FakeModel(model_config("parameters", NOTHING, NOTHING), echoing_parameters),
        FakeModel(model_config("no_response", NOTHING, NOTHING), several(0)),
        FakeModel(model_config("two_responses", NOTHING, NOTHING), several(2)),
        FakeModel(model_config("decoupled", {"IN": fp32}, {"OUT": fp32}, decoupled=True), several(2)),
        FakeModel(model_config("held", {"IN": fp32}, {"OUT": fp32}), held.compute, is_quick=False),
    )


@pytest.fixture
def client(server: FakeServer) -> Iterator[triton.InferenceServerClient]:
    with grpc_server(server) as front_end, stock_client(front_end) as client:
        yield client


@pytest.fixture
def channel(server: FakeServer) -> Iterator[grpc.Channel]:
    with grpc_server(server) as front_end, grpc.insecure_channel(f"127.0.0.1:{front_end.port}") as channel:
        yield channel


def call(channel: grpc.Channel, method: str, message: bytes) -> bytes:
    answer: bytes = channel.unary_unary(INFER_SERVICE + method)(message, timeout=10)
    return answer


def refusal(channel: grpc.Channel, method: str, message: bytes) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, method, message)
    return raised.value.code(), raised.value.details()


# --- what is known about the server and its models


def test_health_is_told(client: triton.InferenceServerClient, server: FakeServer) -> None:
    server.unavailable_versions.add(("batched", 1))
    assert (
        client.is_server_live(),
        client.is_server_ready(),
        client.is_model_ready("identity"),
        client.is_model_ready("batched", "1"),
    ) == (True, True, True, False)


def test_a_server_that_exits_answers_health_checks_with_an_error(
    client: triton.InferenceServerClient, server: FakeServer
) -> None:
    server.is_exiting = True
    for check in (client.is_server_live, client.is_server_ready):
        with pytest.raises(InferenceServerException, match="Server exiting"):
            check()


def test_server_metadata_is_told(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata(as_json=True)
    assert metadata == {
        "name": "triton",
        "version": "0.1.0",
        "extensions": ["classification", "sequence"],
    }


def test_model_metadata_has_the_batch_dimension(client: triton.InferenceServerClient) -> None:
    assert client.get_model_metadata("batched", as_json=True) == {
        "name": "batched",
        "versions": ["1"],
        "platform": "python",
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": ["-1", "4"]}],
        "outputs": [{"name": "OUT", "datatype": "FP32", "shape": ["-1", "4"]}],
    }


def test_model_configuration_is_told(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("batched").config
    assert (config.name, config.max_batch_size, config.input[0].name) == ("batched", 8, "IN")


def test_statistics_are_those_of_the_model_asked_for(client: triton.InferenceServerClient) -> None:
    statistics = client.get_inference_statistics("batched").model_stats
    assert [(figures.name, figures.version) for figures in statistics] == [("batched", "1")]


def test_the_repository_index_has_states_and_reasons(client: triton.InferenceServerClient) -> None:
    models = {entry.name: entry for entry in client.get_model_repository_index().models}
    broken = models["broken"]
    assert (broken.version, broken.state, broken.reason) == ("1", "UNAVAILABLE", "Invalid argument: no")
    ready = messages.RepositoryIndexRequest(ready=True)
    assert ready.SerializeToString()


def test_the_index_of_a_named_repository_is_refused(channel: grpc.Channel) -> None:
    request = messages.RepositoryIndexRequest(repository_name="r").SerializeToString()
    assert refusal(channel, "RepositoryIndex", request) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "'repository_name' specification is not supported",
    )


@pytest.mark.parametrize(
    ("name", "value", "code", "text"),
    [
        ("x", {"bool_param": True}, "INVALID_ARGUMENT", "unrecognized load parameter 'x'."),
        (
            "config",
            {"bool_param": True},
            "INVALID_ARGUMENT",
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            "file:1/m",
            {"string_param": "x"},
            "INVALID_ARGUMENT",
            "invalid value type for load parameter 'file:1/m', expected bytes_param.",
        ),
    ],
    ids=["unknown", "config type", "file type"],
)
def test_parameters_of_a_load_are_refused(
    channel: grpc.Channel, name: str, value: dict[str, Any], code: str, text: str
) -> None:
    request = messages.RepositoryModelLoadRequest(model_name="m")
    request.parameters[name].MergeFrom(messages.ModelRepositoryParameter(**value))
    assert refusal(channel, "RepositoryModelLoad", request.SerializeToString()) == (
        getattr(grpc.StatusCode, code),
        text,
    )


def test_models_are_loaded_and_unloaded_by_request(
    client: triton.InferenceServerClient, server: FakeServer
) -> None:
    server.is_controlled = True
    client.load_model("a")
    client.unload_model("a")
    client.unload_model("b", unload_dependents=True)
    assert list(server.controlled) == [("load", "a"), ("unload", "a"), ("unload with dependents", "b")]


def test_unload_dependents_must_be_a_truth_value(channel: grpc.Channel) -> None:
    request = messages.RepositoryModelUnloadRequest(model_name="m")
    request.parameters["unload_dependents"].int64_param = 1
    assert refusal(channel, "RepositoryModelUnload", request.SerializeToString()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid value type for 'unload_dependents' parameter, expected bool_param.",
    )


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_models_are_not_loaded_by_request(channel: grpc.Channel, method: str) -> None:
    assert refusal(channel, method, b"") == (
        grpc.StatusCode.UNAVAILABLE,
        "explicit model load / unload is not allowed if polling is enabled",
    )


@pytest.mark.parametrize("path", [path for path in messages.METHODS if path.startswith(INFER_SERVICE)])
def test_every_method_of_the_protocol_is_offered(channel: grpc.Channel, path: str) -> None:
    try:
        channel.unary_unary(path)(b"", timeout=10)
    except grpc.RpcError as error:
        assert error.details() != "unknown method"  # noqa: PT017


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/no.Service/Method")(b"", timeout=10)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelReady"])
@pytest.mark.parametrize(
    ("version", "code", "text"),
    [
        ("9", grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'identity' version 9 is not found"),
        (
            "one",
            grpc.StatusCode.INVALID_ARGUMENT,
            "failed to get model version from specified version string 'one' (details: no integer), "
            "version should be an integral value > 0",
        ),
        (
            "-2",
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid model version specified '-2' , version should be an integral value > 0",
        ),
    ],
    ids=["missing", "no number", "negative"],
)
def test_lookup_errors_are_those_of_the_reference(
    channel: grpc.Channel, method: str, version: str, code: grpc.StatusCode, text: str
) -> None:
    request = messages.ModelReadyRequest(name="identity", version=version).SerializeToString()
    assert refusal(channel, method, request) == (code, text)


# --- inference


@pytest.mark.parametrize("model", ["identity", "on_a_worker"])
def test_an_inference_is_answered_wherever_it_runs(client: triton.InferenceServerClient, model: str) -> None:
    result = client.infer(model, four(), request_id="7")
    assert result.as_numpy("OUT").tolist() == FOUR.tolist()
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("7", model, "1")
    assert not response.outputs[0].HasField("contents")


def test_requests_without_an_id_are_answered_without_one(client: triton.InferenceServerClient) -> None:
    assert client.infer("identity", four()).get_response().id == ""


def test_many_calls_at_once_are_each_answered_with_their_own(client: triton.InferenceServerClient) -> None:
    answers: dict[int, float] = {}
    all_answered = threading.Event()

    def on_answer(index: int, result: Any, error: Any) -> None:
        answers[index] = float(result.as_numpy("OUT")[0]) if error is None else -1.0
        if len(answers) == 100:
            all_answered.set()

    for index in range(100):
        tensor = infer_input("IN", np.full(4, index, np.float32), "FP32")
        model = "identity" if index % 2 else "on_a_worker"
        client.async_infer(
            model, [tensor], callback=lambda result, error, index=index: on_answer(index, result, error)
        )
    assert all_answered.wait(20)
    assert answers == {index: float(index) for index in range(100)}


def test_the_asyncio_client_is_served() -> None:
    async def run(port: int) -> list[float]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
            result = await client.infer("identity", four())
            return [float(value) for value in result.as_numpy("OUT")]

    with grpc_server(FakeServer(identity_model("identity"))) as front_end:
        assert asyncio.run(run(front_end.port)) == FOUR.tolist()


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (1, 1)])
@pytest.mark.parametrize("datatype", list(DataType), ids=lambda datatype: datatype.name)
def test_raw_tensors_of_every_datatype_come_back_as_they_were(
    channel: grpc.Channel, datatype: DataType, shape: tuple[int, int]
) -> None:
    count = shape[0] * shape[1]
    if datatype is DataType.BYTES:
        raw = b"".join(
            len(text).to_bytes(4, "little") + text
            for text in (b"", b"a", b"\xff\x00", b"dd", b"e", b"f")[:count]
        )
    else:
        raw = bytes(
            index % 2 for index in range(count * {"FP64": 8, "INT64": 8, "UINT64": 8}.get(datatype.name, 0))
        )
        raw = raw or bytes(
            index % 2 for index in range(count * {"8": 1, "L": 1, "6": 2, "2": 4}.get(datatype.name[-1], 1))
        )
    request = messages.ModelInferRequest(model_name=f"any_{datatype.name}", raw_input_contents=[raw])
    request.inputs.add(name="IN", datatype=datatype.name, shape=shape)
    response = messages.ModelInferResponse.FromString(
        call(channel, "ModelInfer", request.SerializeToString())
    )
    assert list(response.raw_output_contents) == [raw]
    assert (response.outputs[0].datatype, tuple(response.outputs[0].shape)) == (datatype.name, shape)


def test_tensors_larger_than_any_copy_are_intact(client: triton.InferenceServerClient) -> None:
    array = np.random.default_rng(0).random(3_000_001, dtype=np.float32)
    result = client.infer("vector", [infer_input("IN", array, "FP32")], request_id="odd")
    assert np.array_equal(result.as_numpy("OUT"), array)


def test_only_the_requested_outputs_are_returned(
    client: triton.InferenceServerClient, server: FakeServer
) -> None:
    client.infer("identity", four(), outputs=[triton.InferRequestedOutput("OUT")])
    assert server.submitted[-1].requested_outputs == ("OUT",)


def test_classes_are_returned_in_place_of_an_output(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("OUT", class_count=2)]
    result = client.infer("identity", four(), outputs=wanted)
    assert result.as_numpy("OUT").tolist() == [b"3.000000:3", b"2.000000:2"]


def test_request_parameters_reach_the_model_and_response_parameters_the_client(
    client: triton.InferenceServerClient, server: FakeServer
) -> None:
    sent = {"text": "x", "whole": -3, "truth": True}
    result = client.infer(
        "parameters", [], parameters=sent, priority=2, timeout=99, sequence_id=5, sequence_start=True
    )
    response = result.get_response()
    assert response.parameters["text"].string_param == "x"
    assert response.parameters["whole"].int64_param == -3
    assert response.parameters["truth"].bool_param is True
    request = server.submitted[-1]
    assert (request.priority, request.timeout_us, request.correlation_id, request.flags) == (2, 99, 5, 1)
    assert request.parameters == sent


def test_importing_the_stock_client_beside_the_server_harms_neither() -> None:
    assert messages.ModelInferRequest is not triton.service_pb2.ModelInferRequest


@pytest.mark.parametrize("code", list(StatusCode), ids=lambda code: code.name)
def test_a_models_error_reaches_the_client_with_its_code(channel: grpc.Channel, code: StatusCode) -> None:
    request = messages.ModelInferRequest(model_name="failing")
    request.parameters["code"].string_param = code.name
    expected = {"INVALID_ARG": "INVALID_ARGUMENT", "UNSUPPORTED": "UNIMPLEMENTED"}.get(code.name, code.name)
    assert refusal(channel, "ModelInfer", request.SerializeToString()) == (
        getattr(grpc.StatusCode, expected),
        "it failed",
    )


@pytest.mark.parametrize(("model", "count"), [("no_response", 0), ("two_responses", 2)])
def test_another_number_of_responses_than_one_is_an_error(
    channel: grpc.Channel, model: str, count: int
) -> None:
    request = messages.ModelInferRequest(model_name=model).SerializeToString()
    assert refusal(channel, "ModelInfer", request) == (
        grpc.StatusCode.INTERNAL,
        f"expected a single response, got {count}",
    )


def test_a_decoupled_model_is_not_for_unary_calls(channel: grpc.Channel) -> None:
    request = messages.ModelInferRequest(model_name="decoupled").SerializeToString()
    assert refusal(channel, "ModelInfer", request) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "ModelInfer RPC doesn't support models with decoupled transaction policy",
    )


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        b"\x0a\x05ab",
        b"\x0a\x02\xff\xfe",
        b"\x2a\x03\x0a\xff\xff",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
    ids=["not a field", "truncated", "not UTF-8", "bad input", "endless length"],
)
def test_bytes_that_are_no_message_are_refused_and_harm_nobody(channel: grpc.Channel, message: bytes) -> None:
    code, text = refusal(channel, "ModelInfer", message)
    assert code is grpc.StatusCode.INTERNAL
    assert text.startswith("the request cannot be parsed")
    assert call(channel, "ServerLive", b"")


def test_what_is_no_message_of_another_method_is_refused_too(channel: grpc.Channel) -> None:
    code, text = refusal(channel, "ModelConfig", b"\x0a\x05ab")
    assert (code, text.split(":")[0]) == (grpc.StatusCode.INTERNAL, "the request cannot be parsed")


# --- callers that go away


def test_a_cancelled_call_cancels_its_request(
    channel: grpc.Channel, held: HeldModel, server: FakeServer
) -> None:
    request = messages.ModelInferRequest(model_name="held", raw_input_contents=[FOUR.tobytes()])
    request.inputs.add(name="IN", datatype="FP32", shape=[4])
    future = channel.unary_unary(INFER_SERVICE + "ModelInfer").future(request.SerializeToString())
    assert held.has_begun.wait(10)
    future.cancel()
    assert held.cancelled.wait(10)
    assert call(channel, "ServerLive", b"")


def test_a_clients_deadline_is_the_requests(
    channel: grpc.Channel, held: HeldModel, server: FakeServer
) -> None:
    request = messages.ModelInferRequest(model_name="held", raw_input_contents=[FOUR.tobytes()])
    request.inputs.add(name="IN", datatype="FP32", shape=[4])
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(INFER_SERVICE + "ModelInfer")(request.SerializeToString(), timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert held.cancelled.wait(10)
    submitted = server.submitted[-1]
    # gRPC rounds timeouts up on the wire.
    assert 0 < submitted.deadline_ns - submitted.received_ns < 1_000_000_000


def test_a_call_without_a_deadline_makes_a_request_without_one(
    client: triton.InferenceServerClient, server: FakeServer
) -> None:
    client.infer("identity", four())
    assert server.submitted[-1].deadline_ns == 0


def test_a_slow_model_does_not_hold_up_other_calls(channel: grpc.Channel, held: HeldModel) -> None:
    request = messages.ModelInferRequest(model_name="held", raw_input_contents=[FOUR.tobytes()])
    request.inputs.add(name="IN", datatype="FP32", shape=[4])
    future = channel.unary_unary(INFER_SERVICE + "ModelInfer").future(request.SerializeToString())
    assert held.has_begun.wait(10)
    assert call(channel, "ServerLive", b"")
    held.release.set()
    response = messages.ModelInferResponse.FromString(future.result(timeout=10))
    assert response.raw_output_contents[0] == FOUR.tobytes()


def test_large_tensors_are_aligned_where_a_model_sees_them(channel: grpc.Channel, server: FakeServer) -> None:
    array = np.arange(10_000, dtype=np.float64)
    for padding in range(8):
        request = messages.ModelInferRequest(
            model_name="any_FP64", id="x" * padding, raw_input_contents=[array.tobytes()]
        )
        request.inputs.add(name="IN", datatype="FP64", shape=[1, 10_000])
        call(channel, "ModelInfer", request.SerializeToString())
        tensor: Tensor = server.submitted[-1].inputs["IN"]
        assert tensor.array.flags.aligned
        assert np.array_equal(tensor.array.reshape(-1), array)
