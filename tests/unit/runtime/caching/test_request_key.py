"""What makes requests equal: everything that an answer can depend on, and nothing else."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars.reading import read_model_config
from cantata.runtime.caching.request_key import RequestKey
from cantata.runtime.datatypes import DataType
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.tensor import Tensor, tensor_of_array, tensor_of_raw
from tests.support.requests import RecordingSender

CONFIG = """
name: "m" backend: "python"
input { name: "A" data_type: TYPE_FP32 dims: [ -1 ] } input { name: "B" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } output { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }
"""


def spec(version: int = 1, name: str = "m") -> ModelSpec:
    config = read_model_config(CONFIG, "config.pbtxt").config
    assert config is not None
    return ModelSpec(config.model_copy(update={"name": name}), version)


def request(a: Any = (1.0, 2.0), b: Any = (3.0,), **fields: Any) -> InferenceRequest:
    inputs = {name: tensor_of_array(np.array(value, np.float32)) for name, value in (("A", a), ("B", b))}
    return InferenceRequest("m", fields.pop("inputs", inputs), RecordingSender(), 1, **fields)


KEY = RequestKey(spec(), b"load", with_parameters=True)
USUAL = KEY.of(request())


def swapped() -> InferenceRequest:
    made = request()
    made.inputs = dict(reversed(made.inputs.items()))
    return made


@pytest.mark.parametrize(
    "same",
    [
        request(id="other"),
        request(priority=3),
        request(timeout_us=9, deadline_ns=9),
        request(requested_outputs=("X", "Y")),
        request(correlation_id=5, flags=3),
        request(parameters={}),
        request(parameters={"binary_data_output": True, "cantata_timeline": True}),
        swapped(),
        request(a=np.array([[1.0, 9.0], [2.0, 9.0]])[:, 0]),
    ],
    ids=[
        "id",
        "priority",
        "timeout",
        "all outputs by name",
        "sequence",
        "no parameters",
        "form of the answer",
        "order of inputs",
        "memory layout",
    ],
)
def test_what_changes_no_answer_changes_no_key(same: InferenceRequest) -> None:
    assert KEY.of(same) == USUAL


def with_inputs(**inputs: Tensor) -> InferenceRequest:
    return request(inputs=inputs)


A = tensor_of_array(np.array([1.0, 2.0], np.float32))
B = tensor_of_array(np.array([3.0], np.float32))


@pytest.mark.parametrize(
    "other",
    [
        request(a=(1.0, 2.5)),
        request(a=(3.0,), b=(1.0, 2.0)),
        request(a=(1.0,), b=(2.0, 3.0)),
        with_inputs(A=A.reshaped((2, 1)), B=B),
        with_inputs(A=Tensor(DataType.INT32, A.array.view(np.int32)), B=B),
        with_inputs(A=A),
        request(requested_outputs=("X",)),
        request(requested_outputs=("Y", "X")),
        request(parameters={"k": 1}),
        request(parameters={"k": True}),
        request(parameters={"k": "1"}),
        request(parameters={"k": 1.0}),
    ],
    ids=[
        "contents",
        "values swapped",
        "boundary moved",
        "shape",
        "datatype",
        "input missing",
        "fewer outputs",
        "order of outputs",
        "parameter",
        "bool parameter",
        "text parameter",
        "float parameter",
    ],
)
def test_what_may_change_an_answer_changes_the_key(other: InferenceRequest) -> None:
    keys = {USUAL, KEY.of(other), KEY.of(request(parameters={"k": 2}))}
    assert len(keys) == 3


def test_models_versions_and_loads_have_keys_of_their_own() -> None:
    keys = {
        RequestKey(*arguments, with_parameters=True).of(request())
        for arguments in (
            (spec(), b"load"),
            (spec(2), b"load"),
            (spec(name="n"), b"load"),
            (spec(), b"other"),
        )
    }
    assert len(keys) == 4


def test_parameters_do_not_matter_to_a_model_that_sees_none() -> None:
    key = RequestKey(spec(), b"load", with_parameters=False)
    assert key.of(request(parameters={"trace": "7"})) == key.of(request())


def test_texts_differ_where_their_boundaries_do() -> None:
    def texts(*values: bytes) -> bytes:
        array = np.array(values, dtype=object)
        return KEY.of(with_inputs(A=Tensor(DataType.BYTES, array), B=B))

    assert len({texts(b"ab", b"c"), texts(b"a", b"bc"), texts(b"abc", b""), texts(b"", b"abc")}) == 4


def test_what_a_client_can_still_write_to_is_copied_before_it_is_looked_at() -> None:
    memory = mmap.mmap(-1, 8)
    memory[:] = A.array.tobytes()
    shared = tensor_of_raw(DataType.FP32, (2,), memoryview(memory).toreadonly())
    made = with_inputs(A=shared, B=B)
    assert KEY.of(made) == USUAL
    memory[:] = bytes(8)
    assert made.inputs["A"].array.tolist() == [1.0, 2.0]
    assert made.inputs["B"] is B


SMALL = st.lists(st.floats(width=32, allow_nan=False), max_size=3)


@given(SMALL, SMALL, SMALL, SMALL)
def test_keys_are_equal_exactly_where_the_bytes_are(
    a: list[float], b: list[float], other_a: list[float], other_b: list[float]
) -> None:
    first, second = request(a, b), request(other_a, other_b)
    bytes_of = [[tensor.array.tobytes() for tensor in made.inputs.values()] for made in (first, second)]
    assert (KEY.of(first) == KEY.of(second)) == (bytes_of[0] == bytes_of[1])
