"""Tensors in system shared memory, over both protocols, with the stock clients."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from cantata.runtime.datatypes import DataType
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.server import Server
from cantata.runtime.shared_memory import SharedMemory
from tests.support.fake_driver import HANDLE, FakeDriver
from tests.support.fake_server import FakeModel, FakeServer, identity, identity_model, model_config

VALUES = np.arange(4, dtype=np.float32)


class Gate:
    """A model that answers when the test says so."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def compute(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        self.entered.set()
        assert self.opened.wait(20)
        yield from identity(request)


class Running:
    """A server with both front-ends, and a stock client of one of them."""

    def __init__(self, protocol: str) -> None:
        self.triton: Any = triton_http if protocol == "http" else triton_grpc
        self.gate = Gate()
        slow = model_config("slow", {"IN": (DataType.FP32, (4,))}, {"OUT": (DataType.FP32, (4,))})
        self.server = FakeServer(
            identity_model("echo"),
            identity_model("text", DataType.BYTES, (2,)),
            FakeModel(slow, self.gate.compute, is_quick=False),
        )
        server = cast(Server, self.server)
        self.front_end: Any = (
            HttpServer(server, HttpOptions(address="127.0.0.1", port=0))
            if protocol == "http"
            else GrpcServer(server, GrpcOptions(address="127.0.0.1", port=0))
        )

    @contextmanager
    def started(self) -> Iterator[Running]:
        self.front_end.start()
        self.client = self.triton.InferenceServerClient(f"127.0.0.1:{self.front_end.port}")
        try:
            yield self
        finally:
            self.gate.opened.set()
            self.client.close()
            self.front_end.close()
            self.server.close()

    def names(self) -> list[str]:
        status = self.client.get_system_shared_memory_status()
        return [region["name"] for region in status] if isinstance(status, list) else list(status.regions)

    def input(
        self, region: str, byte_size: int, offset: int = 0, datatype: str = "FP32", size: int = 4
    ) -> Any:
        tensor = self.triton.InferInput("IN", [size], datatype)
        tensor.set_shared_memory(region, byte_size, offset)
        return tensor

    def output(self, region: str, byte_size: int, offset: int = 0) -> Any:
        output = self.triton.InferRequestedOutput("OUT")
        output.set_shared_memory(region, byte_size, offset)
        return output

    def refusal(self, **tensors: Any) -> str:
        with pytest.raises(InferenceServerException) as refused:
            self.client.infer("echo", **tensors)
        return str(refused.value.message())


@pytest.fixture(params=["http", "grpc"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with Running(request.param).started() as made:
        yield made


@pytest.fixture
def segment() -> Iterator[Any]:
    handle = shm.create_shared_memory_region("r", "/cantata_test_segment", 128, create_only=True)
    shm.set_shared_memory_region(handle, [VALUES])
    yield handle
    shm.destroy_shared_memory_region(handle)


def register(running: Running, byte_size: int = 128, offset: int = 0) -> None:
    running.client.register_system_shared_memory("r", "/cantata_test_segment", byte_size, offset)


def test_tensors_pass_through_shared_memory(running: Running, segment: Any) -> None:
    register(running)
    result = running.client.infer(
        "echo", [running.input("r", 16)], outputs=[running.output("r", 32, offset=64)]
    )
    assert shm.get_contents_as_numpy(segment, np.float32, [4], offset=64).tolist() == VALUES.tolist()
    if running.triton is triton_http:
        assert result.get_output("OUT") == {"name": "OUT", "datatype": "FP32", "shape": [4]}
    else:
        response = result.get_response()
        assert (list(response.outputs[0].shape), list(response.raw_output_contents)) == ([4], [b""])


def test_outputs_may_come_in_the_response_when_inputs_lie_in_memory(running: Running, segment: Any) -> None:
    register(running)
    assert running.client.infer("echo", [running.input("r", 16)]).as_numpy("OUT").tolist() == VALUES.tolist()


def test_unaligned_tensors_are_read(running: Running, segment: Any) -> None:
    shm.set_shared_memory_region(segment, [np.frombuffer(VALUES.tobytes(), np.uint8)], offset=33)
    register(running, 64, offset=1)
    result = running.client.infer("echo", [running.input("r", 16, offset=32)])
    assert result.as_numpy("OUT").tolist() == VALUES.tolist()


def test_strings_lie_there_with_their_lengths(running: Running, segment: Any) -> None:
    encoded = serialize_byte_tensor(np.array([b"one", b"three"], dtype=object))
    shm.set_shared_memory_region(segment, [encoded])
    size = len(encoded.item())
    register(running)
    running.client.infer(
        "text", [running.input("r", size, datatype="BYTES", size=2)], outputs=[running.output("r", 64, 64)]
    )
    assert shm.get_contents_as_numpy(segment, np.object_, [2], offset=64).tolist() == [b"one", b"three"]


def test_a_region_in_use_is_unregistered_after_its_request(running: Running, segment: Any) -> None:
    register(running)
    results: list[Any] = []
    if running.triton is triton_grpc:
        arrived = threading.Event()

        def keep(result: Any, error: Any) -> None:
            results.append(result if error is None else error)
            arrived.set()

        running.client.async_infer(
            "slow", [running.input("r", 16)], keep, outputs=[running.output("r", 16, 64)]
        )
        wait = lambda: arrived.wait(20)  # noqa: E731
        other = running.client
    else:
        with_two = triton_http.InferenceServerClient(f"127.0.0.1:{running.front_end.port}", concurrency=2)
        pending = with_two.async_infer(
            "slow", [running.input("r", 16)], outputs=[running.output("r", 16, 64)]
        )
        # The stock client sends from a greenlet, which must be let run.
        import gevent

        while not running.gate.entered.is_set():
            gevent.sleep(0.005)
        wait = lambda: results.append(pending.get_result(timeout=20))  # noqa: E731
        other = with_two
    assert running.gate.entered.wait(20)
    other.unregister_system_shared_memory("r")
    assert [region.name for region in running.server.shared_memory.status()] == ["r"]
    running.gate.opened.set()
    wait()
    assert not isinstance(results[0], Exception)
    assert shm.get_contents_as_numpy(segment, np.float32, [4], offset=64).tolist() == VALUES.tolist()
    assert running.names() == []
    if other is not running.client:
        other.close()


def test_what_is_refused_leaves_no_region_in_use(running: Running, segment: Any) -> None:
    register(running)
    assert "Invalid offset + byte size" in running.refusal(inputs=[running.input("r", 256)])
    assert "Unable to find shared memory region: 'nowhere'" in running.refusal(
        inputs=[running.input("nowhere", 16)]
    )
    assert "input byte size mismatch" in running.refusal(inputs=[running.input("r", 12)])
    assert (
        "shared memory size specified with the request for output 'OUT' (8 bytes) should be at least 16 bytes"
        in running.refusal(inputs=[running.input("r", 16)], outputs=[running.output("r", 8, 64)])
    )
    assert "unexpected inference output" in running.refusal(
        inputs=[running.input("r", 16)], outputs=[_named(running, "NONE")]
    )
    running.client.unregister_system_shared_memory()
    assert running.names() == []


def _named(running: Running, name: str) -> Any:
    output = running.triton.InferRequestedOutput(name)
    output.set_shared_memory("r", 16, 0)
    return output


def test_regions_are_registered_listed_and_forgotten(running: Running, segment: Any) -> None:
    register(running, 64, offset=32)
    if running.triton is triton_http:
        assert running.client.get_system_shared_memory_status("r") == [
            {"name": "r", "key": "/cantata_test_segment", "offset": 32, "byte_size": 64}
        ]
    else:
        found = running.client.get_system_shared_memory_status("r").regions["r"]
        assert (found.name, found.key, found.offset, found.byte_size) == (
            "r",
            "/cantata_test_segment",
            32,
            64,
        )
    with pytest.raises(InferenceServerException, match="shared memory region 'r' already in manager"):
        register(running)
    running.client.unregister_system_shared_memory("r")
    with pytest.raises(InferenceServerException, match="Unable to find system shared memory region: 'r'"):
        running.client.get_system_shared_memory_status("r")


def test_tensors_pass_through_the_memory_of_gpus(running: Running) -> None:
    driver = FakeDriver()
    running.server.shared_memory._find_driver = lambda: driver
    driver.memory[:16] = VALUES.view(np.uint8)
    running.client.register_cuda_shared_memory("c", base64.b64encode(HANDLE), 1, 64)
    status = running.client.get_cuda_shared_memory_status("c")
    if running.triton is triton_http:
        assert status == [{"name": "c", "device_id": 1, "byte_size": 64}]
    else:
        assert (status.regions["c"].device_id, status.regions["c"].byte_size) == (1, 64)
    running.client.infer("echo", [running.input("c", 16)], outputs=[running.output("c", 16, 32)])
    assert driver.memory[32:48].view(np.float32).tolist() == VALUES.tolist()
    running.client.unregister_cuda_shared_memory("c")
    assert driver.open_count == 0


def test_memory_of_gpus_is_refused(running: Running) -> None:
    with pytest.raises(InferenceServerException, match="'c', GPUs not supported"):
        running.client.register_cuda_shared_memory("c", b"aGFuZGxl", 0, 64)
    status = running.client.get_cuda_shared_memory_status()
    assert not (status if isinstance(status, list) else status.regions)
    running.client.unregister_cuda_shared_memory()


def test_clients_share_no_memory_unless_the_server_allows_it(running: Running) -> None:
    running.server.shared_memory._allows_clients = False
    with pytest.raises(InferenceServerException, match="Client shared memory is disabled"):
        running.client.register_system_shared_memory("r", "/k", 4)
    assert running.names() == []


def test_streamed_requests_use_regions_too(segment: Any) -> None:
    with Running("grpc").started() as running:
        register(running)
        answers: list[Any] = []
        arrived = threading.Event()

        def keep(result: Any, error: Any) -> None:
            answers.append(error or result)
            arrived.set()

        running.client.start_stream(keep)
        running.client.async_stream_infer(
            "echo", [running.input("r", 16)], outputs=[running.output("r", 16, 64)]
        )
        assert arrived.wait(20)
        running.client.stop_stream()
        running.client.unregister_system_shared_memory()
        assert running.names() == []
        assert shm.get_contents_as_numpy(segment, np.float32, [4], offset=64).tolist() == VALUES.tolist()


def test_the_registry_is_the_servers() -> None:
    assert isinstance(FakeServer().shared_memory, SharedMemory)
