"""Spans of requests, steps and calls, as a collector gets them, over both protocols and in both isolations."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from cantata.runtime.errors import InferenceError
from cantata.runtime.observe.trace_settings import OpenTelemetryOptions, TraceSettings
from tests.support.model_files import ensemble_config, python_config, step_text, tensor_text, write_model
from tests.support.otlp_collector import Collector, Span, otlp_collector
from tests.support.served import Served, served
from tests.support.wire_servers import wire_server

PROCESS = 'parameters { key: "EXECUTION_ISOLATION" value { string_value: "process" } }'
# Answers with the context that it could hand on; the value 13 is no good.
LEAF = """
def execute(self, requests):
    responses = []
    for request in requests:
        value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        if value[0] == 13:
            responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("unlucky")))
            continue
        context = request.trace().get_context() or ""
        assert request.trace().context == (context or None)
        responses.append(pb_utils.InferenceResponse([
            pb_utils.Tensor("OUTPUT", value),
            pb_utils.Tensor("CONTEXT", np.array([context], np.object_)),
        ]))
    return responses
"""
# Calls the leaf; with several requests in its batch, the trace says which of them a call is for.
CALLER = """
def execute(self, requests):
    responses = []
    for request in requests:
        answer = pb_utils.InferenceRequest(
            model_name="leaf", inputs=[pb_utils.get_input_tensor_by_name(request, "INPUT")],
            requested_output_names=["OUTPUT", "CONTEXT"], request_id=request.request_id(),
            trace=request.trace()).exec()
        responses.append(pb_utils.InferenceResponse(answer.output_tensors(), answer.error()))
    return responses
"""
ASYNC_CALLER = """
async def execute(self, requests):
    calls = [
        pb_utils.InferenceRequest(
            model_name="leaf", inputs=[pb_utils.get_input_tensor_by_name(request, "INPUT")],
            requested_output_names=["OUTPUT", "CONTEXT"], request_id=request.request_id()).async_exec()
        for request in requests]
    return [pb_utils.InferenceResponse(answer.output_tensors(), answer.error())
            for answer in await asyncio.gather(*calls)]
"""
PIPELINE = """
import json
from cantata import bls

@bls.model(inputs={"INPUT": bls.FP32[-1]}, outputs={"OUTPUT": bls.FP32[-1], "CONTEXT": bls.BYTES[-1]})
async def pipeline(INPUT):
    if INPUT[0] == 2:
        return {"OUTPUT": INPUT, "CONTEXT": [json.dumps(dict(bls.request().trace_headers))]}
    return dict(await bls.call("leaf", INPUT=INPUT))
"""
CALLERS = ("caller", "caller_process", "async_caller", "pipeline", "pipeline_process")
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID, PARENT_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
SERVER_KIND = 2
FAILED = 2


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    tensors = [tensor_text("INPUT")], [tensor_text("OUTPUT"), tensor_text("CONTEXT", "STRING")]
    write_model(repository, "leaf", python_config(*tensors), LEAF)
    write_model(repository, "caller", python_config(*tensors), CALLER)
    write_model(repository, "caller_process", python_config(*tensors, extra=PROCESS), CALLER)
    write_model(repository, "async_caller", python_config(*tensors), ASYNC_CALLER)
    write_model(repository, "pipeline", None, code=PIPELINE)
    write_model(repository, "pipeline_process", f'backend: "python"\n{PROCESS}', code=PIPELINE)
    steps = [
        step_text("leaf", {"INPUT": "INPUT"}, {"OUTPUT": "MIDDLE"}),
        step_text("caller", {"INPUT": "MIDDLE"}, {"OUTPUT": "OUTPUT", "CONTEXT": "CONTEXT"}),
    ]
    write_model(repository, "chain", ensemble_config(*tensors, steps))
    steps = [step_text("chain", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT", "CONTEXT": "CONTEXT"})]
    write_model(repository, "nested", ensemble_config(*tensors, steps))
    return repository


@pytest.fixture(scope="module")
def leaf_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("leaf")
    tensors = [tensor_text("INPUT")], [tensor_text("OUTPUT"), tensor_text("CONTEXT", "STRING")]
    write_model(repository, "leaf", python_config(*tensors), LEAF)
    return repository


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with otlp_collector() as made:
        yield made


def tracing(url: str, **options: Any) -> TraceSettings:
    exporting = OpenTelemetryOptions(url, (("team", "vision"),), schedule_delay_ms=20)
    return replace(TraceSettings(("TIMESTAMPS",), rate=1, open_telemetry=exporting), **options)


@pytest.fixture(scope="module")
def running(repository: Path, collector: Collector) -> Iterator[Served]:
    with served(repository, trace=tracing(collector.url)) as made:
        yield made


def infer(running: Served, triton: Any, model: str, value: float = 1, **options: Any) -> Any:
    tensor = triton.InferInput("INPUT", [1], "FP32")
    tensor.set_data_from_numpy(np.array([value], np.float32))
    client = running.http if triton is triton_http else running.grpc
    return client.infer(model, [tensor], **options)


def context_in(answer: Any) -> tuple[int, int]:
    """The trace and the span that a model was told."""
    _, trace, span, _ = json.loads(answer.as_numpy("CONTEXT")[0])["traceparent"].split("-")
    return int(trace, 16), int(span, 16)


def named(spans: list[Span], name: str) -> Span:
    [found] = [span for span in spans if span.name == name]
    return found


@pytest.fixture(params=[triton_http, triton_grpc], ids=["http", "grpc"])
def triton(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_request_is_a_span_with_its_models_and_its_computation_s(
    running: Served, collector: Collector, triton: Any, request: pytest.FixtureRequest
) -> None:
    request_id = request.node.name
    begun_ns = time.time_ns()
    told = context_in(infer(running, triton, "leaf", request_id=request_id))
    spans = collector.trace_of(request_id)
    ended_ns = time.time_ns()
    root, model, compute = (named(spans, name) for name in ("InferRequest", "leaf", "compute"))
    assert len(spans) == 3
    assert (root.parent, model.parent, compute.parent) == (0, root.id, model.id)
    assert told == (model.trace_id, model.id)
    assert {span.kind for span in spans} == {SERVER_KIND}
    assert {span.status for span in spans} == {0}
    number = model.attributes["triton.trace_id"]
    assert model.attributes == {
        "triton.model_name": "leaf",
        "triton.model_version": 1,
        "triton.trace_id": number,
        "triton.trace_parent_id": 0,
        "triton.request_id": request_id,
    }
    received, sent = ("HTTP_RECV", "HTTP_SEND") if triton is triton_http else ("GRPC_WAITREAD", "GRPC_SEND")
    assert list(root.events) == [
        f"{received}_START",
        f"{received}_END",
        "INFER_RESPONSE_COMPLETE",
        f"{sent}_START",
        f"{sent}_END",
    ]
    assert list(model.events) == ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
    assert list(compute.events) == [
        "COMPUTE_START",
        "COMPUTE_INPUT_END",
        "COMPUTE_OUTPUT_START",
        "COMPUTE_END",
    ]
    assert begun_ns <= root.start_ns <= model.start_ns <= compute.start_ns
    assert compute.end_ns <= model.end_ns <= root.end_ns <= ended_ns
    assert root.resource["service.name"] == "triton-inference-server"
    assert root.resource["team"] == "vision"


def test_steps_and_calls_are_spans_under_those_that_they_are_of(
    running: Served, collector: Collector, triton: Any, request: pytest.FixtureRequest
) -> None:
    request_id = request.node.name
    told = context_in(infer(running, triton, "chain", request_id=request_id))
    spans = collector.trace_of(request_id)
    root, chain, caller = (named(spans, name) for name in ("InferRequest", "chain", "caller"))
    leaves = {span.parent: span for span in spans if span.name == "leaf"}
    assert (chain.parent, caller.parent) == (root.id, chain.id)
    assert set(leaves) == {chain.id, caller.id}
    # An ensemble computes nothing itself.
    computing = sorted(span.parent for span in spans if span.name == "compute")
    assert computing == sorted([caller.id, *(leaf.id for leaf in leaves.values())])
    assert told == (root.trace_id, leaves[caller.id].id)
    assert {span.attributes["triton.trace_parent_id"] for span in (caller, leaves[chain.id])} == {
        chain.attributes["triton.trace_id"]
    }


def test_an_ensemble_in_an_ensemble_is_a_span_of_that(running: Served, collector: Collector) -> None:
    infer(running, triton_grpc, "nested", request_id="nested")
    spans = collector.trace_of("nested")
    root, nested, chain, caller = (
        named(spans, name) for name in ("InferRequest", "nested", "chain", "caller")
    )
    assert (nested.parent, chain.parent, caller.parent) == (root.id, nested.id, chain.id)


@pytest.mark.parametrize("model", CALLERS)
def test_every_way_of_calling_is_part_of_the_caller_s_trace(
    running: Served, collector: Collector, model: str
) -> None:
    request_id = f"calls of {model}"
    told = context_in(infer(running, triton_http, model, request_id=request_id))
    spans = collector.trace_of(request_id)
    assert named(spans, "leaf").parent == named(spans, model).id
    assert told == (named(spans, "leaf").trace_id, named(spans, "leaf").id)


@pytest.mark.parametrize("model", ["pipeline", "pipeline_process"])
def test_a_pipeline_can_tell_other_services(running: Served, collector: Collector, model: str) -> None:
    told = context_in(infer(running, triton_http, model, 2, request_id=f"headers of {model}"))
    span = named(collector.trace_of(f"headers of {model}"), model)
    assert told == (span.trace_id, span.id)


def test_a_request_that_is_part_of_a_trace_stays_so(
    running: Served, collector: Collector, triton: Any, request: pytest.FixtureRequest
) -> None:
    request_id = request.node.name
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    answer = infer(running, triton, "leaf", request_id=request_id, headers=headers)
    root = next(
        span
        for span in collector.wait_for(
            lambda spans: any(request_id in span.attributes.values() for span in spans)
        )
        if span.name == "InferRequest" and span.parent == PARENT_ID
    )
    assert root.trace_id == TRACE_ID
    assert root.trace_state == "vendor=1"
    assert context_in(answer)[0] == TRACE_ID
    assert json.loads(answer.as_numpy("CONTEXT")[0])["tracestate"] == "vendor=1"


def test_requests_of_a_stream_are_part_of_the_stream_s_trace(running: Served) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    running.grpc.start_stream(
        lambda result, error: answers.put(error or result), headers={"traceparent": PARENT}
    )
    tensor = triton_grpc.InferInput("INPUT", [1], "FP32")
    tensor.set_data_from_numpy(np.array([1], np.float32))
    running.grpc.async_stream_infer("leaf", [tensor])
    answer = answers.get(timeout=10)
    running.grpc.stop_stream()
    assert context_in(answer)[0] == TRACE_ID


def test_generated_answers_are_traced(leaf_only: Path, collector: Collector) -> None:
    with (
        wire_server(leaf_only, trace=tracing(collector.url)) as ports,
        httpx.Client(base_url=f"http://127.0.0.1:{ports.http}") as client,
    ):
        answer = client.post(
            "/v2/models/leaf/generate", json={"INPUT": 1.0}, headers={"traceparent": PARENT}
        ).json()
    assert json.loads(answer["CONTEXT"])["traceparent"].split("-")[1] == f"{TRACE_ID:032x}"


@pytest.mark.parametrize("parent", ["", "nothing", f"00-{0:032x}-00f067aa0ba902b7-01", PARENT + "-more"])
def test_headers_that_name_no_trace_begin_one(running: Served, parent: str) -> None:
    answer = infer(running, triton_http, "leaf", headers={"traceparent": parent})
    assert context_in(answer)[0] not in (0, TRACE_ID)


def test_what_fails_says_so(running: Served, collector: Collector, triton: Any, request: Any) -> None:
    request_id = request.node.name
    with pytest.raises(InferenceServerException, match="unlucky"):
        infer(running, triton, "chain", 13, request_id=request_id)
    spans = collector.trace_of(request_id)
    assert {(span.name, span.status) for span in spans} >= {
        ("InferRequest", FAILED),
        ("chain", FAILED),
        ("leaf", FAILED),
    }
    assert named(spans, "leaf").message == "unlucky"
    assert "step 0 ('leaf'): unlucky" in named(spans, "InferRequest").message


def test_settings_are_shown_over_both_protocols(running: Served, collector: Collector) -> None:
    expected = {
        "trace_level": ["TIMESTAMPS"],
        "trace_rate": "1",
        "trace_count": "-1",
        "trace_mode": "opentelemetry",
        "url": collector.url,
        "resource": "team=vision",
        "bsp_schedule_delay": "20",
        "bsp_max_export_batch_size": "512",
        "bsp_max_queue_size": "2048",
    }
    assert running.http.get_trace_settings() == expected
    found = running.grpc.get_trace_settings(as_json=True)["settings"]
    assert {name: setting["value"] for name, setting in found.items()} == {
        name: value if isinstance(value, list) else [value] for name, value in expected.items()
    }


def test_with_rate_0_only_what_is_part_of_a_trace_is_traced(leaf_only: Path, collector: Collector) -> None:
    with served(leaf_only, trace=tracing(collector.url, rate=0)) as made:
        assert infer(made, triton_http, "leaf").as_numpy("CONTEXT")[0] == b""
        answer = infer(made, triton_grpc, "leaf", headers={"traceparent": PARENT})
        assert context_in(answer)[0] == TRACE_ID


def test_with_level_off_nothing_is_traced(leaf_only: Path, collector: Collector) -> None:
    with served(leaf_only, trace=tracing(collector.url, levels=("OFF",))) as made:
        assert not made.server.tracer.is_on
        answer = infer(made, triton_http, "leaf", headers={"traceparent": PARENT})
        assert answer.as_numpy("CONTEXT")[0] == b""


def test_the_last_spans_are_sent_when_the_server_ends(leaf_only: Path, collector: Collector) -> None:
    settings = tracing(collector.url)
    assert settings.open_telemetry is not None
    slow = replace(settings, open_telemetry=replace(settings.open_telemetry, schedule_delay_ms=600_000))
    with served(leaf_only, trace=slow) as made:
        infer(made, triton_http, "leaf", request_id="last")
    assert len(collector.trace_of("last")) == 3


@contextmanager
def nobody_listening() -> Iterator[str]:
    """An address that refuses."""
    with otlp_collector() as gone:
        url = gone.url
    yield url


def test_a_collector_that_is_away_costs_no_request_anything(
    leaf_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    threads = set(threading.enumerate())
    with nobody_listening() as url:
        with served(leaf_only, trace=tracing(url)) as made:
            for triton in (triton_http, triton_grpc):
                for _ in range(20):
                    assert infer(made, triton, "leaf").as_numpy("OUTPUT").tolist() == [1]
            ending_since = time.monotonic()
        # A few seconds for spans that nobody takes, and no more.
        assert time.monotonic() - ending_since < 15
    left = [thread.name for thread in set(threading.enumerate()) - threads if thread.name.startswith("Otel")]
    assert not left


def test_a_server_without_the_packages_says_what_to_install(
    leaf_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with (
        pytest.raises(InferenceError, match=r"pip install 'cantata\[otel\]'"),
        served(leaf_only, trace=tracing("http://127.0.0.1:9/v1/traces")),
    ):
        pass
