"""How a pipeline writes down the type of a tensor: `bls.FP32[-1, 4, 2]`.

Owns the conversion of what a model returns to arrays of the declared type. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cantata.runtime.datatypes import NUMPY_DTYPES, DataType
from cantata.runtime.model_spec import shape_text
from cantata.runtime.tensor import Tensor as TensorValue
from cantata.runtime.tensor import bytes_array

_NUMPY_VALUES: Final = (np.ndarray, np.generic)


@dataclass(frozen=True, slots=True)
class TensorType:
    """A datatype and a shape; -1 is any size."""

    datatype: DataType
    dims: tuple[int, ...]

    def value_of(self, given: npt.ArrayLike, leading: tuple[int, ...] = ()) -> TensorValue:
        """`given` as a tensor of this type; `leading` dims stand before the declared ones.

        Numbers are converted where numpy calls that the same kind (float64 to FP32, not to INT32); strings become
        UTF-8; something empty gets the declared rank, a lone scalar the shape [1]. Raises TypeError otherwise.
        """
        array = self._array_of(given)
        dims = leading + self.dims
        if array.ndim != len(dims):
            if array.size == 0 and -1 in dims:
                array = array.reshape([0 if dim == -1 else dim for dim in dims])
            elif array.ndim == 0 and dims in ((1,), (-1,)):
                array = array.reshape(1)
        if len(dims) != array.ndim or any(
            dim not in (-1, size) for dim, size in zip(dims, array.shape, strict=True)
        ):
            raise TypeError(f"expected the shape {shape_text(dims)}, got {shape_text(array.shape)}")
        return TensorValue(self.datatype, array)

    def _array_of(self, given: npt.ArrayLike) -> npt.NDArray[Any]:
        if self.datatype is DataType.BYTES:
            return bytes_array(np.asarray(given, dtype=object))
        native = NUMPY_DTYPES[self.datatype]
        if isinstance(given, _NUMPY_VALUES):
            array = np.asarray(given)
            if array.dtype != native:
                if self.datatype is DataType.BF16 and array.dtype.name == "bfloat16":
                    return array.view(np.uint16)
                if not np.can_cast(array.dtype, native, "same_kind") and array.size:
                    raise TypeError(f"expected {self.datatype.name}, got numpy's {array.dtype}")
                array = array.astype(native)
            return np.require(array, requirements="C")
        try:
            return np.asarray(given, dtype=native)
        except (ValueError, OverflowError) as error:
            raise TypeError(f"expected {self.datatype.name}: {error}") from None


@dataclass(frozen=True, slots=True)
class ElementType:
    """The datatype of a tensor's elements; with its dims in brackets it is a TensorType."""

    datatype: DataType

    def __getitem__(self, dims: int | tuple[int, ...]) -> TensorType:
        sizes = dims if isinstance(dims, tuple) else (dims,)
        if not sizes or any(not isinstance(size, int) or (size < 1 and size != -1) for size in sizes):
            raise TypeError(f"the dims of a tensor are positive, or -1 for any size, not {list(sizes)}")
        return TensorType(self.datatype, sizes)


BOOL: Final = ElementType(DataType.BOOL)
UINT8: Final = ElementType(DataType.UINT8)
UINT16: Final = ElementType(DataType.UINT16)
UINT32: Final = ElementType(DataType.UINT32)
UINT64: Final = ElementType(DataType.UINT64)
INT8: Final = ElementType(DataType.INT8)
INT16: Final = ElementType(DataType.INT16)
INT32: Final = ElementType(DataType.INT32)
INT64: Final = ElementType(DataType.INT64)
FP16: Final = ElementType(DataType.FP16)
FP32: Final = ElementType(DataType.FP32)
FP64: Final = ElementType(DataType.FP64)
BYTES: Final = ElementType(DataType.BYTES)
BF16: Final = ElementType(DataType.BF16)
