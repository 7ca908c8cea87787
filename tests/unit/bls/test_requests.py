"""The values a model makes: requests, responses, errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cantata.bls import pb_utils
from cantata.bls.requests import received_request
from tests.support.python_models import request_with

X = pb_utils.Tensor("X", np.zeros(1))


def test_a_request_gives_back_its_fields() -> None:
    request = pb_utils.InferenceRequest(
        request_id="7",
        correlation_id="room",
        inputs=[X],
        requested_output_names=["OUT"],
        model_name="m",
        model_version=2,
        flags=pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
        timeout=5,
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_GPU, 1),
        trace=pb_utils.InferenceTrace(),
        parameters={"a": 1, "b": True, "c": "x"},
    )
    assert request.inputs() == [X]
    assert (request.request_id(), request.correlation_id(), request.flags(), request.timeout()) == (
        "7",
        "room",
        1,
        5,
    )
    assert json.loads(request.parameters()) == {"a": 1, "b": True, "c": "x"}
    assert request.requested_output_names() == ["OUT"]
    assert not request.is_cancelled()
    request.set_flags(pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
    assert request.flags() == 2
    assert pb_utils.get_input_tensor_by_name(request, "X") is X
    assert pb_utils.get_input_tensor_by_name(request, "Y") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"correlation_id": 1.5}, "Correlation ID must be integer or string"),
        (
            {"inputs": [None], "request_id": "7", "model_name": "m"},
            "Input tensor for request with id '7' and model name 'm' should not be empty.",
        ),
        (
            {"requested_output_names": [""], "model_name": "m"},
            "Requested output name for request with id '' and model name 'm' should not be empty.",
        ),
        ({"parameters": {1: "x"}}, "Expect parameters keys to have type str, found type <class 'int'>"),
        (
            {"parameters": {"x": []}},
            "Expect parameters values to have type bool/int/str, found type <class 'list'>",
        ),
    ],
)
def test_what_is_no_request_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(pb_utils.TritonModelException) as refused:
        pb_utils.InferenceRequest(**fields)
    assert str(refused.value) == message


@pytest.mark.parametrize("field", ["timeout", "priority", "flags", "model_version"])
def test_a_number_is_an_integer(field: str) -> None:
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        pb_utils.InferenceRequest(**{field: "100"})
    assert getattr(pb_utils.InferenceRequest(**{field: np.int64(1)}), field)() == 1


def test_a_received_request_shows_what_the_client_sent() -> None:
    runtime_request, _ = request_with(
        id="9",
        correlation_id=4,
        flags=1,
        timeout_us=3,
        requested_outputs=("OUT",),
        parameters={"mode": "fast", "sequence_id": 4, "priority": 1},
    )
    request = received_request(runtime_request, open_streams=None)  # type: ignore[arg-type]
    assert [tensor.name() for tensor in request.inputs()] == ["IN"]
    assert request.inputs() is request.inputs()
    assert (request.request_id(), request.correlation_id(), request.flags(), request.timeout()) == (
        "9",
        4,
        1,
        3,
    )
    assert request.requested_output_names() == ["OUT"]
    assert json.loads(request.parameters()) == {"mode": "fast"}
    assert not request.is_cancelled()
    runtime_request.cancellation.cancel()
    assert request.is_cancelled()


def test_a_response_gives_back_its_parts() -> None:
    error = pb_utils.TritonError("no", pb_utils.TritonError.NOT_FOUND)
    response = pb_utils.InferenceResponse([X], parameters={"k": 1})
    failed = pb_utils.InferenceResponse(output_tensors=[], error=error)
    assert (response.output_tensors(), response.has_error(), response.error()) == ([X], False, None)
    assert json.loads(response.parameters()) == {"k": 1}
    assert pb_utils.get_output_tensor_by_name(response, "X") is X
    assert pb_utils.get_output_tensor_by_name(response, "Y") is None
    assert (failed.has_error(), failed.error()) == (True, error)
    assert (error.code(), error.message(), str(error)) == (pb_utils.TritonError.NOT_FOUND, "no", "no")
    assert pb_utils.TritonError("x").code() == pb_utils.TritonError.INTERNAL


def test_a_response_without_a_tensor_where_one_should_be_is_refused() -> None:
    with pytest.raises(pb_utils.TritonModelException) as refused:
        pb_utils.InferenceResponse([None])  # type: ignore[list-item]
    assert str(refused.value) == "Output tensor for inference response should not be empty."
    with pytest.raises(TypeError, match="expected a Tensor"):
        pb_utils.InferenceResponse([np.zeros(1)])  # type: ignore[list-item]


@pytest.mark.parametrize("use", [lambda request: request.exec(), pb_utils.InferenceRequest.exec])
def test_calls_are_refused_outside_a_model(use: Any) -> None:
    with pytest.raises(pb_utils.TritonModelException) as refused:
        use(pb_utils.InferenceRequest(model_name="m"))
    assert str(refused.value) == "BLS is only supported during the 'execute' function."
