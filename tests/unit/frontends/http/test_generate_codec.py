"""Documents of the generate extension: which member becomes what, and how responses look."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError
from cantata.runtime.frontends.http.generate_codec import decode_generate_request, encode_generate_response
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor
from tests.support.fake_server import model_config


def spec(dims: tuple[int, ...], datatype: DataType = DataType.INT32, *, max_batch_size: int = 0) -> ModelSpec:
    config = model_config("m", {"IN": (datatype, dims)}, {}, max_batch_size=max_batch_size)
    return ModelSpec(config, 1)


@pytest.mark.parametrize(
    ("model", "value", "expected"),
    [
        (spec((1,)), 5, [5]),
        (spec((-1,)), [1, 2, 3], [1, 2, 3]),
        (spec((-1,), max_batch_size=4), [1, 2, 3], [[1, 2, 3]]),
        (spec((2,), max_batch_size=4), [1, 2, 3, 4], [[1, 2], [3, 4]]),
        (spec((-1, -1, 2)), [1, 2, 3, 4], [[[1, 2], [3, 4]]]),
        (spec((-1,)), [], []),
        (spec((1,), DataType.BYTES), "text", [b"text"]),
    ],
)
def test_a_member_named_as_an_input_is_that_input(model: ModelSpec, value: object, expected: object) -> None:
    decoded = decode_generate_request(json.dumps({"IN": value}).encode(), model, 1000)
    assert decoded.inputs["IN"].array.tolist() == expected


def test_all_other_members_are_parameters_and_may_be_nested() -> None:
    document = {"IN": 1, "id": "x", "a": 1, "sequence_id": 7, "parameters": {"b": True, "c": 0.5, "d": "s"}}
    decoded = decode_generate_request(json.dumps(document).encode(), spec((1,)), 1000)
    assert decoded.id == "x"
    assert decoded.parameters == {"id": "x", "a": 1, "sequence_id": 7, "b": True, "c": 0.5, "d": "s"}
    assert list(decoded.inputs) == ["IN"]


def test_inputs_may_be_nested_too() -> None:
    decoded = decode_generate_request(b'{"parameters":{"IN":3}}', spec((1,)), 1000)
    assert decoded.inputs["IN"].array.tolist() == [3]


NO_SHAPE = "The schema can not convert input 'IN' to tensor with proper shape"


@pytest.mark.parametrize(
    ("model", "document", "message"),
    [
        (spec((2,)), {"IN": [1, 2, 3]}, NO_SHAPE),
        (spec((2,)), {"IN": [1, 2, 3, 4]}, NO_SHAPE),
        (spec((-1, 2)), {"IN": [1]}, NO_SHAPE),
        (
            spec((1,)),
            {"a": [1]},
            "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        (spec((1,)), {"parameters": 3}, "Expected JSON object for keyword: 'parameters'"),
        (spec((1,)), [], "the request must be a JSON object"),
        (
            ModelSpec(model_config("m", {"parameters": (DataType.INT32, (1,))}, {}), 1),
            {"parameters": 1},
            "Keyword 'parameters' for nested schema also given as input tensor name",
        ),
        (
            spec((1,), DataType.FP16),
            {"IN": 1.0},
            "receiving FP16 data via JSON is not supported. Please use the binary data format for input IN",
        ),
        (
            spec((-1,), DataType.BYTES),
            {"IN": [[]]},
            "expected 1 string elements for inference input 'IN' for model 'm', got 0",
        ),
    ],
)
def test_what_fits_nothing_is_refused(model: ModelSpec, document: object, message: str) -> None:
    with pytest.raises(InferenceError) as caught:
        decode_generate_request(json.dumps(document).encode(), model, 1000)
    assert caught.value.message == message


def test_a_response_is_one_flat_object() -> None:
    text = np.empty(1, dtype=object)
    text[0] = "é".encode()
    outputs = {
        "ONE": Tensor(DataType.INT32, np.array([[7]], dtype=np.int32)),
        "MANY": Tensor(DataType.FP32, np.array([[0.5, 1]], dtype=np.float32)),
        "NAN": Tensor(DataType.FP64, np.array([np.nan])),
        "NANS": Tensor(DataType.FP64, np.array([np.inf, 1])),
        "TEXT": Tensor(DataType.BYTES, text),
    }
    response = InferenceResponse("m", 2, "x", outputs, {"p": True})
    assert encode_generate_response(response).decode() == (
        '{"model_name":"m","model_version":"2","id":"x","p":true,'
        '"ONE":7,"MANY":[0.5,1.0],"NAN":NaN,"NANS":[Infinity,1.0],"TEXT":"é"}'
    )
