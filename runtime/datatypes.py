"""The tensor datatypes: their wire names, configuration names, numbers and numpy forms.

Numbers are those of `inference.DataType` (reference, section 1). Knows nothing of any tensor's contents.
"""

from __future__ import annotations

import enum
from typing import Final

import numpy as np


class DataType(enum.IntEnum):
    """A datatype, named as on the wire; its value is its number in model_config.proto."""

    BOOL = 1
    UINT8 = 2
    UINT16 = 3
    UINT32 = 4
    UINT64 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    FP16 = 10
    FP32 = 11
    FP64 = 12
    BYTES = 13
    BF16 = 14

    @property
    def config_name(self) -> str:
        """`TYPE_FP32`; BYTES is TYPE_STRING there."""
        return "TYPE_STRING" if self is DataType.BYTES else f"TYPE_{self.name}"


# For comparisons on the request path: a member of an enum takes seven times as long to find as a module's own name.
BYTES: Final = DataType.BYTES
BF16: Final = DataType.BF16

# The numpy dtype that holds a tensor of each datatype. BF16 has none in numpy: its 16 bits are held as uint16.
NUMPY_DTYPES: Final[dict[DataType, np.dtype[np.generic]]] = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype(np.uint8),
    DataType.UINT16: np.dtype(np.uint16),
    DataType.UINT32: np.dtype(np.uint32),
    DataType.UINT64: np.dtype(np.uint64),
    DataType.INT8: np.dtype(np.int8),
    DataType.INT16: np.dtype(np.int16),
    DataType.INT32: np.dtype(np.int32),
    DataType.INT64: np.dtype(np.int64),
    DataType.FP16: np.dtype(np.float16),
    DataType.FP32: np.dtype(np.float32),
    DataType.FP64: np.dtype(np.float64),
    DataType.BYTES: np.dtype(np.object_),
    DataType.BF16: np.dtype(np.uint16),
}

# Bytes of one element; 0 for BYTES, whose elements say their own length.
ELEMENT_SIZES: Final[dict[DataType, int]] = {
    datatype: 0 if datatype is DataType.BYTES else dtype.itemsize for datatype, dtype in NUMPY_DTYPES.items()
}

BY_WIRE_NAME: Final[dict[str, DataType]] = {datatype.name: datatype for datatype in DataType}
BY_CONFIG_NAME: Final[dict[str, DataType]] = {datatype.config_name: datatype for datatype in DataType}

# Of the machine's own byte order.
BY_NUMPY_DTYPE: Final[dict[np.dtype[np.generic], DataType]] = {
    dtype: datatype for datatype, dtype in NUMPY_DTYPES.items() if datatype is not DataType.BF16
}


def datatype_of_numpy(dtype: np.dtype[np.generic]) -> DataType | None:
    """The datatype whose tensors numpy holds as `dtype`, or None where there is none (complex, dates).

    Byte and unicode strings of fixed width are BYTES. uint16 is UINT16: BF16 must be said outright.
    """
    found = BY_NUMPY_DTYPE.get(dtype)
    if found is None:
        if dtype.kind in "SU":
            return DataType.BYTES
        found = BY_NUMPY_DTYPE.get(dtype.newbyteorder("="))
    return found
