"""DLPack on the CPU: capsules made from arrays and arrays made from capsules, without a copy.

Owns the C structures of DLPack 0.x. Written against the capsules themselves because numpy neither exports BF16 nor
read-only arrays to consumers of that version. Knows no tensors of ours.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cantata.runtime.datatypes import NUMPY_DTYPES, DataType

CPU_DEVICE: Final = (1, 0)
# Pinned host memory (CUDA, ROCm) is ordinary memory to whoever reads it.
_HOST_DEVICES: Final = (1, 3, 11)


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _ManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", _Deleter))


# DLDataTypeCode: int 0, uint 1, float 2, bfloat 4, bool 6.
_CODES: Final[dict[DataType, tuple[int, int]]] = {
    DataType.BOOL: (6, 8),
    DataType.UINT8: (1, 8),
    DataType.UINT16: (1, 16),
    DataType.UINT32: (1, 32),
    DataType.UINT64: (1, 64),
    DataType.INT8: (0, 8),
    DataType.INT16: (0, 16),
    DataType.INT32: (0, 32),
    DataType.INT64: (0, 64),
    DataType.FP16: (2, 16),
    DataType.FP32: (2, 32),
    DataType.FP64: (2, 64),
    DataType.BF16: (4, 16),
}
_DATATYPES: Final = {code: datatype for datatype, code in _CODES.items()}

_NAME: Final = b"dltensor"
_USED_NAME: Final = b"used_dltensor"
_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_IsValid.restype = ctypes.c_int
_api.PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.restype = ctypes.c_int
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)

_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# The same calls on a raw pointer: a capsule in its destructor must not be counted again as an object.
_pointer_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)

# What exported capsules point into, by the address of their structure, until the consumer deletes it.
_exported: dict[int, tuple[Any, ...]] = {}


def _forget(address: int) -> None:
    _exported.pop(address, None)


def _destroy_capsule(capsule: int) -> None:
    # A capsule that nobody consumed still owns its structure.
    if _pointer_is_valid(capsule, _NAME):
        _exported.pop(_pointer_of(capsule, _NAME), None)


_forget_callback = _Deleter(_forget)
_destroy_callback = _Destructor(_destroy_capsule)


def export_array(array: npt.NDArray[Any], datatype: DataType) -> Any:
    """A capsule over the memory of a C-contiguous array, which lives as long as its consumer needs it."""
    code, bits = _CODES[datatype]
    shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    managed = _ManagedTensor(
        _Tensor(
            array.ctypes.data, _Device(*CPU_DEVICE), array.ndim, _DataType(code, bits, 1), shape, None, 0
        ),
        None,
        _forget_callback,
    )
    address = ctypes.addressof(managed)
    _exported[address] = (managed, shape, array)
    return _api.PyCapsule_New(address, _NAME, ctypes.cast(_destroy_callback, ctypes.c_void_p))


class NotContiguousError(ValueError):
    """The capsule's elements do not lie in C order."""


def import_capsule(capsule: Any) -> tuple[npt.NDArray[Any], DataType]:
    """The array that a capsule describes, over the same memory; the capsule is used up.

    Raises NotContiguousError, or ValueError for what is not on the CPU, of no datatype of ours, or no capsule.
    """
    if not _api.PyCapsule_IsValid(capsule, _NAME):
        raise ValueError("expected an unused DLPack capsule")
    address = _api.PyCapsule_GetPointer(capsule, _NAME)
    managed = _ManagedTensor.from_address(address)
    tensor = managed.tensor
    datatype = _DATATYPES.get((tensor.dtype.code, tensor.dtype.bits))
    if datatype is None or tensor.dtype.lanes != 1:
        raise ValueError(
            f"DLPack type code {tensor.dtype.code} of {tensor.dtype.bits} bits is not a tensor datatype"
        )
    if tensor.device.device_type not in _HOST_DEVICES:
        raise ValueError("the DLPack tensor is not in CPU memory")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides and not _is_c_contiguous(
        shape, tuple(tensor.strides[axis] for axis in range(tensor.ndim))
    ):
        raise NotContiguousError
    _api.PyCapsule_SetName(capsule, _USED_NAME)
    return _array_over(managed, address, shape, NUMPY_DTYPES[datatype]), datatype


def _is_c_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class _Memory:
    """What numpy reads an array's place from; the array keeps it, and it keeps the producer's memory."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


def _array_over(
    managed: _ManagedTensor, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    if 0 in shape:
        array: npt.NDArray[Any] = np.empty(shape, dtype)
        _delete(managed.deleter, address)
        return array
    memory = _Memory(managed.tensor.data + managed.tensor.byte_offset, shape, dtype)
    weakref.finalize(memory, _delete, managed.deleter, address).atexit = False
    return np.asarray(memory)


def _delete(deleter: Any, address: int) -> None:
    if deleter:
        deleter(address)
