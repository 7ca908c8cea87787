"""The functions of pb_utils that convert between Triton's datatypes, numpy's, and the raw form of byte tensors."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cantata.runtime.datatypes import BY_CONFIG_NAME, NUMPY_DTYPES, DataType
from cantata.runtime.tensor import bytes_array, encode_bytes_elements

# BF16 is left out: numpy has no such type, models reach it through DLPack.
_NUMPY_TYPES: Final[dict[int, type[np.generic]]] = {
    int(datatype): np.bytes_ if datatype is DataType.BYTES else dtype.type
    for datatype, dtype in NUMPY_DTYPES.items()
    if datatype is not DataType.BF16
}
_TRITON_TYPES: Final[dict[type[np.generic], int]] = {
    **{numpy_type: number for number, numpy_type in _NUMPY_TYPES.items()},
    np.object_: int(DataType.BYTES),
    np.str_: int(DataType.BYTES),
}


def triton_to_numpy_type(data_type: int) -> type[np.generic]:
    """`np.float32` for 11; raises KeyError for a number that has no numpy type."""
    return _NUMPY_TYPES[data_type]


def numpy_to_triton_type(data_type: npt.DTypeLike) -> int:
    """11 for `np.float32`, as a type or a dtype; raises KeyError where there is none."""
    return _TRITON_TYPES[np.dtype(data_type).type]


def triton_string_to_numpy(triton_type_string: str) -> type[Any]:
    """`np.float32` for "TYPE_FP32", `np.object_` for "TYPE_STRING"; raises KeyError for BF16 and unknown names."""
    datatype = BY_CONFIG_NAME[triton_type_string]
    if datatype is DataType.BF16:
        raise KeyError(triton_type_string)
    return bool if datatype is DataType.BOOL else NUMPY_DTYPES[datatype].type


def serialize_byte_tensor(input_tensor: npt.NDArray[Any]) -> bytes | None:
    """Every element in row-major order as its length (4 bytes, little-endian) and its bytes.

    None for arrays that hold neither objects nor byte strings.
    """
    if input_tensor.dtype != np.object_ and input_tensor.dtype.type not in (np.bytes_, np.str_):
        return None
    elements: Iterable[bytes] = bytes_array(input_tensor).flat  # type: ignore[assignment]
    return encode_bytes_elements(elements)


def deserialize_bytes_tensor(encoded_tensor: bytes | memoryview) -> npt.NDArray[np.object_]:
    """The reverse of `serialize_byte_tensor`, as a one-dimensional array of bytes objects."""
    elements: list[bytes] = []
    view = memoryview(encoded_tensor)
    position = 0
    while position < len(view):
        (length,) = struct.unpack_from("<I", view, position)
        position += 4
        elements.append(bytes(view[position : position + length]))
        position += length
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array
