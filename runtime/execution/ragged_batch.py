"""Ragged batches: inputs laid end to end, what tells the model their bounds, and outputs cut up by them.

Owns the arithmetic of the reference, section 6.5. Knows arrays and tables; no backend and no response.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from cantata.runtime.datatypes import NUMPY_DTYPES
from cantata.runtime.ragged_spec import BatchInputKind, BatchInputSpec, RaggedSpec
from cantata.runtime.request import InferenceRequest

Array = npt.NDArray[Any]


def ragged_inputs(ragged: RaggedSpec, requests: Sequence[InferenceRequest]) -> dict[str, Array]:
    """The ragged inputs that the batch has, each flat, and its batch inputs."""
    arrays = {
        name: _flattened([request.inputs[name].array for request in requests])
        for name in requests[0].inputs
        if name in ragged.inputs
    }
    for batch_input in ragged.batch_inputs:
        source = batch_input.source
        shapes = [request.inputs[source].array.shape for request in requests if source in request.inputs]
        value = batch_input_value(batch_input, shapes)
        arrays.update(dict.fromkeys(batch_input.targets, value))
    return arrays


def batch_input_value(batch_input: BatchInputSpec, shapes: Sequence[tuple[int, ...]]) -> Array:
    """A batch input; `shapes` are those of the source in each request, with the batch dimension."""
    dtype = NUMPY_DTYPES[batch_input.datatype]
    counts = [prod(shape) for shape in shapes]
    match batch_input.kind:
        case BatchInputKind.ELEMENT_COUNT:
            return np.array(counts, dtype)
        case BatchInputKind.ACCUMULATED_ELEMENT_COUNT:
            return np.array(list(accumulate(counts)), dtype)
        case BatchInputKind.ACCUMULATED_ELEMENT_COUNT_WITH_ZERO:
            return np.array([0, *accumulate(counts)], dtype)
        case BatchInputKind.MAX_ELEMENT_COUNT_AS_SHAPE:
            return np.zeros(max(counts, default=0), dtype)
        case BatchInputKind.ITEM_SHAPE:
            return _item_shapes(shapes, dtype)
        case BatchInputKind.ITEM_SHAPE_FLATTEN:
            return _item_shapes(shapes, dtype).reshape(-1)
        case _:
            assert_never(batch_input.kind)


def scattered(
    array: Array, dims: tuple[int, ...], sources: Sequence[tuple[int, ...]], batches: bool
) -> list[Array]:
    """An output's parts, one a request, as views; `sources` are the shapes of the source input.

    A part has the output's `dims`, of any size where the source's are, and the source's batch dimension. Raises
    ValueError when the output has another number of elements.
    """
    shapes = [_part_shape(dims, source, batches) for source in sources]
    bounds = [0, *accumulate(map(prod, shapes))]
    if array.size != bounds[-1]:
        raise ValueError(f"the batch's requests have {bounds[-1]} elements, but the model gave {array.size}")
    flat = array.reshape(-1)
    return [
        flat[start:end].reshape(shape)
        for start, end, shape in zip(bounds[:-1], bounds[1:], shapes, strict=True)
    ]


def _part_shape(dims: tuple[int, ...], source: tuple[int, ...], batches: bool) -> tuple[int, ...]:
    leading, own = (source[:1], source[1:]) if batches else ((), source)
    if len(own) == len(dims):
        return leading + tuple(size if dim == -1 else dim for dim, size in zip(dims, own, strict=True))
    fixed = prod(dim for dim in dims if dim != -1)
    return leading + tuple(prod(own) // fixed if dim == -1 else dim for dim in dims)


def _flattened(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0].reshape(-1)
    return np.concatenate([array.reshape(-1) for array in arrays])


def _item_shapes(shapes: Sequence[tuple[int, ...]], dtype: npt.DTypeLike) -> Array:
    return np.array([shape[1:] for shape in shapes for _ in range(shape[0])], dtype)
