"""What a model returns as tensors of the declared types."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cantata import bls
from cantata.bls.element_types import ElementType

CONVERTED: list[tuple[str, bls.TensorType, Any, np.ndarray]] = [
    ("list", bls.FP32[-1], [1, 2.5], np.array([1, 2.5], np.float32)),
    ("same kind", bls.FP32[2], np.array([1.0, 2.0]), np.array([1, 2], np.float32)),
    ("integers as floats", bls.FP32[-1], np.array([1, 2]), np.array([1, 2], np.float32)),
    ("other byte order", bls.INT32[-1], np.array([1], ">i4"), np.array([1], np.int32)),
    ("scalar", bls.FP32[1], 0.5, np.array([0.5], np.float32)),
    ("numpy scalar", bls.INT64[-1], np.int32(3), np.array([3], np.int64)),
    ("text", bls.BYTES[-1], ["é", b"\xff"], np.array(["é".encode(), b"\xff"], object)),
    ("one text", bls.BYTES[1], "ok", np.array([b"ok"], object)),
    ("nothing", bls.FP32[-1, 4, 2], [], np.zeros((0, 4, 2), np.float32)),
    ("rows", bls.UINT8[-1, 2], [np.array([1, 2]), [3, 4]], np.array([[1, 2], [3, 4]], np.uint8)),
    ("bfloat16", bls.BF16[1], np.array([1.0], ml_dtypes.bfloat16), np.array([0x3F80], np.uint16)),
]


@pytest.mark.parametrize(
    ("declared", "value", "array"), [case[1:] for case in CONVERTED], ids=[case[0] for case in CONVERTED]
)
def test_values_become_arrays_of_the_declared_type(
    declared: bls.TensorType, value: Any, array: np.ndarray
) -> None:
    converted = declared.value_of(value)
    np.testing.assert_array_equal(converted.array, array, strict=True)
    assert converted.datatype is declared.datatype


REFUSED: list[tuple[str, bls.TensorType, Any, str]] = [
    ("floats as integers", bls.INT32[-1], np.array([1.5]), "expected INT32, got numpy's float64"),
    ("signed as unsigned", bls.UINT8[-1], np.array([1]), "expected UINT8, got numpy's int64"),
    ("too large", bls.UINT8[-1], [256], "expected UINT8: "),
    ("no number", bls.FP32[-1], ["a"], "expected FP32: "),
    ("size", bls.FP32[2], [1], "expected the shape [2], got [1]"),
    ("rank", bls.FP32[-1, 2], [1], "expected the shape [-1,2], got [1]"),
    ("nothing where there must be something", bls.FP32[2], [], "expected the shape [2], got [0]"),
    ("uneven rows", bls.FP32[-1, -1], [[1], [2, 3]], "expected FP32: "),
]


@pytest.mark.parametrize(
    ("declared", "value", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_no_such_tensor_is_refused(declared: bls.TensorType, value: Any, text: str) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        declared.value_of(value)


@given(npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=4)), st.booleans())
def test_an_array_of_the_declared_type_is_passed_by_reference(array: np.ndarray, fixed: bool) -> None:
    dims = array.shape if fixed else (-1,) * array.ndim
    assert np.shares_memory(bls.FP32[dims].value_of(array).array, array)


@given(st.sampled_from([bls.BOOL, bls.INT8, bls.UINT64, bls.FP16, bls.FP64]), st.integers(0, 5))
def test_lists_come_back_as_they_were(element: ElementType, length: int) -> None:
    values = [index % 2 for index in range(length)]
    assert element[-1].value_of(values).array.tolist() == values
