"""ModelStreamInfer over a real connection: order, ends, errors, slow readers, callers that go away."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from cantata.grammars import messages
from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import invalid_argument
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor
from tests.support.fake_server import FakeModel, FakeServer, identity_model, model_config, respond_with
from tests.support.grpc_servers import INFER_SERVICE, four, grpc_server, infer_input, stock_client

INT32 = (DataType.INT32, (1,))
PATH = INFER_SERVICE + "ModelStreamInfer"
Message = messages.ModelStreamInferResponse


def repeat(request: InferenceRequest) -> Iterator[InferenceResponse]:
    """As many responses as IN says, each with its index; then, for a negative number, an error."""
    count = int(request.inputs["IN"].array[0])
    for index in range(abs(count)):
        request.sender.wait_until_ready()
        if request.cancellation.is_cancelled:
            return
        yield respond_with(request, {"OUT": Tensor(DataType.INT32, np.array([index], np.int32))})
    if count < 0:
        raise invalid_argument("no more")


class GatedModel:
    """An identity model whose requests end in the order in which the test lets them."""

    def __init__(self) -> None:
        self.gates = {name: threading.Event() for name in ("a", "b", "c")}
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.cancelled: queue.SimpleQueue[str] = queue.SimpleQueue()

    def compute(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        request.cancellation.add_listener(request, lambda: self._on_cancelled(request.id))
        self.begun.put(request.id)
        self.gates[request.id].wait(10)
        yield respond_with(request, dict(request.inputs))

    def _on_cancelled(self, id: str) -> None:
        self.cancelled.put(id)
        self.gates[id].set()


@pytest.fixture
def gated() -> GatedModel:
    return GatedModel()


@pytest.fixture
def server(gated: GatedModel) -> FakeServer:
    repeats = model_config("repeat", {"IN": INT32}, {"OUT": INT32}, decoupled=True)
    return FakeServer(
        identity_model("identity"),
        FakeModel(repeats, repeat, is_quick=False),
        FakeModel(model_config("gated", {}, {}), gated.compute, is_quick=False),
        FakeModel(model_config("gated_decoupled", {}, {}, decoupled=True), gated.compute, is_quick=False),
    )


@pytest.fixture
def front_end(server: FakeServer) -> Iterator[GrpcServer]:
    with grpc_server(server) as front_end:
        yield front_end


class Stream:
    """One open ModelStreamInfer call, written to and read by the test."""

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call = channel.stream_stream(PATH)(iter(self._requests.get, None), metadata=metadata, timeout=20)

    def send(self, request: messages.ModelInferRequest) -> None:
        self._requests.put(request.SerializeToString())

    def half_close(self) -> None:
        self._requests.put(None)

    def read(self) -> messages.ModelStreamInferResponse:
        return Message.FromString(next(self.call))

    def rest(self) -> list[messages.ModelStreamInferResponse]:
        return [Message.FromString(message) for message in self.call]


@pytest.fixture
def channel(front_end: GrpcServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{front_end.port}") as channel:
        yield channel


@contextmanager
def opened(channel: grpc.Channel, *metadata: tuple[str, str]) -> Iterator[Stream]:
    stream = Stream(channel, metadata)
    try:
        yield stream
    finally:
        stream.half_close()
        stream.call.cancel()


def repeat_request(count: int, id: str = "", *, empty_final: bool = False) -> messages.ModelInferRequest:
    request = messages.ModelInferRequest(model_name="repeat", id=id, model_version="1" if id else "")
    request.inputs.add(name="IN", datatype="INT32", shape=[1])
    request.raw_input_contents.append(np.array([count], np.int32).tobytes())
    if empty_final:
        request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def index_of(message: messages.ModelStreamInferResponse) -> int:
    return int(np.frombuffer(message.infer_response.raw_output_contents[0], np.int32)[0])


def is_final(message: messages.ModelStreamInferResponse) -> bool:
    return message.infer_response.parameters["triton_final_response"].bool_param


def test_the_stock_client_streams() -> None:
    answers: queue.SimpleQueue[tuple[object, object]] = queue.SimpleQueue()
    with grpc_server(FakeServer(identity_model("identity"))) as front_end, stock_client(front_end) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index in range(20):
            tensor = infer_input("IN", np.full(4, index, np.float32), "FP32")
            client.async_stream_infer("identity", [tensor], request_id=str(index))
        received = [answers.get(timeout=10) for _ in range(20)]
        client.stop_stream()
    assert [(result.get_response().id, float(result.as_numpy("OUT")[0])) for result, _ in received] == [
        (str(index), float(index)) for index in range(20)
    ]


def test_a_decoupled_model_sends_all_its_responses_and_no_final_message_of_its_own(
    channel: grpc.Channel,
) -> None:
    with opened(channel) as stream:
        stream.send(repeat_request(3, "r"))
        stream.half_close()
        answers = stream.rest()
    assert [(index_of(answer), answer.infer_response.id, is_final(answer)) for answer in answers] == [
        (0, "r", False),
        (1, "r", False),
        (2, "r", False),
    ]


def test_an_empty_final_response_is_sent_when_it_is_asked_for(channel: grpc.Channel) -> None:
    with opened(channel) as stream:
        stream.send(repeat_request(1, "r", empty_final=True))
        stream.half_close()
        first, last = stream.rest()
    assert not is_final(first)
    expected = messages.ModelInferResponse(model_name="repeat", model_version="1", id="r")
    expected.parameters["triton_final_response"].bool_param = True
    assert last == Message(infer_response=expected)


def test_the_response_of_a_model_that_answers_once_is_marked_final(channel: grpc.Channel) -> None:
    with opened(channel) as stream:
        request = messages.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(16)])
        request.inputs.add(name="IN", datatype="FP32", shape=[4])
        stream.send(request)
        assert is_final(stream.read())


def test_models_that_answer_once_are_answered_in_the_order_of_their_requests(
    channel: grpc.Channel, gated: GatedModel
) -> None:
    with opened(channel) as stream:
        for id in ("a", "b", "c"):
            stream.send(messages.ModelInferRequest(model_name="gated", id=id))
        assert {gated.begun.get(timeout=10) for _ in range(3)} == {"a", "b", "c"}
        for id in ("c", "b", "a"):
            gated.gates[id].set()
        assert [stream.read().infer_response.id for _ in range(3)] == ["a", "b", "c"]


def test_a_refused_request_waits_for_its_turn_too(channel: grpc.Channel, gated: GatedModel) -> None:
    with opened(channel) as stream:
        stream.send(messages.ModelInferRequest(model_name="gated", id="a"))
        assert gated.begun.get(timeout=10) == "a"
        stream.send(messages.ModelInferRequest(model_name="unknown", id="b"))
        gated.gates["a"].set()
        assert [stream.read().infer_response.id for _ in range(2)] == ["a", "b"]


def test_decoupled_models_are_answered_as_their_responses_come(
    channel: grpc.Channel, gated: GatedModel
) -> None:
    with opened(channel) as stream:
        for id in ("a", "b"):
            stream.send(messages.ModelInferRequest(model_name="gated_decoupled", id=id))
        assert {gated.begun.get(timeout=10) for _ in range(2)} == {"a", "b"}
        gated.gates["b"].set()
        assert stream.read().infer_response.id == "b"
        gated.gates["a"].set()
        assert stream.read().infer_response.id == "a"


def test_a_request_that_is_refused_is_answered_in_the_stream_which_goes_on(channel: grpc.Channel) -> None:
    with opened(channel) as stream:
        stream.send(messages.ModelInferRequest(model_name="unknown", id="x"))
        assert stream.read() == Message(
            error_message="Request for unknown model: 'unknown' is not found",
            infer_response=messages.ModelInferResponse(id="x"),
        )
        stream.send(repeat_request(1))
        assert index_of(stream.read()) == 0


def test_a_models_error_names_the_request_and_is_final(channel: grpc.Channel) -> None:
    with opened(channel) as stream:
        stream.send(repeat_request(-1, "r"))
        stream.half_close()
        answers = stream.rest()
        assert stream.call.code() is grpc.StatusCode.OK
    expected = messages.ModelInferResponse(model_name="repeat", model_version="1", id="r")
    expected.parameters["triton_final_response"].bool_param = True
    assert index_of(answers[0]) == 0
    assert answers[1:] == [Message(error_message="no more", infer_response=expected)]


def test_with_the_error_metadata_the_first_error_ends_the_call_and_cancels_the_others(
    channel: grpc.Channel, gated: GatedModel
) -> None:
    with opened(channel, ("triton_grpc_error", "true")) as stream:
        stream.send(messages.ModelInferRequest(model_name="gated", id="a"))
        assert gated.begun.get(timeout=10) == "a"
        stream.send(messages.ModelInferRequest(model_name="unknown", id="b"))
        with pytest.raises(grpc.RpcError) as raised:
            stream.rest()
    assert (raised.value.code(), raised.value.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Request for unknown model: 'unknown' is not found",
    )
    assert gated.cancelled.get(timeout=10) == "a"


def test_a_reserved_parameter_of_the_wrong_type_is_an_error_in_the_stream(channel: grpc.Channel) -> None:
    request = repeat_request(1, "r")
    request.parameters["triton_enable_empty_final_response"].int64_param = 1
    with opened(channel) as stream:
        stream.send(request)
        assert stream.read().error_message == (
            "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param."
        )


def test_a_stream_that_is_closed_at_once_ends_well(channel: grpc.Channel) -> None:
    with opened(channel) as stream:
        stream.half_close()
        assert stream.rest() == []
        assert stream.call.code() is grpc.StatusCode.OK


def test_bytes_that_are_no_message_end_the_stream(channel: grpc.Channel) -> None:
    call = channel.stream_stream(PATH)(iter([b"\xff"]), timeout=10)
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    assert raised.value.code() is grpc.StatusCode.INTERNAL


def test_a_client_that_disconnects_cancels_every_request_of_its_stream(
    front_end: GrpcServer, gated: GatedModel
) -> None:
    channel = grpc.insecure_channel(f"127.0.0.1:{front_end.port}")
    stream = Stream(channel)
    for id in ("a", "b"):
        stream.send(messages.ModelInferRequest(model_name="gated", id=id))
    assert {gated.begun.get(timeout=10) for _ in range(2)} == {"a", "b"}
    stream.call.cancel()
    channel.close()
    assert {gated.cancelled.get(timeout=10) for _ in range(2)} == {"a", "b"}
    stream.half_close()
    with stock_client(front_end) as client:
        assert client.infer("identity", four()).as_numpy("OUT") is not None


def test_a_reader_that_does_not_read_holds_its_producer_up_until_it_goes_away(
    front_end: GrpcServer, server: FakeServer
) -> None:
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    channel = grpc.insecure_channel(f"127.0.0.1:{front_end.port}", options)
    stream = Stream(channel)
    stream.send(repeat_request(1_000_000_000))
    assert index_of(stream.read()) == 0
    request = server.submitted[-1]
    stream.call.cancel()
    channel.close()
    ended = threading.Event()
    request.cancellation.add_listener(ended, ended.set)
    assert ended.wait(10)
    stream.half_close()


def test_new_requests_of_an_open_stream_are_refused_while_the_server_stops(
    channel: grpc.Channel, front_end: GrpcServer, gated: GatedModel
) -> None:
    with opened(channel) as stream:
        stream.send(messages.ModelInferRequest(model_name="gated", id="a"))
        assert gated.begun.get(timeout=10) == "a"
        front_end.stop_accepting()
        stream.send(messages.ModelInferRequest(model_name="gated", id="b"))
        gated.gates["a"].set()
        assert stream.read().infer_response.id == "a"
        refused = stream.read()
    assert (refused.infer_response.id, refused.error_message) == (
        "b",
        "GRPC server is shutting down and has stopped accepting new requests.",
    )


def test_closing_the_server_lets_streams_finish_what_is_in_flight_and_then_ends_them(
    channel: grpc.Channel, front_end: GrpcServer, gated: GatedModel
) -> None:
    with opened(channel) as stream:
        stream.send(messages.ModelInferRequest(model_name="gated", id="a"))
        assert gated.begun.get(timeout=10) == "a"
        closing = threading.Thread(target=front_end.close, args=(10,))
        closing.start()
        gated.gates["a"].set()
        assert stream.read().infer_response.id == "a"
        with pytest.raises(grpc.RpcError) as raised:
            stream.rest()
        closing.join(10)
        assert not closing.is_alive()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_many_streams_at_once_are_each_in_order(front_end: GrpcServer) -> None:
    def run(results: dict[int, list[int]], number: int, client: triton.InferenceServerClient) -> None:
        answers: queue.SimpleQueue[int] = queue.SimpleQueue()
        client.start_stream(
            lambda result, error: answers.put(int(result.as_numpy("OUT")[0]) if result else -1)
        )
        client.async_stream_infer("repeat", [infer_input("IN", np.array([500], np.int32), "INT32")])
        results[number] = [answers.get(timeout=20) for _ in range(500)]
        client.stop_stream()
        client.close()

    results: dict[int, list[int]] = {}
    threads = [
        threading.Thread(
            target=run, args=(results, number, triton.InferenceServerClient(f"127.0.0.1:{front_end.port}"))
        )
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: list(range(500)) for number in range(4)}


def test_a_burst_of_requests_larger_than_one_round_of_the_loop_is_answered_whole(
    channel: grpc.Channel,
) -> None:
    request = messages.ModelInferRequest(model_name="identity", raw_input_contents=[bytes(16)])
    request.inputs.add(name="IN", datatype="FP32", shape=[4])
    with opened(channel) as stream:
        for index in range(3000):
            request.id = str(index)
            stream.send(request)
        stream.half_close()
        assert [answer.infer_response.id for answer in stream.rest()] == [str(index) for index in range(3000)]
        assert stream.call.code() is grpc.StatusCode.OK
