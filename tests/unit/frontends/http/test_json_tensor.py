"""Tensors as JSON lists: what is read, what is refused, and how numbers are written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.frontends.http.json_tensor import json_elements, json_text_with_nan, tensor_of_json
from cantata.runtime.tensor import RawTensorError, Tensor

LIMIT = 1 << 20


def read(datatype: DataType, shape: tuple[int, ...], data: object) -> Tensor:
    return tensor_of_json("IN", datatype, shape, data, LIMIT)


def nested(depth: int, inner: object) -> object:
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        (DataType.INT32, [1, -2], [1, -2]),
        (DataType.INT32, [[1], [-2]], [1, -2]),
        (DataType.INT32, [[1], -2], [1, -2]),
        (DataType.INT32, [[[1, -2]], []], [1, -2]),
        (DataType.INT8, [300, -200], [44, 56]),
        (DataType.UINT8, [256, 2**33 + 1], [0, 1]),
        (DataType.INT64, [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        (DataType.UINT64, [0, 2**64 - 1], [0, 2**64 - 1]),
        (DataType.FP32, [1, 0.5], [1.0, 0.5]),
        (DataType.FP32, [1e300, -1e300], [np.inf, -np.inf]),
        (DataType.FP64, [1e300, 2**64 - 1], [1e300, float(2**64 - 1)]),
        (DataType.BOOL, [True, False], [True, False]),
        (DataType.BYTES, ["é", "b\x00"], ["é".encode(), b"b\x00"]),
    ],
)
def test_elements_are_read_as_their_datatype(
    datatype: DataType, data: object, expected: list[object]
) -> None:
    tensor = read(datatype, (2, 1), data)
    assert tensor.datatype is datatype
    assert tensor.shape == (2, 1)
    assert tensor.array.reshape(-1).tolist() == expected


SIGNED = "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"
UNSIGNED = "Unable to parse 'data': attempt to access JSON non-unsigned-integer as unsigned-integer"
NUMBER = "Unable to parse 'data': attempt to access JSON non-number as double"
BOOLEAN = "Unable to parse 'data': attempt to access JSON non-boolean as boolean"
STRING = "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
ARRAY = "Unable to parse 'data': attempt to access JSON non-array as array"


@pytest.mark.parametrize(
    ("datatype", "data", "message"),
    [
        (DataType.INT32, [1.0, 2], SIGNED),
        (DataType.INT32, [True, 2], SIGNED),
        (DataType.INT32, ["1", 2], SIGNED),
        (DataType.INT32, [None, 2], SIGNED),
        (DataType.INT32, [{}, 2], SIGNED),
        (DataType.INT64, [2**63, 1], SIGNED),
        (DataType.UINT32, [-1, 2], UNSIGNED),
        (DataType.UINT64, [float(2**64), 1], UNSIGNED),
        (DataType.FP32, [True, 1], NUMBER),
        (DataType.FP64, ["x", 1], NUMBER),
        (DataType.FP64, [10**400, 1], NUMBER),
        (DataType.BOOL, [1, 0], BOOLEAN),
        (DataType.BYTES, [1, "a"], STRING),
        (DataType.INT32, 3, ARRAY),
        (DataType.INT32, None, ARRAY),
        (DataType.INT32, "12", ARRAY),
    ],
)
def test_elements_of_another_type_are_refused(datatype: DataType, data: object, message: str) -> None:
    with pytest.raises(InferenceError) as caught:
        read(datatype, (2,), data)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARG, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2, 3], "Unable to parse 'data': Shape does not match true shape of 'data' field"),
        ([1], "Failed to parse 'data' field: shape does not match true shape"),
    ],
)
def test_another_number_of_elements_is_an_internal_error(data: object, message: str) -> None:
    with pytest.raises(InferenceError) as caught:
        read(DataType.INT32, (2,), data)
    assert (caught.value.code, caught.value.message) == (StatusCode.INTERNAL, message)


@pytest.mark.parametrize("data", [["a"], ["a", "b", "c"]])
def test_another_number_of_strings_is_told_in_the_requests_terms(data: object) -> None:
    with pytest.raises(RawTensorError, match="string elements"):
        read(DataType.BYTES, (2,), data)


def test_an_empty_tensor_has_no_elements() -> None:
    assert read(DataType.FP32, (0, 2), []).shape == (0, 2)
    assert read(DataType.BYTES, (0,), [[], []]).shape == (0,)


@pytest.mark.parametrize("inner", [5, [5, [5]]])
def test_lists_may_be_nested_a_hundred_deep_and_no_deeper(inner: object) -> None:
    count, own_depth = (1, 0) if inner == 5 else (2, 2)
    assert read(DataType.INT32, (count,), nested(100 - own_depth, inner)).shape == (count,)
    with pytest.raises(InferenceError, match=r"nesting depth exceeds maximum allowed limit \(100\)"):
        read(DataType.INT32, (count,), nested(101 - own_depth, inner))


@pytest.mark.parametrize("datatype", [DataType.FP16, DataType.BF16])
def test_half_precision_has_no_json_form(datatype: DataType) -> None:
    with pytest.raises(InferenceError) as caught:
        read(datatype, (1,), [1.0])
    assert caught.value.message == (
        f"receiving {datatype.name} data via JSON is not supported. "
        "Please use the binary data format for input IN"
    )
    with pytest.raises(InferenceError, match=f"sending {datatype.name} data via JSON is not supported"):
        json_elements(Tensor(datatype, np.zeros(1, dtype=np.uint16)))


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "size"),
    [
        (DataType.FP32, (2, 1000), [], 8000),
        (DataType.FP64, (2**40, 2**20), [1.0], 2**63),
        (DataType.BYTES, (1,), ["x" * 100], 104),
    ],
)
def test_a_tensor_over_the_size_limit_is_refused_by_what_its_shape_says(
    datatype: DataType, shape: tuple[int, ...], data: object, size: int
) -> None:
    with pytest.raises(InferenceError) as caught:
        tensor_of_json("IN", datatype, shape, data, 100)
    assert caught.value.message == (
        f"JSON input 'IN' has a byte_size ({size} bytes) that exceeds the maximum allowed value of 100 bytes. "
        "Use --http-max-input-size to increase the limit."
    )


def test_bytes_that_are_not_text_cannot_be_sent_as_json() -> None:
    array = np.empty(1, dtype=object)
    array[0] = b"\xff"
    with pytest.raises(InferenceError, match="not UTF-8"):
        json_elements(Tensor(DataType.BYTES, array))


def test_floats_are_written_as_the_doubles_that_equal_them() -> None:
    elements = json_elements(Tensor(DataType.FP32, np.array([[0.1]], dtype=np.float32)))
    assert list(elements) == [0.10000000149011612]


def test_nan_and_infinities_are_written_by_name() -> None:
    elements = np.array([np.nan, np.inf, -np.inf, 0.5])
    assert json_text_with_nan(elements) == b"[NaN,Infinity,-Infinity,0.5]"


nested_integers = st.recursive(
    st.integers(-(2**31), 2**31 - 1), lambda inner: st.lists(inner, max_size=5), max_leaves=30
).filter(lambda value: isinstance(value, list))


def flat(value: object) -> list[object]:
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]


@given(nested_integers)
def test_any_nesting_gives_its_leaves_in_order(data: list[object]) -> None:
    leaves = flat(data)
    assert read(DataType.INT32, (len(leaves),), json.loads(json.dumps(data))).array.tolist() == leaves
