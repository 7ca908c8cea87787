"""A model's inputs and outputs compiled for the request path, and the validation of requests against them.

Built once at load from the completed configuration. `ModelSpec.validate` raises with Triton's texts (reference,
section 6.1). Knows nothing of how a model runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, invalid_argument
from cantata.runtime.ragged_spec import ragged_spec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.sequence_tensors import state_outputs, variable_states
from cantata.runtime.tensor import Tensor

if TYPE_CHECKING:
    # A model's own process is given a ModelSpec ready made, and needs no configuration.
    from cantata.grammars.model_config import ModelConfig, ModelInput, ModelOutput

_BATCH_DIMENSION_NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to "
    "each input shape. If you want to specify the full shape including the batch dim in your input dims config, "
    "try setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def shape_text(shape: tuple[int, ...]) -> str:
    """`[-1,16]`, as Triton prints shapes."""
    return "[" + ",".join(map(str, shape)) + "]"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `dims` are the configuration's, without batch dimension; -1 is any size.

    `full_dims` has the leading -1 of a model that batches. `reshape` is what the model itself sees in place of
    `dims`, or None.
    """

    name: str
    datatype: DataType
    dims: tuple[int, ...]
    full_dims: tuple[int, ...]
    reshape: tuple[int, ...] | None
    is_optional: bool
    is_ragged: bool
    # Whether requests of different shapes can meet here, so that a batch must compare them.
    has_variable_dims: bool


class ModelSpec:
    """What requests for one model version must look like, and how its batches may be formed."""

    __slots__ = (
        "_checks",
        "_required_count",
        "_required_names",
        "any_optional",
        "batches",
        "compared_inputs",
        "inputs",
        "is_decoupled",
        "is_iterative",
        "max_batch_size",
        "model_name",
        "model_version",
        "output_names",
        "outputs",
        "ragged",
        "reshapes_inputs",
        "state_outputs",
    )

    def __init__(self, config: ModelConfig, model_version: int) -> None:
        self.model_name = config.name
        self.model_version = model_version
        self.max_batch_size = config.max_batch_size
        sequences = config.sequence_batching
        # Whether a request may run again and again before it is answered.
        self.is_iterative = sequences is not None and sequences.iterative_sequence
        self.batches = config.max_batch_size > 0
        policy = config.model_transaction_policy
        self.is_decoupled = policy is not None and policy.decoupled
        self.inputs = {tensor.name: _input_spec(tensor, self.batches) for tensor in config.input}
        self.outputs = {tensor.name: _output_spec(tensor, self.batches) for tensor in config.output}
        self.output_names = tuple(self.outputs)
        self.any_optional = any(spec.is_optional for spec in self.inputs.values())
        # Inputs whose shapes must be equal for two requests to share a batch (reference, section 6.3).
        self.compared_inputs = tuple(
            spec.name for spec in self.inputs.values() if spec.has_variable_dims and not spec.is_ragged
        ) + variable_states(config)
        # The outputs that a sequence's next request gets, beside or instead of the client.
        self.state_outputs = state_outputs(config)
        # None where batches are not ragged.
        self.ragged = ragged_spec(config)
        self.reshapes_inputs = any(spec.reshape is not None for spec in self.inputs.values())
        self._required_names = {spec.name for spec in self.inputs.values() if not spec.is_optional}
        self._required_count = len(self._required_names)
        # What `validate` compares: the datatype, the dims, their number, and the axes whose size is fixed.
        self._checks = {
            spec.name: (
                spec.datatype,
                spec.dims,
                len(spec.dims),
                tuple((axis, size) for axis, size in enumerate(spec.dims) if size != -1),
            )
            for spec in self.inputs.values()
        }

    def validate(self, request: InferenceRequest) -> None:
        """Check a request's inputs and requested outputs, and set its `batch_size` (1 where models do not batch).

        Raises InferenceError (INVALID_ARG) with the request's id and what was expected.
        """
        inputs = request.inputs
        checks = self._checks
        batches = self.batches
        if not self._required_count <= len(inputs) <= len(checks):
            raise self._count_error(request)
        batch_size = 0
        for name, tensor in inputs.items():
            check = checks.get(name)
            if check is None:
                raise self._error(
                    request, f"unexpected inference input '{name}' for model '{self.model_name}'"
                )
            datatype, dims, rank, fixed = check
            if tensor.datatype is not datatype:
                raise self._error(
                    request,
                    f"inference input '{name}' data-type is '{tensor.datatype.name}', "
                    f"but model '{self.model_name}' expects '{datatype.name}'",
                )
            shape = tensor.array.shape
            if batches:
                # A first dimension of 0 counts as unset when it is compared (reference, section 6.1).
                if not shape or (batch_size and shape[0] != batch_size):
                    raise self._batch_error(request, name, shape)
                batch_size = shape[0]
                shape = shape[1:]
            if shape != dims and (
                len(shape) != rank or (fixed and any(shape[axis] != size for axis, size in fixed))
            ):
                raise self._shape_error(request, name, tensor)
        if self.any_optional and not self._required_names <= inputs.keys():
            raise self._count_error(request)
        if batches:
            if batch_size > self.max_batch_size:
                raise self._error(
                    request,
                    f"inference request batch-size must be <= {self.max_batch_size} for '{self.model_name}'",
                )
            request.batch_size = batch_size or 1
        else:
            request.batch_size = 1
        for output in request.requested_outputs:
            if output not in self.outputs:
                raise self._error(
                    request, f"unexpected inference output '{output}' for model '{self.model_name}'"
                )

    def _batch_error(self, request: InferenceRequest, name: str, shape: tuple[int, ...]) -> InferenceError:
        text = (
            "batch size does not match other inputs"
            if shape
            else "has no shape but model requires batch dimension"
        )
        return self._error(request, f"input '{name}' {text} for '{self.model_name}'")

    def _count_error(self, request: InferenceRequest) -> InferenceError:
        count, most = len(request.inputs), len(self._checks)
        expected = (
            f"expected number of inputs between {self._required_count} and {most}"
            if self.any_optional
            else f"expected {most} inputs"
        )
        got = "[" + ",".join(f"'{name}'" for name in request.inputs) + "]"
        text = f"{expected} but got {count} inputs for model '{self.model_name}'. Got input(s) {got}"
        missing = [
            f"'{name}'" for name in self.inputs if name in self._required_names and name not in request.inputs
        ]
        if missing:
            text += f", but missing required input(s) [{','.join(missing)}]"
        return self._error(request, text + ". Please provide all required input(s).")

    def _shape_error(self, request: InferenceRequest, name: str, tensor: Tensor) -> InferenceError:
        text = (
            f"unexpected shape for input '{name}' for model '{self.model_name}'. "
            f"Expected {shape_text(self.inputs[name].full_dims)}, got {shape_text(tensor.shape)}."
        )
        return self._error(request, text + (_BATCH_DIMENSION_NOTE if self.batches else ""))

    def _error(self, request: InferenceRequest, text: str) -> InferenceError:
        return invalid_argument(request.described_id() + text)


def model_side_shape(spec: TensorSpec, shape: tuple[int, ...], batches: bool) -> tuple[int, ...]:
    """`shape` as the model sees it: `reshape` in place of `dims`, variable sizes carried over in order."""
    return _carried_over(spec.dims, spec.reshape, shape, batches)


def client_side_shape(spec: TensorSpec, shape: tuple[int, ...], batches: bool) -> tuple[int, ...]:
    """The reverse of `model_side_shape`, for outputs."""
    if spec.reshape is None:
        return shape
    return _carried_over(spec.reshape, spec.dims, shape, batches)


def _carried_over(
    source: tuple[int, ...], target: tuple[int, ...] | None, shape: tuple[int, ...], batches: bool
) -> tuple[int, ...]:
    if target is None:
        return shape
    leading, own = (shape[:1], shape[1:]) if batches else ((), shape)
    if len(own) != len(source):
        return shape
    variable = [size for size, dim in zip(own, source, strict=True) if dim == -1]
    if target.count(-1) == len(variable):
        sizes = iter(variable)
        return leading + tuple(next(sizes) if dim == -1 else dim for dim in target)
    known = prod(dim for dim in target if dim != -1)
    return leading + tuple(prod(own) // max(known, 1) if dim == -1 else dim for dim in target)


def _input_spec(tensor: ModelInput, batches: bool) -> TensorSpec:
    return _tensor_spec(tensor, batches, is_optional=tensor.optional, is_ragged=tensor.allow_ragged_batch)


def _output_spec(tensor: ModelOutput, batches: bool) -> TensorSpec:
    return _tensor_spec(tensor, batches, is_optional=False, is_ragged=False)


def _tensor_spec(
    tensor: ModelInput | ModelOutput, batches: bool, *, is_optional: bool, is_ragged: bool
) -> TensorSpec:
    dims = tuple(tensor.dims)
    return TensorSpec(
        name=tensor.name,
        datatype=DataType(int(tensor.data_type)),
        dims=dims,
        full_dims=(-1, *dims) if batches else dims,
        reshape=None if tensor.reshape is None else tuple(tensor.reshape.shape),
        is_optional=is_optional,
        is_ragged=is_ragged,
        has_variable_dims=-1 in dims,
    )
