"""Trace files of models that call others: whose calls they are, in both isolations."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton_http

from cantata.runtime.observe.trace_settings import TraceSettings
from tests.support.model_files import (
    SPLIT,
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_identity,
    write_model,
)
from tests.support.served import Served, served

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")
PROCESS = 'parameters { key: "EXECUTION_ISOLATION" value { string_value: "process" } }'
CALL = """
def execute(self, requests):
    return [
        pb_utils.InferenceResponse(pb_utils.InferenceRequest(
            model_name="identity", inputs=request.inputs(), requested_output_names=["OUTPUT"],
            trace=request.trace()).exec().output_tensors())
        for request in requests]
"""
# Calls once more when it has answered.
CALL_LATER = """
async def execute(self, requests):
    for request in requests:
        call = pb_utils.InferenceRequest(
            model_name="identity", inputs=request.inputs(), requested_output_names=["OUTPUT"],
            request_id="later", trace=request.trace())
        request.get_response_sender().send(
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", request.inputs()[0].as_numpy())]),
            flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        await asyncio.sleep(0.05)
        await call.async_exec()
    return [None] * len(requests)
"""
STREAM = """
def execute(self, requests):
    responses = []
    for request in requests:
        answers = pb_utils.InferenceRequest(
            model_name="split", inputs=request.inputs(), requested_output_names=["OUTPUT"],
            trace=request.trace()).exec(decoupled=True)
        tensors = [answer.output_tensors()[0].as_numpy() for answer in answers if answer.output_tensors()]
        responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", tensors[0])]))
    return responses
"""
PIPELINE = """
from cantata import bls

@bls.model(inputs={"INPUT": bls.FP32[-1]}, outputs={"OUTPUT": bls.FP32[-1]})
async def pipeline(INPUT):
    answers = await bls.gather(*(bls.call("identity", INPUT=INPUT) for _ in range(3)))
    return {"OUTPUT": answers[0].OUTPUT}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("models")
    write_identity(repository)
    write_model(repository, "call_thread", python_config([IN], [OUT]), CALL)
    write_model(repository, "call_process", python_config([IN], [OUT], extra=PROCESS), CALL)
    write_model(repository, "call_later", python_config([IN], [OUT]), CALL_LATER)
    write_model(repository, "split", python_config([IN], [OUT], decoupled=True), SPLIT)
    write_model(repository, "stream", python_config([IN], [OUT]), STREAM)
    write_model(repository, "pipeline", None, code=PIPELINE)
    steps = [
        step_text("call_thread", {"INPUT": "INPUT"}, {"OUTPUT": "MIDDLE"}),
        step_text("identity", {"INPUT": "MIDDLE"}, {"OUTPUT": "OUTPUT"}),
    ]
    write_model(repository, "chain", ensemble_config([IN], [OUT], steps))
    file = tmp_path_factory.mktemp("traces") / "trace.json"
    with served(repository, trace=TraceSettings(("TIMESTAMPS",), rate=1, file=str(file))) as made:
        yield made


def traced(running: Served, model: str, count: int) -> list[tuple[str, str]]:
    """What was traced of one request, and which model it was for, once there are so many: (model, whose)."""
    file = Path(running.server.tracer.settings().file)
    before = len(events_in(file))
    tensor = triton_http.InferInput("INPUT", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    running.http.infer(model, [tensor])
    for _ in range(2000):
        heads = [event for event in events_in(file)[before:] if "model_name" in event]
        if len(heads) == count:
            break
        time.sleep(0.005)
    names = {head["id"]: head["model_name"] for head in heads}
    return [(head["model_name"], names[head["parent_id"]] if "parent_id" in head else "") for head in heads]


def events_in(file: Path) -> list[dict[str, Any]]:
    while file.exists():
        try:
            events: list[dict[str, Any]] = json.loads(file.read_text())
        except ValueError:
            # It is being written.
            continue
        return events
    return []


@pytest.mark.parametrize("model", ["call_thread", "call_process"])
def test_a_call_is_its_caller_s(running: Served, model: str) -> None:
    assert traced(running, model, 2) == [(model, ""), ("identity", model)]


def test_a_stream_is_its_reader_s(running: Served) -> None:
    assert traced(running, "stream", 2) == [("stream", ""), ("split", "stream")]


def test_calls_side_by_side_are_all_their_caller_s(running: Served) -> None:
    assert traced(running, "pipeline", 4) == [("pipeline", ""), *[("identity", "pipeline")] * 3]


def test_calls_of_steps_are_the_steps_and_those_the_ensemble_s(running: Served) -> None:
    assert sorted(traced(running, "chain", 4)) == [
        ("call_thread", "chain"),
        ("chain", ""),
        ("identity", "call_thread"),
        ("identity", "chain"),
    ]


def test_a_call_that_ends_after_its_caller_is_not_lost(running: Served) -> None:
    assert traced(running, "call_later", 2) == [("call_later", ""), ("identity", "call_later")]


def test_a_model_that_calls_others_computes(running: Served) -> None:
    file = Path(running.server.tracer.settings().file)
    before = len(events_in(file))
    traced(running, "call_thread", 2)
    events = events_in(file)[before:]
    computing = [
        event["id"] for event in events if event.get("timestamps", [{}])[0].get("name") == "COMPUTE_START"
    ]
    assert len(set(computing)) == 2
