"""What an ONNX graph says of its inputs and outputs, held against a configuration: completion and checks.

Owns the rules and texts of the reference, section 11. Plain values only: knows neither files nor onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cantata.grammars.model_config import (
    DataType,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelOutput,
    ModelTensorReshape,
)
from cantata.grammars.problems import suggest
from cantata.runtime.datatypes import DataType as OurDataType
from cantata.runtime.errors import invalid_argument
from cantata.runtime.model_spec import shape_text
from cantata.runtime.ragged_spec import batch_input_datatypes
from cantata.runtime.sequence_tensors import added_inputs, state_outputs

# onnxruntime's words for the element types that a tensor of ours can have.
DATATYPES: Final = {
    "tensor(bool)": DataType.TYPE_BOOL,
    "tensor(uint8)": DataType.TYPE_UINT8,
    "tensor(uint16)": DataType.TYPE_UINT16,
    "tensor(uint32)": DataType.TYPE_UINT32,
    "tensor(uint64)": DataType.TYPE_UINT64,
    "tensor(int8)": DataType.TYPE_INT8,
    "tensor(int16)": DataType.TYPE_INT16,
    "tensor(int32)": DataType.TYPE_INT32,
    "tensor(int64)": DataType.TYPE_INT64,
    "tensor(float16)": DataType.TYPE_FP16,
    "tensor(float)": DataType.TYPE_FP32,
    "tensor(double)": DataType.TYPE_FP64,
    "tensor(string)": DataType.TYPE_STRING,
    "tensor(bfloat16)": DataType.TYPE_BF16,
}


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """One input or output of a graph. `type_name` is onnxruntime's; a dimension of any size is -1.

    An empty `shape` is a scalar's, or of unknown rank: onnxruntime does not tell which.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]

    @property
    def is_optional(self) -> bool:
        """Whether the graph itself asks if it was given."""
        return self.type_name.startswith("optional(")

    @property
    def datatype(self) -> DataType | None:
        """The datatype, or None where no tensor of ours is like that."""
        name = self.type_name
        return DATATYPES.get(name[len("optional(") : -1] if self.is_optional else name)


@dataclass(frozen=True, slots=True)
class GraphSignature:
    """A graph's inputs and outputs in its own order.

    `defaulted` are the initializers that a request may override: a configuration may list them as inputs.
    """

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    defaulted: tuple[GraphTensor, ...] = ()

    @property
    def can_batch(self) -> bool:
        """Whether the first dimension of everything is of any size."""
        tensors = self.inputs + self.outputs
        return bool(tensors) and all(tensor.shape[:1] == (-1,) for tensor in tensors)


def needs_completion(config: ModelConfig) -> bool:
    """Whether a configuration leaves its inputs or its outputs to the graph."""
    return not ((config.input or config.batch_input) and config.output)


def complete_config(config: ModelConfig, graph: GraphSignature, default_max_batch_size: int) -> ModelConfig:
    """`config` with batching, scheduler, inputs and outputs filled in from the graph, where it leaves them open.

    Raises InferenceError when it asks for batches of a graph that cannot form them.
    """
    max_batch_size = config.max_batch_size
    if graph.can_batch:
        max_batch_size = max_batch_size or default_max_batch_size
    elif max_batch_size:
        raise invalid_argument(
            f"autofill failed for model '{config.name}': model does not support batching while non-zero "
            "max_batch_size is specified"
        )
    completed: dict[str, Any] = {"max_batch_size": max_batch_size}
    if max_batch_size > 1 and config.dynamic_batching is None and config.sequence_batching is None:
        completed["dynamic_batching"] = ModelDynamicBatching()
    batches = max_batch_size > 0
    if not config.input and not config.batch_input:
        completed["input"] = tuple(
            ModelInput(**_completed_tensor(config, tensor, batches), optional=tensor.is_optional)
            for tensor in graph.inputs
            if tensor.name not in added_inputs(config)
        )
    if not config.output:
        completed["output"] = tuple(
            ModelOutput(**_completed_tensor(config, tensor, batches))
            for tensor in graph.outputs
            if tensor.name not in state_outputs(config)
        )
    return config.model_copy(update=completed)


def check_config(config: ModelConfig, graph: GraphSignature) -> None:
    """Raises InferenceError (INVALID_ARG) where the configuration and the graph disagree."""
    inputs = {tensor.name: tensor for tensor in (*graph.inputs, *graph.defaulted)}
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    required = [tensor.name for tensor in graph.inputs if not tensor.is_optional]
    given = [tensor.name for tensor in config.input]
    given += [name for batch_input in config.batch_input for name in batch_input.target_name]
    missing = [name for name in required if name not in (*given, *added_inputs(config))]
    if missing:
        raise invalid_argument(
            f"unable to load model '{config.name}', configuration expects {len(given)} inputs, model provides "
            f"{len(required)}; the configuration lacks: {', '.join(missing)}"
        )
    _check_added(config, "sequence input", added_inputs(config), inputs)
    _check_added(config, "sequence output", state_outputs(config), outputs)
    _check_added(config, "batch input", batch_input_datatypes(config), inputs)
    _check_tensors(config, "input", config.input, inputs)
    _check_tensors(config, "output", config.output, outputs)


def _check_added(
    config: ModelConfig, role: str, added: Mapping[str, OurDataType], graph: Mapping[str, GraphTensor]
) -> None:
    for name, datatype in added.items():
        own = graph.get(name)
        if own is None:
            hint = suggest(name, graph)
            raise invalid_argument(
                f"unable to load model '{config.name}', configuration specified {role} '{name}', but model "
                f"does not provide that {role.rpartition(' ')[2]}" + (f" ({hint})" if hint else "")
            )
        provided = _datatype_of(config, own)
        if int(provided) != int(datatype):
            raise invalid_argument(
                f"unable to load model '{config.name}', configuration expects datatype {datatype.config_name} for "
                f"{role} '{name}', model provides {provided.name}"
            )


def _check_tensors(
    config: ModelConfig,
    role: str,
    tensors: Sequence[ModelInput] | Sequence[ModelOutput],
    graph: Mapping[str, GraphTensor],
) -> None:
    scattered = {target for batch_output in config.batch_output for target in batch_output.target_name}
    for tensor in tensors:
        own = graph.get(tensor.name)
        if own is None:
            hint = suggest(tensor.name, graph)
            raise invalid_argument(
                f"model '{config.name}': unexpected inference {role} '{tensor.name}', allowed {role}s are: "
                + ", ".join(graph)
                + (f" ({hint})" if hint else "")
            )
        provided = _datatype_of(config, own)
        if tensor.data_type is not provided:
            raise invalid_argument(
                f"unable to load model '{config.name}', configuration expects datatype {tensor.data_type.name} "
                f"for {role} '{tensor.name}', model provides {provided.name}"
            )
        if isinstance(tensor, ModelInput) and tensor.allow_ragged_batch:
            if own.shape != (-1,):
                raise invalid_argument(
                    f"unable to load model '{config.name}', configuration expects model provides input with shape "
                    f"[-1] for ragged input '{tensor.name}', model provides {shape_text(own.shape)}"
                )
            continue
        if tensor.name in scattered:
            # What the model gives is cut up; its shape need not be like that of the parts.
            continue
        dims = tensor.dims if tensor.reshape is None else tensor.reshape.shape
        _check_shape(config, tensor.name, own.shape, tuple(dims))


def _check_shape(config: ModelConfig, name: str, model_shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    if not model_shape:
        # A scalar or of unknown rank: what it really is shows when it runs.
        return
    batches = config.max_batch_size > 0
    if batches and model_shape[0] != -1:
        raise invalid_argument(
            f"model '{config.name}', tensor '{name}': for the model to support batching the shape should have at "
            "least 1 dimension and the first dimension must be -1; but shape expected by the model is "
            + shape_text(model_shape)
        )
    shape = (-1, *dims) if batches else dims
    if len(shape) == len(model_shape) and all(map(_dimension_fits, shape, model_shape)):
        return
    described = (
        "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making "
        f"complete shape {shape_text(shape)}"
        if batches
        else f"shape {shape_text(shape)}"
    )
    raise invalid_argument(
        f"model '{config.name}', tensor '{name}': the model expects {len(model_shape)} dimensions "
        f"(shape {shape_text(model_shape)}) but the model configuration specifies {len(shape)} dimensions "
        f"({described})"
    )


def _dimension_fits(configured: int, provided: int) -> bool:
    # A configuration may narrow what the model takes, never widen it.
    return provided in (-1, configured)


def _completed_tensor(config: ModelConfig, tensor: GraphTensor, batches: bool) -> dict[str, Any]:
    dims = tensor.shape[1:] if batches else tensor.shape
    fields: dict[str, Any] = {
        "name": tensor.name,
        "data_type": _datatype_of(config, tensor),
        "dims": dims or (1,),
    }
    if not dims and batches:
        fields["reshape"] = ModelTensorReshape()
    return fields


def _datatype_of(config: ModelConfig, tensor: GraphTensor) -> DataType:
    datatype = tensor.datatype
    if datatype is None:
        raise invalid_argument(
            f"model '{config.name}', tensor '{tensor.name}': the model has the type {tensor.type_name}, which no "
            "request can carry; only tensors are supported"
        )
    return datatype
