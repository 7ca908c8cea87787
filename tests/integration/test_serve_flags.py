"""Flags that show in a running `cantata serve`, each with a value that is not its default."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from cantata.runtime.inert_flags import INERT_ROWS
from tests.support.model_files import python_config, tensor_text, write_model

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")
# Answers with its parameters, as text.
ECHO = """
def execute(self, requests):
    return [
        pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([request.parameters().encode()], object))])
        for request in requests
    ]
"""


class Started(NamedTuple):
    """Where a server listens, and what it has logged."""

    http: str
    grpc: str
    metrics: str
    log: Path
    trace: Path


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("0.0.0.0", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def started(*flags: str, ready_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """`cantata serve` in a process, once it answers at `ready_url`."""
    command = [sys.executable, "-m", "cantata", "serve", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(ready_url, process)
        yield process
    finally:
        process.terminate()
        assert process.wait(60) == 0


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{url} is not answered")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("flags")
    config = python_config([IN], [tensor_text("OUTPUT", "STRING")])
    for name in ("echo", "unloaded"):
        directory = write_model(folder / "models", name, "this is no configuration", ECHO)
        (directory / "configs").mkdir()
        (directory / "configs" / "second.pbtxt").write_text(config)
    write_model(folder / "more", "broken", python_config([IN], [OUT]), code="raise RuntimeError('broken')")
    http, grpc, metrics = free_ports(3)
    values = {
        "model-repository": folder / "models",
        "model-store": folder / "more",
        "model-control-mode": "explicit",
        "model-config-name": "second",
        "model-load-thread-count": 1,
        "exit-on-error": "false",
        "strict-readiness": "false",
        "exit-timeout-secs": 20,
        "id": "mine",
        "allow-client-shm": "true",
        "http-address": "127.0.0.2",
        "http-port": http,
        "http-max-input-size": 1000,
        "http-header-forward-pattern": "x-(?!no).*",
        "http-restricted-api": "logging:secret=word",
        "grpc-address": "127.0.0.3",
        "grpc-port": grpc,
        "grpc-header-forward-pattern": "x-.*",
        "grpc-restricted-protocol": "logging:secret=word",
        "grpc-infer-response-compression-level": "high",
        "grpc-keepalive-time": 60_000,
        "grpc-keepalive-timeout": 5000,
        "grpc-keepalive-permit-without-calls": "true",
        "grpc-http2-max-pings-without-data": 0,
        "grpc-http2-min-recv-ping-interval-without-data": 1000,
        "grpc-http2-max-ping-strikes": 5,
        "grpc-max-connection-age": 600_000,
        "grpc-max-connection-age-grace": 1000,
        "metrics-address": "127.0.0.4",
        "metrics-port": metrics,
        "trace-config": f"triton,file={folder / 'trace.json'}",
        "trace-level": "TIMESTAMPS",
        "trace-rate": 1,
        "trace-count": 3,
        "trace-log-frequency": 0,
        "log-file": folder / "log",
        "log-format": "ISO8601",
        "log-verbose": 1,
        "log-info": "true",
        "log-warning": "false",
        "log-error": "true",
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    flags += ["--load-model=echo", "--load-model=broken", "--disable-auto-complete-config"]
    found = Started(
        f"127.0.0.2:{http}",
        f"127.0.0.3:{grpc}",
        f"127.0.0.4:{metrics}",
        folder / "log",
        folder / "trace.json",
    )
    with started(*flags, ready_url=f"http://{found.http}/v2/health/ready"):
        yield found


@pytest.fixture
def over_http(server: Started) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(server.http) as client:
        yield client


@pytest.fixture
def over_grpc(server: Started) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        yield client


def ones(triton: Any, count: int = 1) -> list[Any]:
    tensor = triton.InferInput("INPUT", [count], "FP32")
    values = np.ones(count, np.float32)
    if triton is triton_http:
        tensor.set_data_from_numpy(values, binary_data=False)
    else:
        tensor.set_data_from_numpy(values)
    return [tensor]


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_each_port_is_where_its_flags_say(server: Started) -> None:
    assert status_of(f"http://{server.http}/v2/health/live") == 200
    assert status_of(f"http://{server.metrics}/metrics") == 200
    for address in (server.http, server.grpc, server.metrics):
        elsewhere = ("127.0.0.9", int(address.split(":")[1]))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(elsewhere, timeout=5)


def test_the_server_has_its_name(
    over_http: triton_http.InferenceServerClient, over_grpc: triton_grpc.InferenceServerClient
) -> None:
    assert over_http.get_server_metadata()["name"] == "mine"
    assert over_grpc.get_server_metadata().name == "mine"


def test_the_models_that_are_named_are_loaded_from_every_repository(
    over_http: triton_http.InferenceServerClient,
) -> None:
    states = {entry["name"]: entry.get("state", "") for entry in over_http.get_model_repository_index()}
    assert states == {"echo": "READY", "broken": "UNAVAILABLE", "unloaded": ""}
    over_http.load_model("unloaded")
    assert over_http.is_model_ready("unloaded")
    over_http.unload_model("unloaded")


def test_a_server_with_a_failed_model_is_ready_where_that_is_allowed(
    over_http: triton_http.InferenceServerClient,
) -> None:
    assert over_http.is_server_ready()
    assert not over_http.is_model_ready("broken")


def test_headers_become_parameters(
    over_http: triton_http.InferenceServerClient, over_grpc: triton_grpc.InferenceServerClient
) -> None:
    headers = {"x-user": "me"}
    for triton, client in ((triton_http, over_http), (triton_grpc, over_grpc)):
        answer = client.infer("echo", ones(triton), headers=dict(headers)).as_numpy("OUTPUT")
        assert json.loads(answer[0]) == headers


def test_secrets_are_asked_for(
    over_http: triton_http.InferenceServerClient, over_grpc: triton_grpc.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        over_http.get_log_settings()
    with pytest.raises(InferenceServerException, match="restricted"):
        over_grpc.get_log_settings()
    assert over_http.get_log_settings(headers={"secret": "word"})["log_verbose_level"] == 1
    found = over_grpc.get_log_settings(headers={"triton-grpc-protocol-secret": "word"}).settings
    assert (found["log_warning"].bool_param, found["log_format"].string_param) == (False, "ISO8601")


def test_json_over_the_limit_is_refused(over_http: triton_http.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Use --http-max-input-size to increase the limit"):
        over_http.infer("echo", ones(triton_http, 1000))


def test_clients_may_register_shared_memory(over_http: triton_http.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Unable to open shared memory region: '/none'"):
        over_http.register_system_shared_memory("r", "/none", 4)


def test_requests_are_traced(server: Started, over_http: triton_http.InferenceServerClient) -> None:
    settings = over_http.get_trace_settings()
    assert (settings["trace_level"], settings["trace_rate"]) == (["TIMESTAMPS"], "1")
    for _ in range(4):
        over_http.infer("echo", ones(triton_http))
    end = time.monotonic() + 30
    while not server.trace.exists() or "REQUEST_END" not in server.trace.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_log_is_in_its_file_and_form(server: Started) -> None:
    lines = server.log.read_text().splitlines()
    assert any(line[:4].isdigit() and "Z E" in line and "broken" in line for line in lines), lines[:5]
    assert any("HTTP: listening at 127.0.0.2" in line for line in lines)


def test_two_servers_share_their_ports_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    http, grpc, metrics = free_ports(3)
    flags = [
        f"--model-repository={tmp_path / 'models'}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--metrics-port={metrics}",
        "--reuse-http-port=true",
        "--reuse-grpc-port=true",
    ]
    url = f"http://127.0.0.1:{http}/v2/health/live"
    with started(*flags, ready_url=url) as first, started(*flags, ready_url=url) as second:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc}") as client:
            assert client.is_server_live()
        # The second answers nobody for sure until the first is gone.
        first.terminate()
        assert first.wait(60) == 0
        wait_for(url, second)
        assert status_of(f"http://127.0.0.1:{metrics}/metrics") == 200


def test_protocols_can_be_left_out_and_flags_without_effect_are_harmless(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (metrics,) = free_ports(1)
    inert = [f"--{name}={default}" for name, _, default, *_ in INERT_ROWS]
    flags = [
        f"--model-repository={tmp_path / 'models'}",
        "--allow-http=false",
        "--allow-grpc=false",
        f"--metrics-port={metrics}",
        "--metrics-address=127.0.0.1",
        "--allow-cpu-metrics=false",
        f"--log-file={tmp_path / 'log'}",
        *inert,
    ]
    url = f"http://127.0.0.1:{metrics}/metrics"
    with started(*flags, ready_url=url), urllib.request.urlopen(url, timeout=20) as answer:
        assert b"nv_cpu" not in answer.read()
        log = (tmp_path / "log").read_text()
    assert all(f"--{row[0]} has no effect" in log for row in INERT_ROWS)
    assert "HTTP: listening" not in log
