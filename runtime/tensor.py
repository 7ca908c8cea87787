"""A tensor's value: a datatype and a numpy array, and its raw form on the wire.

Owns the conversion between arrays and raw little-endian bytes, BYTES with its length prefixes included
(reference, section 3.2). Knows no names, requests or models. Arrays are shared between requests and steps by
reference and must never be written to by whoever receives them.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from math import prod
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cantata.runtime.datatypes import BF16, BYTES, ELEMENT_SIZES, NUMPY_DTYPES, DataType, datatype_of_numpy

if sys.byteorder != "little":
    raise ImportError("cantata needs a little-endian machine: tensors are passed as they lie in memory")

_LENGTH = struct.Struct("<I")
# Below this many bytes, a copy costs less than a view.
_SMALL = 16_384


class Tensor:
    """A value of `datatype` in `array`, whose numpy dtype is `NUMPY_DTYPES[datatype]`.

    BYTES arrays are of dtype object and hold `bytes`; BF16 arrays are uint16 bit patterns.
    """

    __slots__ = ("array", "datatype")

    def __init__(self, datatype: DataType, array: npt.NDArray[np.generic]) -> None:
        self.datatype = datatype
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def reshaped(self, shape: tuple[int, ...]) -> Tensor:
        """The same elements in another shape, sharing the memory where numpy can."""
        return Tensor(self.datatype, self.array.reshape(shape))

    def byte_size(self) -> int:
        """The size of `raw_bytes`, in bytes."""
        if self.datatype is BYTES:
            return sum(len(element) for element in self._elements()) + 4 * self.array.size
        return self.array.nbytes

    def raw_bytes(self) -> bytes | memoryview:
        """The elements in row-major order as the wire has them; of a large array in order, a view."""
        if self.datatype is BYTES:
            return encode_bytes_elements(self._elements())
        array = self.array
        if array.nbytes <= _SMALL or not array.flags.c_contiguous:
            return array.tobytes()
        return array.reshape(-1).view(np.uint8).data

    def _elements(self) -> Iterable[bytes]:
        return cast(Iterable[bytes], self.array.flat)

    def __repr__(self) -> str:
        return f"Tensor({self.datatype.name}, {list(self.shape)})"


class WritableTensor(Tensor):
    """A value that its receiver may write to, and whose changes are meant to last: a state that is kept in place."""

    __slots__ = ()


def tensor_of_array(array: npt.ArrayLike, datatype: DataType | None = None) -> Tensor:
    """The tensor that holds `array`: strings become UTF-8 BYTES, other byte orders the machine's.

    Raises TypeError for a dtype that no datatype matches, or that is not `datatype`'s where that is given.
    """
    value = np.asarray(array)
    found = datatype_of_numpy(value.dtype)
    if found is None:
        raise TypeError(f"no datatype holds numpy's {value.dtype}")
    if datatype is BF16 and found is DataType.UINT16:
        found = BF16
    if datatype is not None and datatype is not found:
        raise TypeError(f"expected {datatype.name}, got {found.name} (numpy's {value.dtype})")
    if found is BYTES:
        return Tensor(found, bytes_array(value))
    return Tensor(found, np.asarray(value, dtype=NUMPY_DTYPES[found]))


def bytes_array(values: npt.NDArray[np.generic]) -> npt.NDArray[np.object_]:
    """An object array of `bytes` with the shape of `values`: bytes are kept, all else is str() in UTF-8."""
    if values.dtype == object and all(
        isinstance(element, bytes) for element in cast(Iterable[object], values.flat)
    ):
        return values  # type: ignore[return-value]
    converted = np.empty(values.shape, dtype=object)
    flat = converted.reshape(-1)
    for index, element in enumerate(values.flat):
        flat[index] = bytes(element) if isinstance(element, bytes | bytearray) else str(element).encode()
    return converted


def zeros(datatype: DataType, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array of nothing: zeros, or empty texts."""
    if datatype is BYTES:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, NUMPY_DTYPES[datatype])


class RawTensorError(ValueError):
    """Raw bytes that are not the tensor they are said to be."""

    def __init__(self, text: str) -> None:
        super().__init__(text.replace("{where}", "this tensor"))
        self._text = text

    def for_input(self, input_name: str, model_name: str) -> str:
        """The error's text in a request's terms (reference, section 6.1)."""
        return self._text.replace("{where}", f"input '{input_name}' for model '{model_name}'")


def tensor_of_raw(datatype: DataType, shape: tuple[int, ...], raw: bytes | memoryview) -> Tensor:
    """The tensor whose wire form is `raw`, as a read-only view of it where the datatype allows.

    Raises RawTensorError when `raw` is not a tensor of that datatype and shape.
    """
    if datatype is BYTES:
        return Tensor(datatype, _decode_bytes_elements(raw, shape))
    expected = prod(shape) * ELEMENT_SIZES[datatype]
    if len(raw) != expected:
        raise RawTensorError(f"input byte size mismatch for {{where}}. Expected {expected}, got {len(raw)}")
    array: npt.NDArray[np.generic] = np.frombuffer(raw, dtype=NUMPY_DTYPES[datatype])
    return Tensor(datatype, array if array.shape == shape else array.reshape(shape))


def encode_bytes_elements(elements: Iterable[bytes]) -> bytes:
    """Each element as its length (uint32, little-endian) and its bytes."""
    parts: list[bytes] = []
    for element in elements:
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def _decode_bytes_elements(raw: bytes | memoryview, shape: tuple[int, ...]) -> npt.NDArray[np.object_]:
    count = prod(shape)
    elements: list[bytes] = []
    view = memoryview(raw)
    end = len(view)
    position = 0
    while position < end:
        if end - position < 4:
            raise RawTensorError(
                f"incomplete string length indicator for inference {{where}}, expecting 4 bytes but only "
                f"{end - position} bytes available. Please make sure the string length indicator is in one buffer."
            )
        (length,) = _LENGTH.unpack_from(view, position)
        position += 4
        if end - position < length:
            raise RawTensorError(
                f"incomplete string data for inference {{where}}, expecting string of length {length} "
                f"but only {end - position} bytes available."
            )
        elements.append(bytes(view[position : position + length]))
        position += length
        if len(elements) > count:
            raise RawTensorError(
                f"unexpected number of string elements {len(elements)} for inference {{where}}, expecting {count}"
            )
    if len(elements) != count:
        raise RawTensorError(f"expected {count} string elements for inference {{where}}, got {len(elements)}")
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(shape)
