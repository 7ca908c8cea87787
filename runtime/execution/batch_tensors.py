"""Between the requests of a batch and the arrays a model runs on: gathering inputs, dividing outputs.

Shared by every backend that computes on arrays. Knows no model library. One request's arrays pass through
untouched; several are concatenated once, and their outputs are views of the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cantata.runtime.datatypes import NUMPY_DTYPES, DataType, datatype_of_numpy
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.ragged_batch import ragged_inputs, scattered
from cantata.runtime.model_spec import ModelSpec, TensorSpec, client_side_shape, model_side_shape, shape_text
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor

Array = npt.NDArray[Any]


def gather_inputs(execution: Execution) -> dict[str, Array]:
    """The batch's inputs by name, as the model sees them; optional inputs that no request has are absent.

    Raises InferenceError when the requests' inputs cannot be one batch.
    """
    spec, requests = execution.spec, execution.requests
    if spec.ragged is not None:
        names = [name for name in requests[0].inputs if name not in spec.ragged.inputs]
        arrays = {name: _concatenated(spec, name, requests) for name in names}
        arrays.update(ragged_inputs(spec.ragged, requests))
    elif len(requests) == 1:
        arrays = {name: tensor.array for name, tensor in requests[0].inputs.items()}
    else:
        arrays = {name: _concatenated(spec, name, requests) for name in requests[0].inputs}
    if spec.reshapes_inputs:
        for name, array in arrays.items():
            tensor_spec = spec.inputs.get(name)
            if tensor_spec is not None and tensor_spec.reshape is not None and not tensor_spec.is_ragged:
                arrays[name] = array.reshape(model_side_shape(tensor_spec, array.shape, spec.batches))
    return arrays


def wanted_outputs(execution: Execution) -> Sequence[str]:
    """The outputs that the batch's requests ask for, together, and the states of their sequences."""
    state_outputs = execution.spec.state_outputs
    requested = _requested_outputs(execution)
    return (*dict.fromkeys((*requested, *state_outputs)),) if state_outputs else requested


def _requested_outputs(execution: Execution) -> Sequence[str]:
    requests = execution.requests
    if len(requests) == 1:
        return requests[0].requested_outputs or execution.spec.output_names
    wanted: dict[str, None] = {}
    for request in requests:
        if not request.requested_outputs:
            return execution.spec.output_names
        wanted.update(dict.fromkeys(request.requested_outputs))
    return tuple(wanted)


def divide_outputs(execution: Execution, arrays: Mapping[str, Array]) -> None:
    """Leave each request's response in `execution.responses`, and its new states, from the model's outputs by name.

    `arrays` holds every output of `wanted_outputs`. Raises InferenceError, for the whole batch, when an output
    has another datatype than the configuration says or cannot be divided among the requests.
    """
    spec, requests = execution.spec, execution.requests
    if spec.ragged is not None and spec.ragged.batch_outputs:
        _scatter_outputs(execution, arrays, spec.ragged.batch_outputs)
        return
    if len(requests) == 1:
        request = requests[0]
        rows = _rows_of(request) if spec.batches else None
        outputs: dict[str, Tensor] = {}
        for name in request.requested_outputs or spec.output_names:
            output, array = spec.outputs[name], arrays[name]
            outputs[name] = Tensor(output.datatype, _client_side(spec, output, array, rows))
        if spec.state_outputs:
            _keep_states(execution, arrays)
        execution.responses[0] = _response(spec, request, outputs)
        return
    bounds = [0, *accumulate(_rows_of(request) for request in requests)]
    whole = {
        name: _client_side(spec, spec.outputs[name], arrays[name], bounds[-1])
        for name in _requested_outputs(execution)
    }
    if spec.state_outputs:
        _keep_states(execution, arrays)
    for index, request in enumerate(requests):
        own_rows = slice(bounds[index], bounds[index + 1])
        outputs = {
            name: Tensor(spec.outputs[name].datatype, whole[name][own_rows])
            for name in request.requested_outputs or spec.output_names
        }
        execution.responses[index] = _response(spec, request, outputs)


def _scatter_outputs(execution: Execution, arrays: Mapping[str, Array], sources: Mapping[str, str]) -> None:
    """As `divide_outputs`, where some outputs are divided by the sizes of their source inputs."""
    spec, requests = execution.spec, execution.requests
    bounds = [0, *accumulate(_rows_of(request) for request in requests)]
    parts: dict[str, list[Array]] = {}
    for name in wanted_outputs(execution):
        output, array = spec.outputs[name], arrays[name]
        if name not in sources:
            whole = _client_side(spec, output, array, bounds[-1] if spec.batches else None)
            parts[name] = [whole[start:end] if spec.batches else whole for start, end in pairwise(bounds)]
            continue
        _check_datatype(spec, output, array)
        try:
            shapes = [request.inputs[sources[name]].array.shape for request in requests]
            parts[name] = scattered(array, output.dims, shapes, spec.batches)
        except (KeyError, ValueError) as error:
            raise _output_error(spec, output, str(error)) from None
    for index, request in enumerate(requests):
        outputs = {
            name: Tensor(spec.outputs[name].datatype, parts[name][index])
            for name in request.requested_outputs or spec.output_names
        }
        execution.responses[index] = _response(spec, request, outputs)


def _keep_states(execution: Execution, arrays: Mapping[str, Array]) -> None:
    """Give each request's sequence its part of the state outputs, as views."""
    spec, requests = execution.spec, execution.requests
    for name, datatype in spec.state_outputs.items():
        array = arrays[name]
        if NUMPY_DTYPES[datatype] != array.dtype:
            # A model may give its state in another type than it was given.
            datatype = datatype_of_numpy(array.dtype) or datatype
        if spec.batches and (not array.shape or array.shape[0] != len(requests)):
            raise internal_error(
                f"model '{spec.model_name}', state '{name}': the batch has {len(requests)} rows, but the model gave "
                f"the shape {shape_text(array.shape)}"
            )
        for row, request in enumerate(requests):
            if request.states is not None:
                own = array[row : row + 1] if spec.batches else array
                request.states[name] = Tensor(datatype, own)


def _concatenated(spec: ModelSpec, name: str, requests: Sequence[InferenceRequest]) -> Array:
    try:
        return np.concatenate([request.inputs[name].array for request in requests])
    except KeyError:
        raise invalid_argument(
            f"model '{spec.model_name}', input '{name}': only some requests of a batch have it"
        ) from None
    except ValueError as error:
        raise invalid_argument(
            f"model '{spec.model_name}', input '{name}': the shapes of a batch's requests do not fit: {error}"
        ) from None


def _rows_of(request: InferenceRequest) -> int:
    # Not `batch_size`: a request whose first dimension is 0 counts there as one, but has no rows.
    for tensor in request.inputs.values():
        return len(tensor.array)
    return request.batch_size


def _client_side(spec: ModelSpec, output: TensorSpec, array: Array, rows: int | None) -> Array:
    """`array`, checked, in the shape that clients see. `rows` is the batch size, None without batches."""
    _check_datatype(spec, output, array)
    if output.reshape is not None:
        array = _reshaped(spec, output, array)
    if rows is not None and (not array.shape or array.shape[0] != rows):
        raise _output_error(
            spec,
            output,
            f"the batch has {rows} rows, but the model gave the shape {shape_text(array.shape)}",
        )
    return array


def _check_datatype(spec: ModelSpec, output: TensorSpec, array: Array) -> None:
    if array.dtype != NUMPY_DTYPES[output.datatype]:
        raise _output_error(
            spec, output, f"expected {output.datatype.name}, but the model gave {_type_name(array)}"
        )


def _reshaped(spec: ModelSpec, output: TensorSpec, array: Array) -> Array:
    try:
        return array.reshape(client_side_shape(output, array.shape, spec.batches))
    except ValueError:
        raise _output_error(
            spec,
            output,
            f"the model's shape {shape_text(array.shape)} does not fit {shape_text(output.full_dims)}",
        ) from None


def _type_name(array: Array) -> str:
    for datatype, dtype in NUMPY_DTYPES.items():
        if dtype == array.dtype and datatype is not DataType.BF16:
            return datatype.name
    return str(array.dtype)


def _output_error(spec: ModelSpec, output: TensorSpec, text: str) -> InferenceError:
    return internal_error(f"model '{spec.model_name}', output '{output.name}': {text}")


def _response(spec: ModelSpec, request: InferenceRequest, outputs: dict[str, Tensor]) -> InferenceResponse:
    return InferenceResponse(spec.model_name, spec.model_version, request.id, outputs)
