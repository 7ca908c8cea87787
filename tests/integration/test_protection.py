"""TLS, keys and limits as flags set them, against real clients, good and bad, of each port."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import resource
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from hpack import Encoder
from tritonclient.utils import InferenceServerException

from cantata.grammars import messages
from cantata.runtime.datatypes import DataType
from cantata.runtime.flags import SERVE_FLAGS, FlagError, parse_flags
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.serve_options import serve_options
from cantata.runtime.server import Server
from tests.support.certificates import Certificates, issue_certificates
from tests.support.fake_server import FakeServer, identity_model
from tests.support.grpc_servers import FOUR, INFER_SERVICE
from tests.support.http2_client import http2_client

LARGE = 8 << 20


class Ports(NamedTuple):
    http: int
    grpc: int
    metrics: int


@contextmanager
def protected(*flags: str) -> Iterator[Ports]:
    """A server of fake models, started with these flags of `cantata serve`."""
    ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
    addresses = ("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--model-repository=none")
    options = serve_options(*parse_flags((*ports, *addresses, *flags), SERVE_FLAGS))
    fake = FakeServer(identity_model("echo"), identity_model("vector", DataType.FP32, (-1,)))
    server = cast(Server, fake)
    assert options.http is not None
    assert options.grpc is not None
    http_front_end, grpc_front_end = HttpServer(server, options.http), GrpcServer(server, options.grpc)
    try:
        http_front_end.start()
        grpc_front_end.start()
        assert http_front_end.port is not None
        assert http_front_end.metrics_port is not None
        yield Ports(http_front_end.port, grpc_front_end.port, http_front_end.metrics_port)
    finally:
        grpc_front_end.close()
        http_front_end.close()
        fake.close()


def echo_input(triton: Any, values: Any = FOUR) -> list[Any]:
    tensor = triton.InferInput("IN", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


# --- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue_certificates(tmp_path_factory.mktemp("certificates"))


def tls_flags(certificates: Certificates, protocol: str, *, mutual: bool = False) -> list[str]:
    flags = [
        f"--{protocol}-use-ssl=true",
        f"--{protocol}-server-cert={certificates.server_cert}",
        f"--{protocol}-server-key={certificates.server_key}",
    ]
    if mutual:
        flags += [f"--{protocol}-use-ssl-mutual=true", f"--{protocol}-root-cert={certificates.root}"]
    return flags


@pytest.fixture(scope="module")
def over_tls(certificates: Certificates) -> Iterator[Ports]:
    flags = [*tls_flags(certificates, "http"), *tls_flags(certificates, "grpc"), "--metrics-use-ssl=true"]
    with protected(*flags) as ports:
        yield ports


@pytest.fixture(scope="module")
def over_mutual_tls(certificates: Certificates) -> Iterator[Ports]:
    flags = [*tls_flags(certificates, "http", mutual=True), *tls_flags(certificates, "grpc", mutual=True)]
    with protected(*flags) as ports:
        yield ports


def first_status(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/v2")
    return connection.getresponse().status


def http_client(port: int, **ssl_options: Any) -> triton_http.InferenceServerClient:
    return triton_http.InferenceServerClient(f"localhost:{port}", ssl=True, ssl_options=ssl_options)


def grpc_client(
    port: int, root: Path, key: Path | None = None, cert: Path | None = None
) -> triton_grpc.InferenceServerClient:
    return triton_grpc.InferenceServerClient(
        f"localhost:{port}",
        ssl=True,
        root_certificates=str(root),
        private_key=key and str(key),
        certificate_chain=cert and str(cert),
    )


def client_context(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.root))


def test_the_stock_clients_speak_tls(over_tls: Ports, certificates: Certificates) -> None:
    with http_client(over_tls.http, ca_certs=str(certificates.root)) as client:
        assert client.infer("echo", echo_input(triton_http)).as_numpy("OUT").tolist() == FOUR.tolist()
    with grpc_client(over_tls.grpc, certificates.root) as client:
        assert client.infer("echo", echo_input(triton_grpc)).as_numpy("OUT").tolist() == FOUR.tolist()


def test_the_stock_asynchronous_clients_speak_tls(over_tls: Ports, certificates: Certificates) -> None:
    async def infer() -> list[Any]:
        context = client_context(certificates)
        over_http = triton_http_aio.InferenceServerClient(
            f"localhost:{over_tls.http}", ssl=True, ssl_context=context
        )
        over_grpc = triton_grpc_aio.InferenceServerClient(
            f"localhost:{over_tls.grpc}", ssl=True, root_certificates=str(certificates.root)
        )
        async with over_http, over_grpc:
            first = await over_http.infer("echo", echo_input(triton_http_aio))
            second = await over_grpc.infer("echo", echo_input(triton_grpc_aio))
            return [first.as_numpy("OUT").tolist(), second.as_numpy("OUT").tolist()]

    assert asyncio.run(infer()) == [FOUR.tolist(), FOUR.tolist()]


def test_large_tensors_pass_over_tls(over_tls: Ports, certificates: Certificates) -> None:
    values = np.arange(LARGE // 4, dtype=np.float32)
    with http_client(over_tls.http, ca_certs=str(certificates.root)) as client:
        assert np.array_equal(client.infer("vector", echo_input(triton_http, values)).as_numpy("OUT"), values)


def test_metrics_are_served_over_tls_where_that_is_asked_for(
    over_tls: Ports, certificates: Certificates
) -> None:
    context = client_context(certificates)
    connection = http.client.HTTPSConnection("localhost", over_tls.metrics, context=context, timeout=20)
    connection.request("GET", "/metrics")
    assert b"nv_" in connection.getresponse().read()
    connection.close()


def test_a_plain_client_is_not_served_over_tls(over_tls: Ports) -> None:
    connection = http.client.HTTPConnection("localhost", over_tls.http, timeout=20)
    with pytest.raises((OSError, http.client.HTTPException)):
        first_status(connection)
    connection.close()
    with (
        triton_grpc.InferenceServerClient(f"localhost:{over_tls.grpc}") as client,
        pytest.raises(InferenceServerException),
    ):
        client.is_server_live(client_timeout=10)


def test_who_has_a_certificate_is_served_over_mutual_tls(
    over_mutual_tls: Ports, certificates: Certificates
) -> None:
    shown = {"certfile": str(certificates.client_cert), "keyfile": str(certificates.client_key)}
    with http_client(over_mutual_tls.http, ca_certs=str(certificates.root), **shown) as client:
        assert client.is_server_live()
    with grpc_client(
        over_mutual_tls.grpc, certificates.root, certificates.client_key, certificates.client_cert
    ) as client:
        assert client.is_server_live()


@pytest.mark.parametrize("is_stranger", [False, True], ids=["no certificate", "a stranger's"])
def test_who_has_none_is_not_served_over_mutual_tls(
    over_mutual_tls: Ports, certificates: Certificates, is_stranger: bool
) -> None:
    context = client_context(certificates)
    if is_stranger:
        context.load_cert_chain(certificates.stranger_cert, certificates.stranger_key)
    connection = http.client.HTTPSConnection("localhost", over_mutual_tls.http, context=context, timeout=20)
    with pytest.raises((OSError, http.client.HTTPException)):
        first_status(connection)
    connection.close()
    key = certificates.stranger_key if is_stranger else None
    cert = certificates.stranger_cert if is_stranger else None
    with (
        grpc_client(over_mutual_tls.grpc, certificates.root, key, cert) as client,
        pytest.raises(InferenceServerException),
    ):
        client.is_server_live(client_timeout=10)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--http-use-ssl=true"], "--http-use-ssl needs --http-server-cert and --http-server-key"),
        (["--grpc-use-ssl=true"], "--grpc-use-ssl needs --grpc-server-cert and --grpc-server-key"),
        (
            ["--http-use-ssl-mutual=1", "--http-server-cert=a", "--http-server-key=b"],
            "--http-use-ssl-mutual needs --http-root-cert",
        ),
        (["--metrics-use-ssl=true"], "--metrics-use-ssl shares the certificates of HTTP"),
        (["--http-header-timeout=-1"], "--http-header-timeout expects a number between 0 and"),
        (["--api-keys=x"], "--api-keys expects <group>"),
    ],
)
def test_flags_that_cannot_protect_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(FlagError) as refused:
        serve_options(*parse_flags(["--model-repository=none", *flags], SERVE_FLAGS))
    assert message in str(refused.value)


def test_certificates_that_will_not_do_are_named(certificates: Certificates) -> None:
    flags = tls_flags(certificates, "http")
    flags[2] = f"--http-server-key={certificates.client_key}"
    with (
        pytest.raises(OSError, match=r"HTTP cannot use TLS with .*server\.pem.*client\.key"),
        protected(*flags),
    ):
        pass


# --- keys


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("# who may infer\nopen-sesame\nsecond\n")
    with protected(f"--api-keys=inference,metadata,metrics:file={file}") as ports:
        yield ports


KEYS = [{"authorization": "Bearer open-sesame"}, {"x-api-key": "second"}]
NO_KEYS: list[dict[str, str]] = [{}, {"authorization": "Bearer no"}, {"x-api-key": "open"}]


@pytest.mark.parametrize("headers", KEYS, ids=str)
def test_who_shows_a_key_is_served(with_keys: Ports, headers: dict[str, str]) -> None:
    with triton_http.InferenceServerClient(f"localhost:{with_keys.http}") as client:
        assert (
            client.infer("echo", echo_input(triton_http), headers=dict(headers)).as_numpy("OUT") is not None
        )
        assert client.get_server_metadata(headers=headers)["name"] == "triton"
    with triton_grpc.InferenceServerClient(f"localhost:{with_keys.grpc}") as client:
        assert client.infer("echo", echo_input(triton_grpc), headers=headers).as_numpy("OUT") is not None
    assert asked(with_keys.metrics, "/metrics", headers)[0] == 200


@pytest.mark.parametrize("headers", NO_KEYS, ids=str)
def test_who_shows_none_is_not_served_on_any_port(with_keys: Ports, headers: dict[str, str]) -> None:
    for port, path, method in (
        (with_keys.http, "/v2/models/echo/infer", "POST"),
        (with_keys.http, "/v2/models/echo/generate", "POST"),
        (with_keys.http, "/v2", "GET"),
        (with_keys.metrics, "/metrics", "GET"),
    ):
        status, body, received = asked(port, path, headers, method, bytes(1000))
        assert (status, received["WWW-Authenticate"]) == (401, "Bearer"), path
        assert b"This API needs a key" in body
    with triton_grpc.InferenceServerClient(f"localhost:{with_keys.grpc}") as client:
        for call in (
            client.get_server_metadata,
            lambda **more: client.infer("echo", echo_input(triton_grpc), **more),
        ):
            with pytest.raises(InferenceServerException) as refused:
                call(headers=headers)
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"


def test_groups_without_keys_are_open(with_keys: Ports) -> None:
    assert asked(with_keys.http, "/v2/health/ready", {})[0] == 200
    with triton_grpc.InferenceServerClient(f"localhost:{with_keys.grpc}") as client:
        assert client.is_server_ready()


def test_keys_and_restricted_apis_are_both_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANTATA_TEST_KEY", "key")
    with protected(
        "--api-keys=all:env=CANTATA_TEST_KEY", "--http-restricted-api=health:secret=word"
    ) as ports:
        live = "/v2/health/live"
        assert asked(ports.http, live, {"secret": "word"})[0] == 401
        assert asked(ports.http, live, {"x-api-key": "key"})[0] == 403
        assert asked(ports.http, live, {"x-api-key": "key", "secret": "word"})[0] == 200


def asked(
    port: int, path: str, headers: dict[str, str], method: str = "GET", body: bytes = b""
) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


# --- limits


@pytest.fixture(scope="module")
def limited() -> Iterator[Ports]:
    flags = {
        "http-max-request-size": 1 << 20,
        "http-max-input-size": 1 << 19,
        "http-max-header-size": 4096,
        "http-max-header-count": 20,
        "http-header-timeout": 1000,
        "http-body-timeout": 1000,
        "http-write-timeout": 1000,
        "http-keepalive-timeout": 1000,
        "grpc-max-message-size": 1 << 20,
        "grpc-max-decompressed-size": 1 << 19,
        "grpc-max-metadata-size": 4096,
    }
    with protected(*(f"--{name}={value}" for name, value in flags.items())) as ports:
        yield ports


HEAD = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"X: " + b"x" * 5000 + b"\r\n\r\n", 431),
        (HEAD + b"X: y\r\n" * 25 + b"\r\n", 431),
        (HEAD + b"Content-Length: 1048577\r\n\r\n" + bytes(100_000), 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + bytes(65536) + b"\r\n") * 17, 413),
        (HEAD + b"Content-Length: 1000\r\n\r\nx", 408),
        (HEAD, 408),
    ],
    ids=["long head", "many headers", "long body", "long chunked body", "slow body", "slow head"],
)
def test_what_is_too_much_or_too_slow_is_refused(limited: Ports, sent: bytes, status: int) -> None:
    answer = exchanged(limited.http, sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close\r\n" in answer
    assert b'{"error":"' in answer


def test_a_connection_without_requests_is_closed(limited: Ports) -> None:
    assert exchanged(limited.http, b"") == b""
    assert exchanged(limited.http, b"GET /v2/health/live HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def exchanged(port: int, sent: bytes) -> bytes:
    """All that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with suppress(ConnectionError):
            connection.sendall(sent)
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


def test_who_does_not_read_the_answer_is_cut_off() -> None:
    with protected("--http-write-timeout=1000") as ports:
        body, header = binary_request(np.zeros(LARGE, np.float32))
        head = b"POST /v2/models/vector/infer HTTP/1.1\r\nContent-Length: %d\r\n%s\r\n" % (len(body), header)
        with socket.create_connection(("127.0.0.1", ports.http), timeout=30) as connection:
            connection.sendall(head + body)
            assert connection.recv(1024).startswith(b"HTTP/1.1 200 ")
            # Nothing more is read: the server gives up, and what the kernel still holds is all that ever comes.
            wait_until(lambda: not is_established(ports.http))


def binary_request(values: Any) -> tuple[bytes, bytes]:
    tensor = {
        "name": "IN",
        "shape": [values.size],
        "datatype": "FP32",
        "parameters": {"binary_data_size": values.nbytes},
    }
    document = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return document + values.tobytes(), b"Inference-Header-Content-Length: %d\r\n" % len(document)


def is_established(port: int) -> bool:
    """Whether the server has an open connection at `port`."""
    found = psutil.Process().net_connections("tcp")
    return any(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in found)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_more_connections_than_allowed_are_told_so() -> None:
    with protected("--http-max-connections=2", "--grpc-max-connections=2") as ports, ExitStack() as stack:
        for _ in range(2):
            kept = http.client.HTTPConnection("127.0.0.1", ports.http, timeout=20)
            stack.callback(kept.close)
            kept.request("GET", "/v2/health/live")
            assert kept.getresponse().read() == b""
        status, body, headers = asked(ports.http, "/v2/health/live", {})
        assert (status, headers["Retry-After"]) == (503, "1")
        assert body == b'{"error":"there are too many connections"}'
        clients = [
            stack.enter_context(own_channel(ports.grpc)).unary_unary(INFER_SERVICE + "ServerLive")
            for _ in range(3)
        ]
        for client in clients[:2]:
            assert client(b"", timeout=20)
        with pytest.raises(grpc.RpcError) as refused:
            clients[2](b"", timeout=5)
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_idle_and_half_open_connections_of_grpc_are_closed() -> None:
    with protected("--grpc-max-connection-idle=1000", "--grpc-handshake-timeout=1000") as ports:
        silent = socket.create_connection(("127.0.0.1", ports.grpc), timeout=30)
        with silent, own_channel(ports.grpc) as channel:
            assert channel.unary_unary(INFER_SERVICE + "ServerLive")(b"", timeout=20)
            wait_until(lambda: not is_established(ports.grpc))


def test_who_does_not_take_the_answers_of_a_call_is_cut_off() -> None:
    block = Encoder().encode(
        [
            *((":method", "POST"), (":scheme", "http"), (":path", INFER_SERVICE + "ModelInfer")),
            *((":authority", "h"), ("te", "trailers"), ("content-type", "application/grpc")),
        ]
    )
    message = vector_message(1 << 20)
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    pieces = [body[start : start + 16384] for start in range(0, len(body), 16384)]
    with ExitStack() as stack:
        ports = stack.enter_context(protected("--grpc-write-timeout=500"))
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", ports.grpc), timeout=30))
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block))
        for piece in pieces:
            connection.sendall(frame(0, int(piece is pieces[-1]), 1, piece))
        # The windows stay as they are: of a mebibyte, 64 KiB may be sent.
        received = 0
        with suppress(ConnectionError):
            while more := connection.recv(65536):
                received += len(more)
        assert 65535 < received < 1 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def own_channel(port: int, **more: Any) -> grpc.Channel:
    """A channel that shares its connection with no other."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options, **more)


def infer_code(port: int, message: bytes, metadata: Any = (), **more: Any) -> grpc.StatusCode:
    with own_channel(port, **more) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(INFER_SERVICE + "ModelInfer")(message, timeout=30, metadata=metadata)
    code: grpc.StatusCode = refused.value.code()
    return code


def vector_message(size: int) -> bytes:
    message = messages.ModelInferRequest(model_name="vector", raw_input_contents=[bytes(size)])
    message.inputs.add(name="IN", datatype="FP32", shape=[size // 4])
    data: bytes = message.SerializeToString()
    return data


def test_messages_and_metadata_that_are_too_large_are_refused(limited: Ports) -> None:
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert infer_code(limited.grpc, vector_message(1 << 20)) is exhausted
    assert infer_code(limited.grpc, vector_message(4), [("x", "y" * 5000)]) is exhausted


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_read_up_to_their_limit(
    limited: Ports, compression: grpc.Compression
) -> None:
    with own_channel(limited.grpc, compression=compression) as channel:
        answer = channel.unary_unary(INFER_SERVICE + "ModelInfer")(vector_message(400_000), timeout=20)
        assert len(messages.ModelInferResponse.FromString(answer).raw_output_contents[0]) == 400_000
        call = channel.stream_stream(INFER_SERVICE + "ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter([vector_message(600_000)]), timeout=20))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    too_much = infer_code(limited.grpc, vector_message(600_000), compression=compression)
    assert too_much is grpc.StatusCode.RESOURCE_EXHAUSTED


def bomb(size: int) -> bytes:
    """`size` zeros in gzip, a thousandth as long: the same flushed mebibyte again and again."""
    stream = zlib.compressobj(9, wbits=31)
    begin = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    piece = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return begin + piece * ((size >> 20) - 1) + stream.flush()


def test_a_gigabyte_inside_a_megabyte_is_refused_before_it_is_one() -> None:
    packed = bomb(1 << 30)
    assert len(packed) < 2 << 20
    with protected() as ports:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        status, body, _ = asked(
            ports.http, "/v2/models/echo/infer", {"Content-Encoding": "gzip"}, "POST", packed
        )
        assert (status, b"exceeds the maximum allowed input size" in body) == (400, True)
        # gRPC's own clients compress by themselves, and could not be given a bomb.
        with http2_client(ports.grpc) as client:
            client.call(1, packed, flag=1, path=INFER_SERVICE + "ModelInfer", grpc_encoding="gzip")
            assert client.answer(1).headers["grpc-status"] == "8"
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kb < 400 << 10


def test_an_honest_compressed_request_is_served(limited: Ports) -> None:
    values = np.zeros(100_000, np.float32)
    body, header = binary_request(values)
    name, value = header.decode().strip().split(": ")
    headers = {name: value, "Content-Encoding": "gzip"}
    status, answer, _ = asked(
        limited.http, "/v2/models/vector/infer", headers, "POST", gzip.compress(body, 1)
    )
    assert (status, len(answer) > values.nbytes) == (200, True)
