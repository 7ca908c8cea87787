"""Tensors written as JSON lists, both ways (reference, section 3.3).

Lists may be nested in any way: only the number of elements counts. Element types are strict, integers are cut to
their width, and nothing is walked element by element in Python that numpy or a set can look at whole.
"""

from __future__ import annotations

import json
from itertools import chain
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt

from cantata.runtime.datatypes import BYTES, ELEMENT_SIZES, NUMPY_DTYPES, DataType
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument
from cantata.runtime.tensor import RawTensorError, Tensor

MAX_DEPTH: Final = 100

_WITHOUT_JSON: Final = frozenset({DataType.FP16, DataType.BF16})

_ONLY_STR: Final = frozenset({str})
_ONLY_INT: Final = frozenset({int})

# What a datatype's JSON elements may be, the numpy type they are read into, and what is said of others.
_SIGNED = (_ONLY_INT, np.dtype(np.int64), "attempt to access JSON non-signed-integer as signed-integer")
_UNSIGNED = (
    _ONLY_INT,
    np.dtype(np.uint64),
    "attempt to access JSON non-unsigned-integer as unsigned-integer",
)
_FLOAT = (frozenset({int, float}), np.dtype(np.float64), "attempt to access JSON non-number as double")
_NUMERIC_RULES: Final[dict[DataType, tuple[frozenset[type], np.dtype[np.generic], str]]] = {
    DataType.BOOL: (frozenset({bool}), np.dtype(np.bool_), "attempt to access JSON non-boolean as boolean"),
    DataType.INT8: _SIGNED,
    DataType.INT16: _SIGNED,
    DataType.INT32: _SIGNED,
    DataType.INT64: _SIGNED,
    DataType.UINT8: _UNSIGNED,
    DataType.UINT16: _UNSIGNED,
    DataType.UINT32: _UNSIGNED,
    DataType.UINT64: _UNSIGNED,
    DataType.FP32: _FLOAT,
    DataType.FP64: _FLOAT,
}


def tensor_of_json(
    name: str, datatype: DataType, shape: tuple[int, ...], data: object, max_size: int
) -> Tensor:
    """The tensor that the value of an input's `data` holds.

    Raises InferenceError for another number of elements, elements of another type, or a tensor over `max_size`
    bytes, and RawTensorError for another number of strings.
    """
    if type(data) is not list:
        raise _data_error("attempt to access JSON non-array as array")
    if datatype in _WITHOUT_JSON:
        raise invalid_argument(
            f"receiving {datatype.name} data via JSON is not supported. "
            f"Please use the binary data format for input {name}"
        )
    count = prod(shape)
    _check_size(name, count * ELEMENT_SIZES[datatype], max_size)
    elements, kinds = _flattened(data)
    if datatype is BYTES:
        return _bytes_tensor(name, shape, elements, kinds, max_size)
    if len(elements) > count:
        raise internal_error("Unable to parse 'data': Shape does not match true shape of 'data' field")
    array = _numeric_array(datatype, elements, kinds)
    if len(elements) < count:
        raise internal_error("Failed to parse 'data' field: shape does not match true shape")
    return Tensor(datatype, array.reshape(shape))


def _flattened(data: list[object]) -> tuple[list[object], set[type]]:
    """The elements of nested lists in order, and the types among them."""
    depth = 1
    kinds = set(map(type, data))
    while list in kinds:
        depth += 1
        if depth > MAX_DEPTH:
            raise _depth_error()
        if len(kinds) > 1:
            data = _flattened_by_walking(data, MAX_DEPTH - depth + 2)
        else:
            data = list(chain.from_iterable(data))  # type: ignore[arg-type]
        kinds = set(map(type, data))
    return data, kinds


def _flattened_by_walking(data: list[object], max_depth: int) -> list[object]:
    """The same for lists that hold elements and lists side by side."""
    elements: list[object] = []
    levels = [iter(data)]
    while levels:
        for element in levels[-1]:
            if type(element) is list:
                if len(levels) == max_depth:
                    raise _depth_error()
                levels.append(iter(element))
                break
            elements.append(element)
        else:
            levels.pop()
    return elements


def _numeric_array(datatype: DataType, elements: list[object], kinds: set[type]) -> npt.NDArray[np.generic]:
    dtype = NUMPY_DTYPES[datatype]
    allowed, widest, error = _NUMERIC_RULES[datatype]
    if not kinds <= allowed:
        raise _data_error(error)
    try:
        # A double too large for FP32 becomes infinite; an integer too large for its type loses its upper bits.
        with np.errstate(over="ignore"):
            return np.array(elements, dtype=widest).astype(dtype, copy=False)
    except OverflowError:
        raise _data_error(error) from None


def _bytes_tensor(
    name: str, shape: tuple[int, ...], elements: list[object], kinds: set[type], max_size: int
) -> Tensor:
    if not kinds <= _ONLY_STR:
        raise invalid_argument(
            "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
        )
    encoded = [element.encode() for element in elements]  # type: ignore[attr-defined]
    _check_size(name, sum(map(len, encoded)) + 4 * len(encoded), max_size)
    count = prod(shape)
    if len(encoded) < count:
        raise RawTensorError(f"expected {count} string elements for inference {{where}}, got {len(encoded)}")
    if len(encoded) > count:
        raise RawTensorError(
            f"unexpected number of string elements {len(encoded)} for inference {{where}}, expecting {count}"
        )
    array = np.empty(len(encoded), dtype=object)
    array[:] = encoded
    return Tensor(DataType.BYTES, array.reshape(shape))


def json_text_with_nan(elements: npt.NDArray[np.generic]) -> bytes:
    """The JSON list of `elements` with NaN, Infinity and -Infinity as Triton writes them, which is not quite JSON."""
    return json.dumps(elements.tolist(), separators=(",", ":")).encode()


def _check_size(name: str, byte_size: int, max_size: int) -> None:
    if byte_size > max_size:
        raise invalid_argument(
            f"JSON input '{name}' has a byte_size ({byte_size} bytes) that exceeds the maximum allowed value of "
            f"{max_size} bytes. Use --http-max-input-size to increase the limit."
        )


def json_elements(tensor: Tensor) -> list[str] | npt.NDArray[np.generic]:
    """The elements of an output, flat, as orjson writes them; FP32 as the doubles that equal them.

    Raises InferenceError for a datatype without JSON form, or BYTES that are not UTF-8.
    """
    array, datatype = tensor.array, tensor.datatype
    if datatype is BYTES:
        try:
            return [element.decode() for element in array.ravel().tolist()]
        except UnicodeDecodeError:
            raise invalid_argument(
                "sending BYTES that are not UTF-8 via JSON is not supported. "
                "Please use the binary data format for output"
            ) from None
    if datatype in _WITHOUT_JSON:
        raise invalid_argument(
            f"sending {datatype.name} data via JSON is not supported. "
            "Please use the binary data format for output"
        )
    if datatype is DataType.FP32:
        array = array.astype(np.float64)
    return np.ascontiguousarray(array).reshape(-1)


def _data_error(text: str) -> InferenceError:
    return invalid_argument(f"Unable to parse 'data': {text}")


def _depth_error() -> InferenceError:
    return invalid_argument(f"JSON nesting depth exceeds maximum allowed limit ({MAX_DEPTH})")
