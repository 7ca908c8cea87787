from __future__ import annotations

import gc

import ml_dtypes
import numpy as np
import pytest

from cantata.bls import dlpack, pb_utils
from cantata.bls.tensor import shared_tensor, tensor_value
from cantata.runtime.datatypes import DataType
from cantata.runtime.tensor import Tensor as TensorValue

NUMBERS = [
    (np.bool_, 1),
    (np.uint8, 2),
    (np.uint16, 3),
    (np.uint32, 4),
    (np.uint64, 5),
    (np.int8, 6),
    (np.int16, 7),
    (np.int32, 8),
    (np.int64, 9),
    (np.float16, 10),
    (np.float32, 11),
    (np.float64, 12),
]


@pytest.mark.parametrize(("dtype", "number"), NUMBERS)
def test_a_tensor_holds_the_array_it_is_given(dtype: type[np.generic], number: int) -> None:
    array = np.zeros((2, 3), dtype)
    tensor = pb_utils.Tensor("X", array)
    assert (tensor.name(), tensor.triton_dtype(), tensor.shape(), tensor.is_cpu()) == (
        "X",
        number,
        [2, 3],
        True,
    )
    assert tensor.as_numpy() is array


def test_strings_become_an_object_array_of_bytes() -> None:
    for array in (
        np.array(["a", "é"], dtype=object),
        np.array([b"a", "é".encode()]),
        np.array(["a", "é"]),
    ):
        tensor = pb_utils.Tensor("X", array)
        assert tensor.triton_dtype() == 13
        assert tensor.as_numpy().tolist() == [b"a", "é".encode()]
        assert tensor.as_numpy().dtype == np.object_


def test_arrays_in_another_order_are_copied_to_c_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    stored = pb_utils.Tensor("X", array).as_numpy()
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, array)
    assert pb_utils.Tensor("X", np.array(1.0)).shape() == []
    assert pb_utils.Tensor("X", np.arange(3, dtype=">i4")).as_numpy().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "array", "error", "message"),
    [
        ("", np.zeros(1), pb_utils.TritonModelException, "Tensor name cannot be an empty string."),
        ("X", [1, 2], TypeError, "tensor 'X': expected a numpy array, found type '<class 'list'>'"),
        (
            "X",
            np.zeros(1, complex),
            pb_utils.TritonModelException,
            "tensor 'X': numpy's complex128 is not a tensor datatype",
        ),
    ],
)
def test_what_is_no_tensor_is_refused(
    name: str, array: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        pb_utils.Tensor(name, array)
    assert str(refused.value) == message


def test_a_received_array_is_the_models_own_and_stays_the_same_one() -> None:
    array = np.zeros(3, np.float32)
    array.setflags(write=False)
    tensor = shared_tensor("X", TensorValue(DataType.FP32, array))
    seen = tensor.as_numpy()
    seen[0] = 1
    assert tensor.as_numpy() is seen
    assert np.from_dlpack(tensor).tolist() == [1, 0, 0]
    assert array.tolist() == [0, 0, 0]


def test_a_received_tensor_that_is_passed_on_unread_is_not_copied() -> None:
    value = TensorValue(DataType.FP32, np.zeros(3, np.float32))
    assert tensor_value(shared_tensor("X", value)) is value


@pytest.mark.parametrize(("dtype", "number"), NUMBERS)
def test_dlpack_takes_an_array_there_and_back_without_a_copy(dtype: type[np.generic], number: int) -> None:
    array = np.ones((2, 3), dtype)
    tensor = pb_utils.Tensor.from_dlpack("Y", pb_utils.Tensor("X", array).to_dlpack())
    assert (tensor.name(), tensor.triton_dtype(), tensor.shape()) == ("Y", number, [2, 3])
    assert np.shares_memory(tensor.as_numpy(), array)
    np.testing.assert_array_equal(tensor.as_numpy(), array)


def test_exported_memory_is_kept_as_long_as_it_is_used_and_no_longer() -> None:
    before = len(dlpack._exported)
    unused = pb_utils.Tensor("X", np.ones(3)).to_dlpack()
    used = pb_utils.Tensor.from_dlpack("Y", pb_utils.Tensor("X", np.full(3, 7.0)).to_dlpack())
    assert len(dlpack._exported) == before + 2
    gc.collect()
    assert used.as_numpy().tolist() == [7.0, 7.0, 7.0]
    del unused, used
    gc.collect()
    assert len(dlpack._exported) == before


def test_a_capsule_is_used_once() -> None:
    capsule = pb_utils.Tensor("X", np.ones(3)).to_dlpack()
    pb_utils.Tensor.from_dlpack("Y", capsule)
    with pytest.raises(pb_utils.TritonModelException, match="expected an unused DLPack capsule"):
        pb_utils.Tensor.from_dlpack("Y", capsule)


def test_numpy_exports_and_imports_through_the_protocol() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    tensor = pb_utils.Tensor.from_dlpack("X", array)
    assert np.shares_memory(tensor.as_numpy(), array)
    assert tensor.__dlpack_device__() == (1, 0)
    np.testing.assert_array_equal(np.from_dlpack(tensor), array)
    array.setflags(write=False)
    assert np.shares_memory(pb_utils.Tensor.from_dlpack("X", array).as_numpy(), array)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)])
def test_dlpack_knows_empty_and_scalar_tensors(shape: tuple[int, ...]) -> None:
    tensor = pb_utils.Tensor.from_dlpack("Y", pb_utils.Tensor("X", np.ones(shape, np.float32)).to_dlpack())
    assert tensor.shape() == list(shape)


def test_bf16_passes_through_dlpack_but_not_numpy() -> None:
    tensor = pb_utils.Tensor("X", np.array([1.5, -2.0], ml_dtypes.bfloat16))
    assert tensor.triton_dtype() == 14
    again = pb_utils.Tensor.from_dlpack("Y", tensor.to_dlpack())
    assert tensor_value(again).array.tolist() == [0x3FC0, 0xC000]
    with pytest.raises(pb_utils.TritonModelException) as refused:
        again.as_numpy()
    assert str(refused.value) == (
        "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
    )


def test_what_dlpack_cannot_pass_is_refused() -> None:
    with pytest.raises(pb_utils.TritonModelException) as refused:
        pb_utils.Tensor("X", np.array([b"a"], object)).to_dlpack()
    assert str(refused.value) == "DLPack does not have support for string tensors."
    with pytest.raises(pb_utils.TritonModelException) as refused:
        pb_utils.Tensor.from_dlpack("X", np.ones((2, 3)).T)
    assert str(refused.value) == (
        "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported."
    )


def test_torch_reads_and_gives_tensors() -> None:
    torch = pytest.importorskip("torch")
    array = np.arange(4, dtype=np.float32)
    array.setflags(write=False)
    received = shared_tensor("X", TensorValue(DataType.FP32, array))
    assert torch.from_dlpack(received).tolist() == [0, 1, 2, 3]
    own = received.as_numpy()
    assert torch.utils.dlpack.from_dlpack(received.to_dlpack()).data_ptr() == own.ctypes.data
    half = torch.tensor([1.5, 2.5], dtype=torch.bfloat16)
    tensor = pb_utils.Tensor.from_dlpack("Y", half)
    assert torch.equal(torch.from_dlpack(tensor), half)
