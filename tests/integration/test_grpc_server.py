"""The gRPC server itself: listening, TLS, compression, health, reflection, and stopping."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2

from cantata.grammars import messages
from cantata.runtime.datatypes import DataType
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from tests.support.certificates import Certificates, issue_certificates
from tests.support.fake_server import FakeModel, FakeServer, identity_model, model_config, respond_with
from tests.support.grpc_servers import FOUR, INFER_SERVICE, four, grpc_server, infer_input, stock_client

HEALTH = "/grpc.health.v1.Health/"


def fake_server() -> FakeServer:
    return FakeServer(identity_model("identity"), identity_model("vector", DataType.FP32, (-1,)))


def open_channel(front_end: GrpcServer, **arguments: Any) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{front_end.port}", **arguments)


# --- listening


def test_a_port_that_is_taken_is_an_error() -> None:
    server = fake_server()
    with grpc_server(server) as front_end:
        second = GrpcServer(server, GrpcOptions(address="127.0.0.1", port=front_end.port))  # type: ignore[arg-type]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{front_end.port}"):
            second.start()
        second.close()


def test_two_servers_may_share_a_port_that_is_to_be_reused() -> None:
    with (
        grpc_server(fake_server(), reuse_port=True) as first,
        grpc_server(fake_server(), reuse_port=True, port=first.port) as second,
    ):
        assert second.port == first.port


def test_an_ipv6_address_is_listened_on() -> None:
    with (
        grpc_server(fake_server(), address="::1") as front_end,
        triton.InferenceServerClient(f"[::1]:{front_end.port}") as client,
    ):
        assert client.is_server_live()


def test_every_keep_alive_option_is_accepted_by_grpc() -> None:
    options = {
        "keepalive_time": 10_000,
        "keepalive_timeout": 5_000,
        "keepalive_permit_without_calls": True,
        "http2_max_pings_without_data": 0,
        "http2_min_recv_ping_interval_without_data": 5_000,
        "http2_max_ping_strikes": 0,
        "max_connection_age": 600_000,
        "max_connection_age_grace": 5_000,
    }
    with grpc_server(fake_server(), **options) as front_end, stock_client(front_end) as client:
        assert client.is_server_live()


def test_a_connection_that_has_reached_its_age_is_replaced_without_an_error() -> None:
    with (
        grpc_server(fake_server(), max_connection_age=100, max_connection_age_grace=1000) as front_end,
        stock_client(front_end) as client,
    ):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert client.infer("identity", four()).as_numpy("OUT").tolist() == FOUR.tolist()


# --- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue_certificates(tmp_path_factory.mktemp("certificates"))


def tls_options(certificates: Certificates, **more: Any) -> dict[str, Any]:
    return {
        "use_ssl": True,
        "server_cert": str(certificates.server_cert),
        "server_key": str(certificates.server_key),
        **more,
    }


def live_over_tls(front_end: GrpcServer, credentials: grpc.ChannelCredentials) -> bool:
    with grpc.secure_channel(f"localhost:{front_end.port}", credentials) as channel:
        answer = channel.unary_unary(INFER_SERVICE + "ServerLive")(b"", timeout=5)
    return messages.ServerLiveResponse.FromString(answer).live


def test_tls_serves_clients_that_trust_the_server(certificates: Certificates) -> None:
    with grpc_server(fake_server(), **tls_options(certificates)) as front_end:
        assert live_over_tls(front_end, grpc.ssl_channel_credentials(certificates.root.read_bytes()))


def test_tls_refuses_plain_connections(certificates: Certificates) -> None:
    with (
        grpc_server(fake_server(), **tls_options(certificates)) as front_end,
        open_channel(front_end) as channel,
    ):
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(INFER_SERVICE + "ServerLive")(b"", timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_serves_only_clients_with_a_certificate(certificates: Certificates) -> None:
    options = tls_options(certificates, use_ssl_mutual=True, root_cert=str(certificates.root))
    files = (certificates.root, certificates.client_key, certificates.client_cert)
    root, key, chain = (file.read_bytes() for file in files)
    with grpc_server(fake_server(), **options) as front_end:
        assert live_over_tls(front_end, grpc.ssl_channel_credentials(root, key, chain))
        with pytest.raises(grpc.RpcError) as raised:
            live_over_tls(front_end, grpc.ssl_channel_credentials(root))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_cannot_be_read_is_an_error() -> None:
    front_end = GrpcServer(
        fake_server(),  # type: ignore[arg-type]
        GrpcOptions(address="127.0.0.1", port=0, use_ssl=True, server_cert="/nonexistent.pem"),
    )
    with pytest.raises(OSError, match=r"gRPC cannot use TLS .*/nonexistent.pem"):
        front_end.start()
    front_end.close()


# --- compression and size


class CountingProxy:
    """Passes one connection on to a port of this machine, and counts what comes back."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.received = 0
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(("127.0.0.1", self._target_port)) as target:
            forth = threading.Thread(target=self._pump, args=(client, target, False), daemon=True)
            forth.start()
            self._pump(target, client, True)
            forth.join(10)

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        # Either side may close first.
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.received += len(data) if counts else 0
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("level", ["none", "low", "medium", "high"])
def test_responses_are_compressed_as_configured_and_the_same_to_a_client(level: str) -> None:
    array = np.zeros(100_000, np.float32)
    with grpc_server(fake_server(), infer_response_compression_level=level) as front_end:
        proxy = CountingProxy(front_end.port)
        with triton.InferenceServerClient(f"127.0.0.1:{proxy.port}") as client:
            result = client.infer("vector", [infer_input("IN", array, "FP32")])
            assert np.array_equal(result.as_numpy("OUT"), array)
        proxy.close()
    assert (proxy.received > array.nbytes) == (level == "none")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read(algorithm: str) -> None:
    with grpc_server(fake_server()) as front_end, stock_client(front_end) as client:
        result = client.infer("identity", four(), compression_algorithm=algorithm)
        assert result.as_numpy("OUT").tolist() == FOUR.tolist()


def test_messages_far_above_grpcs_own_limit_pass() -> None:
    array = np.zeros(4_000_000, np.float32)
    with grpc_server(fake_server()) as front_end, stock_client(front_end) as client:
        result = client.infer("vector", [infer_input("IN", array, "FP32")])
        assert result.as_numpy("OUT").shape == array.shape


# --- health and reflection


def check_health(channel: grpc.Channel) -> str:
    answer = channel.unary_unary(HEALTH + "Check")(
        messages.HealthCheckRequest(service="anything").SerializeToString(), timeout=5
    )
    return str(
        messages.HealthCheckResponse.ServingStatus.Name(
            messages.HealthCheckResponse.FromString(answer).status
        )
    )


def test_the_health_check_follows_the_servers_readiness() -> None:
    server = fake_server()
    with grpc_server(server) as front_end, open_channel(front_end) as channel:
        assert check_health(channel) == "SERVING"
        server.ready = False
        assert check_health(channel) == "NOT_SERVING"
        server.is_exiting = True
        with pytest.raises(grpc.RpcError) as raised:
            check_health(channel)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_health_watch_is_told_of_every_change_and_of_the_end() -> None:
    server = fake_server()
    with grpc_server(server) as front_end, open_channel(front_end) as channel:
        watch = channel.unary_stream(HEALTH + "Watch")(b"", timeout=20)
        statuses = (messages.HealthCheckResponse.FromString(message).status for message in watch)
        assert next(statuses) == 1
        server.ready = False
        assert next(statuses) == 2
        server.ready = True
        assert next(statuses) == 1
        front_end.close(grace_s=5)
        assert list(statuses) == [2]


def test_a_watch_that_is_cancelled_is_forgotten() -> None:
    with grpc_server(fake_server()) as front_end, open_channel(front_end) as channel:
        watch = channel.unary_stream(HEALTH + "Watch")(b"", timeout=20)
        next(iter(watch))
        watch.cancel()
        assert check_health(channel) == "SERVING"


REFLECTION = ["grpc.reflection.v1", "grpc.reflection.v1alpha"]


def ask(channel: grpc.Channel, package: str, **question: Any) -> messages.ServerReflectionResponse:
    call = channel.stream_stream(f"/{package}.ServerReflection/ServerReflectionInfo")
    request = messages.ServerReflectionRequest(host="h", **question)
    (answer,) = call(iter([request.SerializeToString()]), timeout=5)
    response = messages.ServerReflectionResponse.FromString(answer)
    assert (response.valid_host, response.original_request) == ("h", request)
    return response


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    with grpc_server(fake_server()) as front_end, open_channel(front_end) as channel:
        yield channel


@pytest.mark.parametrize("package", REFLECTION)
def test_reflection_lists_every_service(channel: grpc.Channel, package: str) -> None:
    listed = ask(channel, package, list_services="").list_services_response.service
    assert [service.name for service in listed] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]


@pytest.mark.parametrize("package", REFLECTION)
@pytest.mark.parametrize(
    "question",
    [
        {"file_containing_symbol": "inference.GRPCInferenceService"},
        {"file_containing_symbol": "inference.GRPCInferenceService.ModelInfer"},
        {"file_containing_symbol": "inference.ModelInferRequest.InferInputTensor"},
        {"file_by_filename": "grpc_service.proto"},
    ],
    ids=lambda question: next(iter(question.values())),
)
def test_reflection_finds_files_and_what_they_import(
    channel: grpc.Channel, package: str, question: dict[str, str]
) -> None:
    files = ask(channel, package, **question).file_descriptor_response.file_descriptor_proto
    names = [descriptor_pb2.FileDescriptorProto.FromString(file).name for file in files]
    assert names == ["grpc_service.proto", "model_config.proto"]


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"file_containing_symbol": "no.Such"}, grpc.StatusCode.NOT_FOUND),
        ({"file_by_filename": "no.proto"}, grpc.StatusCode.NOT_FOUND),
        ({"all_extension_numbers_of_type": "inference.ModelConfig"}, grpc.StatusCode.NOT_FOUND),
        ({}, grpc.StatusCode.UNIMPLEMENTED),
    ],
    ids=["symbol", "file", "extensions", "nothing"],
)
def test_reflection_says_what_it_does_not_find(
    channel: grpc.Channel, question: dict[str, str], code: grpc.StatusCode
) -> None:
    assert ask(channel, REFLECTION[0], **question).error_response.error_code == code.value[0]


# --- stopping


class Held:
    """A model whose requests end when the test lets them."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.release = threading.Event()

    def compute(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        request.cancellation.add_listener(self, self.release.set)
        self.has_begun.set()
        self.release.wait(10)
        yield respond_with(request, {})


def held_call(channel: grpc.Channel, held: Held) -> grpc.Future:
    request = messages.ModelInferRequest(model_name="held").SerializeToString()
    future = channel.unary_unary(INFER_SERVICE + "ModelInfer").future(request)
    assert held.has_begun.wait(10)
    return future


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def held_server(held: Held) -> FakeServer:
    return FakeServer(FakeModel(model_config("held", {}, {}), held.compute, is_quick=False))


def test_calls_in_flight_are_answered_before_the_server_closes(held: Held, held_server: FakeServer) -> None:
    with grpc_server(held_server) as front_end, open_channel(front_end) as channel:
        future = held_call(channel, held)
        front_end.stop_accepting()
        request = messages.ModelInferRequest(model_name="held").SerializeToString()
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(INFER_SERVICE + "ModelInfer")(request, timeout=5)
        assert (raised.value.code(), raised.value.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "GRPC server is shutting down and has stopped accepting new requests.",
        )
        closing = threading.Thread(target=front_end.close, args=(10,))
        closing.start()
        held.release.set()
        assert future.result(timeout=10)
        closing.join(10)
        assert not closing.is_alive()


def test_calls_that_outlast_the_grace_are_cancelled(held: Held, held_server: FakeServer) -> None:
    with grpc_server(held_server) as front_end, open_channel(front_end) as channel:
        future = held_call(channel, held)
        front_end.close(grace_s=0.05)
        assert held.release.is_set()
        with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
            future.result(timeout=10)


def test_a_closed_server_may_be_closed_again_and_leaves_no_thread() -> None:
    with grpc_server(fake_server()) as front_end, stock_client(front_end) as client:
        assert client.is_server_live()
        front_end.close(1)
        front_end.close(1)
        assert "cantata-grpc" not in [thread.name for thread in threading.enumerate()]


def test_servers_may_be_started_and_closed_again_and_again() -> None:
    for _ in range(20):
        with grpc_server(fake_server()) as front_end, stock_client(front_end) as client:
            assert client.infer("identity", four()).as_numpy("OUT").tolist() == FOUR.tolist()


# In either order: the client brings gRPC's own library into the process.
@pytest.mark.parametrize("imported_first", ["cantata.runtime.frontends.grpc.server", "tritonclient.grpc"])
def test_a_process_that_never_closes_its_server_ends_all_the_same(imported_first: str) -> None:
    program = f"""
import {imported_first}
from tests.support.fake_server import FakeServer, identity_model
from tests.support.grpc_servers import four, stock_client
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
front_end = GrpcServer(FakeServer(identity_model("identity")), GrpcOptions(address="127.0.0.1", port=0))
front_end.start()
with stock_client(front_end) as client:
    client.infer("identity", four())
print("done")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
