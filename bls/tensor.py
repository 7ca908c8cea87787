"""pb_utils.Tensor: a named value as a model.py sees it.

Owns names, numpy and DLPack views. The value itself is the runtime's, passed on by reference: a tensor that a model
passes on unread is never copied. One that it reads from a request becomes its own, to write to as it likes, since the
same memory may be another step's input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cantata.bls import dlpack
from cantata.bls.errors import TritonModelException
from cantata.runtime.datatypes import BF16, BY_NUMPY_DTYPE, BYTES, NUMPY_DTYPES, datatype_of_numpy
from cantata.runtime.tensor import Tensor as TensorValue
from cantata.runtime.tensor import WritableTensor, bytes_array


class Tensor:
    """A tensor called `name`. Made by a model from a numpy array, or received with a request or response."""

    __slots__ = ("_is_shared", "_name", "_value")

    def __init__(self, name: str, numpy_array: npt.NDArray[Any]) -> None:
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        if not isinstance(numpy_array, np.ndarray):
            raise TypeError(f"tensor '{name}': expected a numpy array, found type '{type(numpy_array)}'")
        self._name = name
        self._value = _value_of(name, numpy_array)
        # Whether others may read the same memory: then the first to look at the elements gets a copy.
        self._is_shared = False

    def name(self) -> str:
        return self._name

    def triton_dtype(self) -> int:
        """The datatype's number in model_config.proto."""
        return int(self._value.datatype)

    def shape(self) -> list[int]:
        return list(self._value.array.shape)

    def as_numpy(self) -> npt.NDArray[Any]:
        """The elements, which may be changed in place. BYTES come as an object array of bytes."""
        value = self._value
        if value.datatype is BF16:
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
            )
        return self._own_value().array

    def is_cpu(self) -> bool:
        return True

    def to_dlpack(self) -> Any:
        """A DLPack capsule over the memory of `as_numpy`."""
        value = self._own_value()
        if value.datatype is BYTES:
            raise TritonModelException("DLPack does not have support for string tensors.")
        return dlpack.export_array(np.require(value.array, requirements="C"), value.datatype)

    def __dlpack__(self, *, stream: Any = None, **_newer: Any) -> Any:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU_DEVICE

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """The tensor over the memory of a DLPack capsule, or of an object with `__dlpack__`."""
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        capsule = tensor
        if hasattr(tensor, "__dlpack__"):
            if getattr(tensor, "flags", None) is not None and not tensor.flags.writeable:
                # numpy exports no read-only array this way; its own constructor takes it as it is.
                return Tensor(name, np.asarray(tensor))
            capsule = tensor.__dlpack__()
        try:
            array, datatype = dlpack.import_capsule(capsule)
        except dlpack.NotContiguousError:
            raise TritonModelException(
                "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are "
                "supported."
            ) from None
        except ValueError as error:
            raise TritonModelException(f"tensor '{name}': {error}") from None
        return own_tensor(name, TensorValue(datatype, array))

    def _own_value(self) -> TensorValue:
        value = self._value
        if self._is_shared:
            value = self._value = TensorValue(value.datatype, value.array.copy())
            self._is_shared = False
        return value

    def __repr__(self) -> str:
        return f"Tensor({self._name!r}, {self._value.datatype.name}, {self.shape()})"


def shared_tensor(name: str, value: TensorValue) -> Tensor:
    """A tensor that came with a request: its sender, or another step of a pipeline, may have it too."""
    tensor = Tensor.__new__(Tensor)
    tensor._name = name
    tensor._value = value
    tensor._is_shared = not isinstance(value, WritableTensor)
    return tensor


def own_tensor(name: str, value: TensorValue) -> Tensor:
    """A tensor of a value that nobody else has, as one that came with a response: that was made for its receiver."""
    tensor = Tensor.__new__(Tensor)
    tensor._name = name
    tensor._value = value
    tensor._is_shared = False
    return tensor


def tensor_value(tensor: Tensor) -> TensorValue:
    """The runtime's value of a tensor."""
    return tensor._value


def _value_of(name: str, array: npt.NDArray[Any]) -> TensorValue:
    dtype = array.dtype
    datatype = BY_NUMPY_DTYPE.get(dtype)
    if datatype is not None and datatype is not BYTES:
        # As numpy has them: most are, and each model makes some for each request.
        return TensorValue(datatype, array if array.flags.c_contiguous else array.copy(order="C"))
    datatype = datatype_of_numpy(dtype)
    if datatype is None:
        if dtype.name == "bfloat16":
            return TensorValue(BF16, np.require(array, requirements="C").view(np.uint16))
        raise TritonModelException(f"tensor '{name}': numpy's {dtype} is not a tensor datatype")
    if datatype is BYTES:
        return TensorValue(datatype, bytes_array(array))
    return TensorValue(datatype, array.astype(NUMPY_DTYPES[datatype], order="C"))
