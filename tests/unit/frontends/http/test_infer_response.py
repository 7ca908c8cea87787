"""Infer responses as bytes: the order of keys, JSON or binary, and the headers that tell."""

from __future__ import annotations

import json

import numpy as np

from cantata.runtime.datatypes import DataType
from cantata.runtime.frontends.http.infer_request import BINARY_FORM, JSON_FORM, OutputForm
from cantata.runtime.frontends.http.infer_response import encode_infer_response
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor

JSON_TYPE = b"Content-Type: application/json\r\n"


def response(
    outputs: dict[str, Tensor], id: str = "", **parameters: bool | int | float | str
) -> InferenceResponse:
    return InferenceResponse("m", 3, id, outputs, parameters or None)


def encode(
    answer: InferenceResponse, forms: dict[str, OutputForm] | None = None, default: OutputForm = JSON_FORM
) -> tuple[bytes, bytes]:
    headers, parts = encode_infer_response(answer, answer.outputs, forms or {}, default)
    return headers, b"".join(parts)


def floats(*values: float) -> Tensor:
    return Tensor(DataType.FP32, np.array([values], dtype=np.float32))


def strings(*values: bytes) -> Tensor:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return Tensor(DataType.BYTES, array)


def test_a_json_response_has_its_keys_in_order_and_flat_data() -> None:
    headers, body = encode(response({"A": floats(1, 0.5), "B": strings(b"x")}, id="7", p=True))
    assert headers == JSON_TYPE
    assert body == (
        b'{"id":"7","model_name":"m","model_version":"3","parameters":{"p":true},"outputs":['
        b'{"name":"A","datatype":"FP32","shape":[1,2],"data":[1.0,0.5]},'
        b'{"name":"B","datatype":"BYTES","shape":[1],"data":["x"]}]}'
    )


def test_binary_tensors_follow_the_json_in_the_order_of_the_outputs() -> None:
    answer = response(
        {"A": strings(b"hi"), "B": floats(1), "C": Tensor(DataType.INT8, np.array([7], dtype=np.int8))}
    )
    headers, body = encode(answer, {"A": BINARY_FORM, "B": JSON_FORM, "C": BINARY_FORM})
    length = body.rindex(b"}]}") + 3
    assert headers == (
        b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n" % length
    )
    assert body[length:] == b"\x02\x00\x00\x00hi\x07"
    assert json.loads(body[:length])["outputs"] == [
        {"name": "A", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
        {"name": "B", "datatype": "FP32", "shape": [1, 1], "data": [1.0]},
        {"name": "C", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}},
    ]


def test_outputs_that_were_not_named_take_the_default_form() -> None:
    _, body = encode(response({"A": floats(1)}), default=BINARY_FORM)
    assert body.endswith(b'"parameters":{"binary_data_size":4}}]}\x00\x00\x80?')


def test_empty_binary_tensors_alone_leave_the_answer_json() -> None:
    headers, body = encode(
        response({"A": Tensor(DataType.FP32, np.zeros((0, 2), np.float32))}), default=BINARY_FORM
    )
    assert headers == JSON_TYPE
    assert body.endswith(
        b'{"name":"A","datatype":"FP32","shape":[0,2],"parameters":{"binary_data_size":0}}]}'
    )


def test_nan_is_written_by_name_and_a_text_that_says_null_stays_as_it_is() -> None:
    _, body = encode(response({"A": floats(float("nan"), 1), "B": strings(b"null")}))
    assert b'"data":[NaN,1.0]' in body
    assert b'"data":["null"]' in body


def test_tensors_that_are_not_contiguous_are_written_in_their_own_order() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3).T
    _, body = encode(response({"A": Tensor(DataType.INT64, array)}))
    assert body.endswith(b'"shape":[3,2],"data":[0,3,1,4,2,5]}]}')
