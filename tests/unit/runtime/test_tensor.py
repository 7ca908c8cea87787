"""Tensors and their raw form: every datatype there and back, views without copies, and what is refused."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.datatypes import NUMPY_DTYPES, DataType
from cantata.runtime.tensor import RawTensorError, tensor_of_array, tensor_of_raw

FIXED_SIZE = [datatype for datatype in DataType if datatype is not DataType.BYTES]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(st.sampled_from(FIXED_SIZE), SHAPES, st.data())
def test_raw_bytes_are_read_back_as_they_were(
    datatype: DataType, shape: tuple[int, ...], data: st.DataObject
) -> None:
    array = data.draw(hnp.arrays(NUMPY_DTYPES[datatype], shape))
    tensor = tensor_of_array(array, DataType.BF16 if datatype is DataType.BF16 else None)
    raw = bytes(tensor.raw_bytes())
    assert raw == array.tobytes()
    again = tensor_of_raw(datatype, shape, raw)
    assert (again.datatype, again.shape, again.array.tobytes()) == (datatype, shape, raw)
    assert again.byte_size() == len(raw)


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_strings_carry_their_lengths(elements: list[bytes]) -> None:
    tensor = tensor_of_array(np.array(elements, dtype=object))
    raw = bytes(tensor.raw_bytes())
    assert raw == b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    assert tensor_of_raw(DataType.BYTES, (len(elements),), raw).array.tolist() == elements
    assert tensor.byte_size() == len(raw)


def test_large_arrays_are_not_copied_where_nothing_must_be_rearranged() -> None:
    large = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    assert np.shares_memory(np.frombuffer(tensor_of_array(large).raw_bytes(), np.uint8), large)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert bytes(tensor_of_array(array.T).raw_bytes()) == array.T.copy().tobytes()
    raw = array.tobytes()
    assert np.shares_memory(tensor_of_raw(DataType.FP32, (2, 3), raw).array, np.frombuffer(raw, np.float32))


@pytest.mark.parametrize(
    ("array", "datatype", "values"),
    [
        (np.array(["ü", "a"]), DataType.BYTES, ["ü".encode(), b"a"]),
        (np.array([b"x", b"yz"]), DataType.BYTES, [b"x", b"yz"]),
        (np.array(["text", b"\xff", 7], dtype=object), DataType.BYTES, [b"text", b"\xff", b"7"]),
        (np.array([1, 2], dtype=">i4"), DataType.INT32, [1, 2]),
    ],
)
def test_arrays_become_what_the_wire_can_carry(
    array: npt.NDArray[np.generic], datatype: DataType, values: list[object]
) -> None:
    tensor = tensor_of_array(array)
    assert (tensor.datatype, tensor.array.tolist()) == (datatype, values)
    assert tensor.array.dtype == NUMPY_DTYPES[datatype]


@pytest.mark.parametrize(
    ("array", "datatype", "message"),
    [
        (np.zeros(1, np.complex64), None, "no datatype holds numpy's complex64"),
        (np.zeros(1, np.float32), DataType.BF16, "expected BF16, got FP32 (numpy's float32)"),
    ],
)
def test_arrays_that_nothing_holds_are_refused(
    array: npt.NDArray[np.generic], datatype: DataType | None, message: str
) -> None:
    with pytest.raises(TypeError) as refused:
        tensor_of_array(array, datatype)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "message"),
    [
        (
            DataType.FP32,
            (2,),
            b"\0" * 7,
            "input byte size mismatch for input 'I' for model 'M'. Expected 8, got 7",
        ),
        (
            DataType.INT8,
            (0,),
            b"\0",
            "input byte size mismatch for input 'I' for model 'M'. Expected 0, got 1",
        ),
        (
            DataType.BYTES,
            (1,),
            b"\1\0\0",
            "incomplete string length indicator for inference input 'I' for model 'M', expecting 4 bytes but only 3 "
            "bytes available. Please make sure the string length indicator is in one buffer.",
        ),
        (
            DataType.BYTES,
            (1,),
            b"\5\0\0\0ab",
            "incomplete string data for inference input 'I' for model 'M', expecting string of length 5 but only 2 "
            "bytes available.",
        ),
        (
            DataType.BYTES,
            (1,),
            b"\0\0\0\0" * 2,
            "unexpected number of string elements 2 for inference input 'I' for model 'M', expecting 1",
        ),
        (
            DataType.BYTES,
            (10**12,),
            b"\0\0\0\0",
            "expected 1000000000000 string elements for inference input 'I' for model 'M', got 1",
        ),
    ],
)
def test_raw_bytes_that_lie_are_told_in_the_requests_words(
    datatype: DataType, shape: tuple[int, ...], raw: bytes, message: str
) -> None:
    with pytest.raises(RawTensorError) as refused:
        tensor_of_raw(datatype, shape, raw)
    assert refused.value.for_input("I", "M") == message
