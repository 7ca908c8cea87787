"""--max-queue-bytes and MAX_QUEUE_BYTES: requests that there is no room for are refused, before they are read."""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from cantata.runtime.frontends.grpc.http2.frames import DATA, END_HEADERS, HEADERS
from tests.support.http2_client import http2_client, prefixed
from tests.support.model_files import (
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_identity,
    write_model,
)
from tests.support.wire_servers import Ports, wire_server

SERVER_BYTES = 100_000
MODEL_BYTES = 2_000
GATED = """
def execute(self, requests):
    import os
    os.read(int(os.environ["GATE_OF_TEST"]), 1)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.zeros(1, np.float32))]) for _ in requests]
"""
INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def gate() -> Iterator[int]:
    """Where a byte is written for each request that the gated model is to answer."""
    reader, writer = os.pipe()
    os.environ["GATE_OF_TEST"] = str(reader)
    yield writer
    del os.environ["GATE_OF_TEST"]
    os.close(reader)
    os.close(writer)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, gate: int) -> Iterator[Ports]:
    repository = tmp_path_factory.mktemp("models")
    ends = [tensor_text("INPUT")], [tensor_text("OUTPUT")]
    write_identity(repository)
    limit = f'parameters {{ key: "MAX_QUEUE_BYTES" value {{ string_value: "{MODEL_BYTES}" }} }}'
    write_identity(repository, "limited", extra=limit)
    write_model(repository, "gated", python_config(*ends), GATED)
    narrow = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    write_model(
        repository,
        "narrow",
        python_config([tensor_text("INPUT")], [tensor_text("OUTPUT")], max_batch_size=1, extra=narrow),
        GATED.replace("np.zeros(1,", "np.zeros((1, 1),"),
    )
    step = step_text("limited", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    write_model(repository, "over", ensemble_config(*ends, [step]))
    with wire_server(repository, max_queue_bytes=SERVER_BYTES) as ports:
        yield ports


def infer_over(api: object, client: object, model: str, count: int) -> np.ndarray:
    tensor = api.InferInput("INPUT", [count], "FP32")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(np.ones(count, np.float32))
    return client.infer(model, [tensor]).as_numpy("OUTPUT")  # type: ignore[attr-defined]


def http_infer(ports: Ports, model: str, count: int) -> np.ndarray:
    with triton_http.InferenceServerClient(f"127.0.0.1:{ports.http}") as client:
        return infer_over(triton_http, client, model, count)


def grpc_infer(ports: Ports, model: str, count: int) -> np.ndarray:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        return infer_over(triton_grpc, client, model, count)


def answer_on(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, object]]:
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, json.loads(file.read(int(headers["content-length"])))


def json_infer(model: str, count: int) -> bytes:
    tensor = {"name": "INPUT", "shape": [count], "datatype": "FP32", "data": [1.0] * count}
    return json.dumps({"inputs": [tensor]}).encode()


def metric(ports: Ports, series: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{ports.metrics}/metrics", timeout=20) as answer:
        (found,) = re.findall(rf"^{re.escape(series)} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(found)


def held_bytes(ports: Ports) -> int:
    assert ports.server.admission.server is not None
    return ports.server.admission.server.figures.held


def connect(ports: Ports) -> socket.socket:
    return socket.create_connection(("127.0.0.1", ports.http), timeout=20)


def test_an_http_client_that_asks_first_is_refused_without_its_body(shared: Ports) -> None:
    with connect(shared) as client:
        client.sendall(
            b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
            b"Content-Length: 100001\r\n\r\n"
        )
        status, headers, body = answer_on(client)
        assert client.recv(1) == b""
    assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
    assert body["error"] == (
        "Exceeds maximum queue bytes: the request takes 100001 bytes, and 0 of the 100000 of the server "
        "(--max-queue-bytes) are in use"
    )
    assert held_bytes(shared) == 0


@pytest.mark.parametrize("path", ["identity/infer", "identity/generate", "identity/generate_stream"])
def test_an_http_request_with_too_long_a_body_is_refused_and_its_connection_goes_on(
    shared: Ports, path: str
) -> None:
    with connect(shared) as client:
        head = f"POST /v2/models/{path} HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n".encode()
        client.sendall(head + b" " * 200_000)
        status, headers, _ = answer_on(client)
        assert (status, headers["retry-after"]) == (503, "1")
        body = json_infer("identity", 3)
        head = b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.sendall(head + body)
        assert answer_on(client)[0] == 200
    assert held_bytes(shared) == 0


def test_an_http_body_in_chunks_is_refused_as_it_grows_too_long(shared: Ports) -> None:
    with connect(shared) as client:
        client.sendall(
            b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(20):
            client.sendall(b"%x\r\n" % 10_000 + b" " * 10_000 + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        status, headers, _ = answer_on(client)
        assert (status, headers["retry-after"]) == (503, "1")
        body = json_infer("identity", 3)
        client.sendall(
            b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
        assert answer_on(client)[0] == 200
    assert held_bytes(shared) == 0


def test_an_http_body_that_unpacks_to_too_much_is_refused(shared: Ports) -> None:
    tensor = triton_http.InferInput("INPUT", [50_000], "FP32")
    tensor.set_data_from_numpy(np.ones(50_000, np.float32), binary_data=False)
    with (
        triton_http.InferenceServerClient(f"127.0.0.1:{shared.http}") as client,
        pytest.raises(InferenceServerException, match="Exceeds maximum queue bytes"),
    ):
        client.infer("identity", [tensor], request_compression_algorithm="gzip")
    assert held_bytes(shared) == 0


def test_a_client_that_goes_before_its_body_has_come_holds_nothing(shared: Ports) -> None:
    with connect(shared) as client:
        client.sendall(
            b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n."
        )
        while held_bytes(shared) != 90_000:
            os.sched_yield()
    while held_bytes(shared):
        os.sched_yield()


@pytest.mark.parametrize("infer", [http_infer, grpc_infer])
def test_what_runs_is_in_the_way_of_others_until_it_is_answered(
    shared: Ports, gate: int, infer: type
) -> None:
    shed_before = metric(shared, 'cantata_shed_requests_total{reason="SERVER_BYTES"}')
    done: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
    caller = threading.Thread(target=lambda: done.put(infer(shared, "gated", 20_000)))
    caller.start()
    while shared.server.model("gated").scheduler.in_flight == 0:  # type: ignore[attr-defined]
        os.sched_yield()
    assert 80_000 < metric(shared, "cantata_queue_bytes") < SERVER_BYTES
    assert metric(shared, "cantata_queue_limit_bytes") == SERVER_BYTES
    with pytest.raises(InferenceServerException, match="Exceeds maximum queue bytes"):
        infer(shared, "identity", 10_000)
    assert infer(shared, "identity", 100).shape == (100,)
    os.write(gate, b".")
    caller.join()
    assert done.get().shape == (1,)
    assert infer(shared, "identity", 20_000).shape == (20_000,)
    while held_bytes(shared):
        os.sched_yield()
    assert metric(shared, 'cantata_shed_requests_total{reason="SERVER_BYTES"}') == shed_before + 1


@pytest.mark.parametrize("infer", [http_infer, grpc_infer])
@pytest.mark.parametrize("model", ["limited", "over"])
def test_a_model_of_its_own_budget_refuses_also_as_a_step(shared: Ports, infer: type, model: str) -> None:
    series = 'cantata_shed_requests_total{model="limited",reason="MODEL_BYTES",version="1"}'
    before = metric(shared, series)
    assert infer(shared, model, 100).shape == (100,)
    with pytest.raises(InferenceServerException, match=r"of the 2000 of model 'limited' \(parameter"):
        infer(shared, model, 501)
    assert metric(shared, series) == before + 1
    assert metric(shared, 'cantata_queue_bytes{model="limited",version="1"}') == 0
    while held_bytes(shared):
        os.sched_yield()


def test_a_refused_call_says_when_to_try_again(shared: Ports) -> None:
    request = triton_grpc.service_pb2.ModelInferRequest(
        model_name="identity", raw_input_contents=[b"." * SERVER_BYTES]
    )
    with grpc.insecure_channel(f"127.0.0.1:{shared.grpc}") as channel:
        call = channel.unary_unary(INFER_PATH)
        with pytest.raises(grpc.RpcError) as refused:
            call(request.SerializeToString(), timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ("grpc-retry-pushback-ms", "1000") in tuple(refused.value.trailing_metadata())


def test_a_call_is_refused_by_its_messages_length_when_others_take_the_room(shared: Ports, gate: int) -> None:
    caller = threading.Thread(target=lambda: http_infer(shared, "gated", 20_000))
    caller.start()
    while shared.server.model("gated").scheduler.in_flight == 0:
        os.sched_yield()
    with http2_client(shared.grpc) as client:
        client.frame(HEADERS, END_HEADERS, 1, client.block(path=INFER_PATH))
        # No more than the beginning of the message is ever sent.
        client.frame(DATA, 0, 1, prefixed(bytes(30_000))[:10])
        headers = client.answer(1).headers
    assert headers["grpc-status"] == str(grpc.StatusCode.UNAVAILABLE.value[0])
    assert "Exceeds maximum queue bytes: the request takes 30000 bytes" in headers["grpc-message"]
    os.write(gate, b".")
    caller.join()


def test_a_call_that_breaks_off_gives_back_what_it_held(shared: Ports) -> None:
    with http2_client(shared.grpc) as client:
        client.frame(HEADERS, END_HEADERS, 1, client.block(path=INFER_PATH))
        client.frame(DATA, 0, 1, prefixed(bytes(30_000))[:10])
        while held_bytes(shared) == 0:
            os.sched_yield()
        assert held_bytes(shared) == 30_000
    while held_bytes(shared) != 0:
        os.sched_yield()


def test_a_full_queue_too_says_when_to_try_again(shared: Ports, gate: int) -> None:
    tensor = {"name": "INPUT", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    body = json.dumps({"inputs": [tensor]}).encode()
    message = b"POST /v2/models/narrow/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )
    scheduler = shared.server.model("narrow").scheduler
    with connect(shared) as running, connect(shared) as queued, connect(shared) as refused:
        for count, client in enumerate((running, queued)):
            client.sendall(message)
            while (scheduler.in_flight, scheduler.pending()) != (count + 1, count):
                os.sched_yield()
        refused.sendall(message)
        status, headers, answer = answer_on(refused)
        assert (status, headers["retry-after"]) == (503, "1")
        assert answer == {"error": "[request id: <id_unknown>] Exceeds maximum queue size"}
        os.write(gate, b"..")
        assert [answer_on(client)[0] for client in (running, queued)] == [200, 200]


def test_a_request_in_a_stream_is_refused_alone(shared: Ports) -> None:
    answers: queue.SimpleQueue[tuple[object, object]] = queue.SimpleQueue()
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{shared.grpc}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for count in (30_000, 10):
            tensor = triton_grpc.InferInput("INPUT", [count], "FP32")
            tensor.set_data_from_numpy(np.ones(count, np.float32))
            client.async_stream_infer("identity", [tensor])
        refused, served = answers.get(timeout=20), answers.get(timeout=20)
        client.stop_stream()
    assert "Exceeds maximum queue bytes" in str(refused[1])
    assert (served[0] is not None, served[1]) == (True, None)
    assert held_bytes(shared) == 0


def test_a_budget_that_is_no_number_keeps_the_model_from_loading(tmp_path: Path) -> None:
    wrong = 'parameters { key: "MAX_QUEUE_BYTES" value { string_value: "a lot" } }'
    write_identity(tmp_path, extra=wrong)
    with wire_server(tmp_path, exit_on_error=False) as ports:
        (failure,) = ports.server.failures()
        assert failure.reason == (
            "Invalid argument: model 'identity', parameter MAX_QUEUE_BYTES: expected a positive number of bytes, "
            "got 'a lot'"
        )
