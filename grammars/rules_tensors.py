"""The rules that a model's inputs and outputs obey: names, types, dimensions, reshapes, and tensors made for a batch.

Knows one configuration and neither its model nor its files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from cantata.grammars.findings import Finding
from cantata.grammars.model_config import (
    BatchInput,
    BatchOutput,
    DataType,
    InputFormat,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelTensorReshape,
)
from cantata.grammars.problems import Path, suggest

_IMAGE_FORMATS: Final = (InputFormat.FORMAT_NHWC, InputFormat.FORMAT_NCHW)
_DIMENSION: Final = "must be integer >= 1, or -1 to indicate a variable-size dimension"
_DATA_TYPE_HINT: Final = "for example data_type: TYPE_FP32"
_DIMS_HINT: Final = "for example dims: [ -1 ]; without the batch dimension if max_batch_size is above 0"


def is_tensorrt(config: ModelConfig) -> bool:
    """Whether TensorRT runs the model, for which a few fields are kept."""
    return config.platform == "tensorrt_plan" or config.backend == "tensorrt"


def check_tensors(config: ModelConfig) -> Iterator[Finding]:
    """Every rule for `input`, `output`, `batch_input` and `batch_output`."""
    suffix = f" for {config.name}"
    for path, message, hint in _tensor_findings(config):
        yield Finding(path, message + suffix, hint)
    for index, batch_input in enumerate(config.batch_input):
        yield from _batch_input(batch_input, ("batch_input", index), config)
    targets: set[str] = set()
    for index, batch_output in enumerate(config.batch_output):
        yield from _batch_output(batch_output, ("batch_output", index), config, targets)


def _tensor_findings(config: ModelConfig) -> Iterator[Finding]:
    for index, tensor in enumerate(config.input):
        path: Path = ("input", index)
        yield from _tensor(tensor, "model input", path, config)
        if tensor.format in _IMAGE_FORMATS and len(tensor.dims) != 3:
            yield Finding(
                (*path, "format"), "model input NHWC/NCHW require 3 dims", f"dims has {len(tensor.dims)}"
            )
    for index, output in enumerate(config.output):
        yield from _tensor(output, "model output", ("output", index), config)


def _tensor(
    tensor: ModelInput | ModelOutput, kind: str, path: Path, config: ModelConfig
) -> Iterator[Finding]:
    if not tensor.name:
        yield Finding(path, f"{kind} must specify 'name'")
    named = f"{kind} '{tensor.name}'"
    if tensor.data_type is DataType.TYPE_INVALID:
        yield Finding(path, f"{named} must specify 'data_type'", _DATA_TYPE_HINT)
    if not tensor.dims:
        yield Finding(path, f"{named} must specify 'dims'", _DIMS_HINT)
    if any(dim < 1 and dim != -1 for dim in tensor.dims):
        yield Finding((*path, "dims"), f"{named} dimension {_DIMENSION}")
    elif tensor.reshape is not None and tensor.dims:
        yield from _reshape(tensor.dims, tensor.reshape, named, (*path, "reshape"), config)
    yield from _tensorrt_only(tensor, path, config)


def _reshape(
    dims: Sequence[int], reshape: ModelTensorReshape, named: str, path: Path, config: ModelConfig
) -> Iterator[Finding]:
    shape = reshape.shape
    if not shape and config.max_batch_size == 0:
        message = "cannot have empty reshape for non-batching model as scalar tensors are not supported"
        yield Finding(path, f"{named} {message}")
    elif any(dim < 1 and dim != -1 for dim in shape):
        yield Finding(path, f"{named} reshape dimensions {_DIMENSION}")
    elif (-1 in dims) != (-1 in shape):
        yield Finding(path, f"{named} has different size for dims and reshape", _sizes(dims, shape))
    elif list(dims).count(-1) != list(shape).count(-1):
        message = "has different number of variable-size dimensions for dims and reshape"
        yield Finding(path, f"{named} {message}", _sizes(dims, shape))
    elif _sizes_between_wildcards(dims) != _sizes_between_wildcards(shape):
        yield Finding(path, f"{named} has different size for dims and reshape", _sizes(dims, shape))


def _sizes(dims: Sequence[int], shape: Sequence[int]) -> str:
    return f"dims is {list(dims)}, reshape {list(shape)}"


def _sizes_between_wildcards(dims: Sequence[int]) -> list[int]:
    """The number of elements of each run of fixed dimensions; a shape of no dimensions has one element."""
    runs: list[list[int]] = [[]]
    for dim in dims:
        if dim == -1:
            runs.append([])
        else:
            runs[-1].append(dim)
    return [math.prod(run) for run in runs]


def _tensorrt_only(tensor: ModelInput | ModelOutput, path: Path, config: ModelConfig) -> Iterator[Finding]:
    if is_tensorrt(config):
        return
    if tensor.is_shape_tensor:
        yield Finding((*path, "is_shape_tensor"), "shape tensors are only supported for TensorRT platform")
    if tensor.is_non_linear_format_io:
        message = "Non-linear IO format is only supported for the TensorRT platform"
        yield Finding((*path, "is_non_linear_format_io"), message)


def _batch_input(batch_input: BatchInput, path: Path, config: ModelConfig) -> Iterator[Finding]:
    yield from _source_inputs("batch input", batch_input, path, config)
    if batch_input.data_type not in (DataType.TYPE_INT32, DataType.TYPE_FP32):
        yield Finding((*path, "data_type"), "batch input data type must be TYPE_INT32 or TYPE_FP32")


def _batch_output(
    batch_output: BatchOutput, path: Path, config: ModelConfig, targets: set[str]
) -> Iterator[Finding]:
    yield from _source_inputs("batch output", batch_output, path, config)
    outputs = [output.name for output in config.output]
    for index, target in enumerate(batch_output.target_name):
        target_path = (*path, "target_name", index)
        if target not in outputs:
            yield Finding(target_path, f"unknown target output name '{target}'", suggest(target, outputs))
        if target in targets:
            yield Finding(target_path, f"target output name '{target}' can only be specified once")
        targets.add(target)


def _source_inputs(
    kind: str, batch_tensor: BatchInput | BatchOutput, path: Path, config: ModelConfig
) -> Iterator[Finding]:
    sources = batch_tensor.source_input
    if len(sources) != 1:
        message = f"{kind} kind '{batch_tensor.kind.name}' expects 1 source input, got {len(sources)}"
        yield Finding((*path, "source_input"), message)
    inputs = [tensor.name for tensor in config.input]
    for index, source in enumerate(sources):
        if source not in inputs:
            message = f"unknown source input name '{source}'"
            yield Finding((*path, "source_input", index), message, suggest(source, inputs))
