"""Log and trace settings over both protocols with the stock clients, and what a trace file then holds."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from cantata.grammars import messages
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.observe.logs import LogSettings, configure_logging, log_settings
from cantata.runtime.observe.trace_settings import TraceSettings
from cantata.runtime.options import ServerOptions
from cantata.runtime.server import Server
from tests.support.model_files import ensemble_config, step_text, tensor_text, write_add, write_model


class Running:
    """A server of `chain`, which is add_1 then add_10, with a client for each protocol."""

    def __init__(self, repository: Path, trace: TraceSettings) -> None:
        self.server = Server(ServerOptions(model_repository=(repository,), trace=trace))
        self.http_server = HttpServer(self.server, HttpOptions(address="127.0.0.1", port=0))
        self.grpc_server = GrpcServer(self.server, GrpcOptions(address="127.0.0.1", port=0))

    @contextmanager
    def started(self) -> Iterator[Running]:
        self.server.start()
        self.http_server.start()
        self.grpc_server.start()
        address = f"127.0.0.1:{self.http_server.port}"
        self.raw = httpx.Client(base_url=f"http://{address}")
        self.http = triton_http.InferenceServerClient(address)
        self.grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{self.grpc_server.port}")
        try:
            yield self
        finally:
            self.raw.close()
            self.http.close()
            self.grpc.close()
            self.grpc_server.close()
            self.http_server.close()
            self.server.close()

    def infer(self, triton: Any, model: str, request_id: str = "") -> None:
        client = self.http if triton is triton_http else self.grpc
        tensor = triton.InferInput("INPUT", [2], "FP32")
        tensor.set_data_from_numpy(np.array([1, 2], np.float32))
        client.infer(model, [tensor], request_id=request_id)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    repository = tmp_path_factory.mktemp("models")
    one, ten = write_add(repository, 1), write_add(repository, 10)
    steps = [
        step_text(one, {"INPUT": "INPUT"}, {"OUTPUT": "MIDDLE"}),
        step_text(ten, {"INPUT": "MIDDLE"}, {"OUTPUT": "OUTPUT"}),
    ]
    write_model(repository, "chain", ensemble_config([tensor_text("INPUT")], [tensor_text("OUTPUT")], steps))
    trace = TraceSettings(("OFF",), rate=1, file=str(repository.parent / "trace.json"))
    logger = logging.getLogger("cantata")
    handlers, level, propagates, before = logger.handlers[:], logger.level, logger.propagate, log_settings()
    with Running(repository, trace).started() as made:
        yield made
    configure_logging(before)
    logger.handlers[:], logger.propagate = handlers, propagates
    logger.setLevel(level)


def traced(running: Running) -> list[dict[str, Any]]:
    """All events that have been written."""
    file = Path(running.server.tracer.settings().file)
    return list(json.loads(file.read_text())) if file.exists() else []


def traced_after(running: Running, before: int) -> list[dict[str, Any]]:
    """The events beyond the first `before`, once there are some: a trace is written after its request's answer."""
    for _ in range(1000):
        events = traced(running)[before:]
        if events:
            return events
        time.sleep(0.01)
    raise AssertionError("nothing was traced")


LOG_DEFAULTS = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


def test_log_settings_over_http(running: Running) -> None:
    configure_logging(LogSettings())
    assert running.http.get_log_settings() == LOG_DEFAULTS
    changed = running.http.update_log_settings({"log_verbose_level": 1, "log_format": "ISO8601"})
    assert changed == {**LOG_DEFAULTS, "log_verbose_level": 1, "log_format": "ISO8601"}
    assert logging.getLogger("cantata").isEnabledFor(logging.DEBUG)
    assert running.raw.post("/v2/logging", json={"log_info": None, "bogus": 1}).json() == changed
    running.http.update_log_settings({"log_verbose_level": 0, "log_format": "default"})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"log_file": "f"}, 501, "log file location can not be updated through network protocol"),
        ({"log_format": "xml"}, 503, "invalid argument for --log_format, got: xml"),
        ({"log_info": 1}, 400, "Unable to parse 'log_info': attempt to access JSON non-boolean as boolean"),
    ],
)
def test_log_settings_that_cannot_be_over_http(
    running: Running, body: dict[str, object], status: int, message: str
) -> None:
    answer = running.raw.post("/v2/logging", json=body)
    assert (answer.status_code, answer.json()) == (status, {"error": message})


def test_log_settings_over_grpc(running: Running) -> None:
    configure_logging(LogSettings())
    running.grpc.update_log_settings({"log_info": False, "log_verbose_level": 2})
    found = running.grpc.get_log_settings().settings
    assert {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in found.items()} == {
        **LOG_DEFAULTS,
        "log_info": False,
        "log_verbose_level": 2,
    }
    running.grpc.update_log_settings({"log_info": True, "log_verbose_level": 0})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("log_file", {"string_param": "f"}, "log file location can not be updated through network protocol"),
        ("log_format", {"string_param": "xml"}, "invalid argument for log_format, got: xml"),
        ("log_info", {"string_param": "yes"}, "expect boolean for 'log_info'"),
        ("log_format", {"bool_param": True}, "expect string for 'log_format'"),
    ],
)
def test_log_settings_that_cannot_be_over_grpc(
    running: Running, name: str, value: dict[str, object], message: str
) -> None:
    request = messages.LogSettingsRequest()
    request.settings[name].MergeFrom(messages.LogSettingsRequest.SettingValue(**value))
    with (
        grpc.insecure_channel(f"127.0.0.1:{running.grpc_server.port}") as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.unary_unary("/inference.GRPCInferenceService/LogSettings")(
            request.SerializeToString(), timeout=10
        )
    assert refused.value.details() == message


TRACE_DEFAULTS = {
    "trace_level": ["OFF"],
    "trace_rate": "1",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "triton",
}


def test_trace_settings_over_http(running: Running) -> None:
    file = running.server.tracer.settings().file
    assert running.http.get_trace_settings() == {**TRACE_DEFAULTS, "trace_file": file}
    assert list(running.http.get_trace_settings()) == [
        "trace_level",
        "trace_rate",
        "trace_count",
        "log_frequency",
        "trace_file",
        "trace_mode",
    ]
    changed = running.http.update_trace_settings("chain", {"trace_rate": "5"})
    assert changed["trace_rate"] == running.http.get_trace_settings("chain")["trace_rate"] == "5"
    assert running.http.get_trace_settings("add_1")["trace_rate"] == "1"
    running.http.update_trace_settings("chain", {"trace_rate": None})
    assert running.http.get_trace_settings("chain")["trace_rate"] == "1"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (
            "/v2/trace/setting",
            {"trace_file": "f"},
            501,
            "trace file location can not be updated through network protocol",
        ),
        ("/v2/trace/setting", {"trace_rate": "x"}, 400, "Unable to parse 'trace_rate', got: x"),
        (
            "/v2/models/nobody/trace/setting",
            {},
            400,
            "Request for unknown model: 'nobody' is not found",
        ),
    ],
)
def test_trace_settings_that_cannot_be_over_http(
    running: Running, path: str, body: dict[str, object], status: int, message: str
) -> None:
    answer = running.raw.post(path, json=body)
    assert (answer.status_code, answer.json()) == (status, {"error": message})


def test_a_path_with_a_version_has_no_trace_settings(running: Running) -> None:
    answer = running.raw.get("/v2/models/chain/versions/1/trace/setting")
    assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})


def test_trace_settings_over_grpc(running: Running) -> None:
    file = running.server.tracer.settings().file
    found = running.grpc.get_trace_settings().settings
    assert {name: list(value.value) for name, value in found.items()} == {
        **{name: value if isinstance(value, list) else [value] for name, value in TRACE_DEFAULTS.items()},
        "trace_file": [file],
    }
    running.grpc.update_trace_settings("chain", {"trace_count": "3"})
    assert list(running.grpc.get_trace_settings("chain").settings["trace_count"].value) == ["3"]
    running.grpc.update_trace_settings("chain", {"trace_count": None})
    with pytest.raises(InferenceServerException, match="expect only 1 value for 'trace_rate'"):
        running.grpc.update_trace_settings(settings={"trace_rate": ["1", "2"]})
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
        running.grpc.get_trace_settings("nobody")


@pytest.mark.parametrize(
    ("triton", "received", "sent"),
    [(triton_http, "HTTP_RECV", "HTTP_SEND"), (triton_grpc, "GRPC_WAITREAD", "GRPC_SEND")],
)
def test_a_traced_request_leaves_its_moments_and_those_of_its_steps(
    running: Running, triton: Any, received: str, sent: str
) -> None:
    before = len(traced(running))
    running.http.update_trace_settings(
        "chain", {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_count": "1"}
    )
    running.infer(triton, "chain", "first")
    running.infer(triton, "chain", "not traced")
    running.infer(triton, "add_1", "not traced")
    running.http.update_trace_settings("chain", {"trace_level": None, "trace_count": None})
    assert not running.server.tracer.is_on
    events = traced_after(running, before)
    heads = [event for event in events if "model_name" in event]
    first = heads[0]["id"]
    assert heads == [
        {"id": first, "model_name": "chain", "model_version": 1, "request_id": "first"},
        {
            "id": first + 1,
            "model_name": "add_1",
            "model_version": 1,
            "request_id": "first",
            "parent_id": first,
        },
        {
            "id": first + 2,
            "model_name": "add_10",
            "model_version": 1,
            "request_id": "first",
            "parent_id": first,
        },
    ]
    moments = {
        name: [
            moment["ns"] for event in events if event["id"] == id for moment in event.get("timestamps", ())
        ]
        for name, id in (("chain", first), ("add_1", first + 1))
    }
    names = {
        event["timestamps"][0]["name"] for event in events if event["id"] == first and "timestamps" in event
    }
    assert names == {
        f"{received}_START",
        f"{received}_END",
        "REQUEST_START",
        "QUEUE_START",
        "INFER_RESPONSE_COMPLETE",
        f"{sent}_START",
        f"{sent}_END",
        "REQUEST_END",
    }
    names = {
        event["timestamps"][0]["name"]
        for event in events
        if event["id"] == first + 1 and "timestamps" in event
    }
    assert names == {
        "REQUEST_START",
        "QUEUE_START",
        "COMPUTE_START",
        "COMPUTE_INPUT_END",
        "COMPUTE_OUTPUT_START",
        "COMPUTE_END",
        "INFER_RESPONSE_COMPLETE",
        "REQUEST_END",
    }
    assert min(moments["chain"]) < min(moments["add_1"]) < max(moments["add_1"]) < max(moments["chain"])
    tensors = [event for event in events if "tensor" in event]
    assert {"TENSOR_QUEUE_INPUT", "TENSOR_BACKEND_OUTPUT"} == {event["activity"] for event in tensors}
    assert {"name": "OUTPUT", "data": "12,13", "shape": "2", "dtype": "FP32"} in [
        event["tensor"] for event in tensors
    ]


def test_a_request_that_is_refused_does_not_end_tracing(running: Running) -> None:
    running.http.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
    tensor = triton_http.InferInput("WRONG", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    with pytest.raises(InferenceServerException):
        running.http.infer("add_1", [tensor])
    before = len(traced(running))
    running.infer(triton_http, "add_1")
    running.http.update_trace_settings(settings={"trace_level": None})
    assert traced_after(running, before)
