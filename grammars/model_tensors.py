"""The part of a model's configuration that says what its tensors are: inputs, outputs, and those made for a batch.

Only names, types and defaults of Triton's model_config.proto; no rule. Import from `cantata.grammars.model_config`.
"""

from __future__ import annotations

import enum

from cantata.grammars.schema import ConfigMessage, Int64


class DataType(enum.IntEnum):
    """The type of a tensor's elements; the wire name is without TYPE_, and BYTES for TYPE_STRING."""

    TYPE_INVALID = 0
    TYPE_BOOL = 1
    TYPE_UINT8 = 2
    TYPE_UINT16 = 3
    TYPE_UINT32 = 4
    TYPE_UINT64 = 5
    TYPE_INT8 = 6
    TYPE_INT16 = 7
    TYPE_INT32 = 8
    TYPE_INT64 = 9
    TYPE_FP16 = 10
    TYPE_FP32 = 11
    TYPE_FP64 = 12
    TYPE_STRING = 13
    TYPE_BF16 = 14


class InputFormat(enum.IntEnum):
    """ModelInput.Format: how an image's dimensions are ordered."""

    FORMAT_NONE = 0
    FORMAT_NHWC = 1
    FORMAT_NCHW = 2


class ModelTensorReshape(ConfigMessage):
    shape: tuple[Int64, ...] = ()


class ModelInput(ConfigMessage):
    name: str = ""
    data_type: DataType = DataType.TYPE_INVALID
    format: InputFormat = InputFormat.FORMAT_NONE
    # Without the batch dimension; -1 for a dimension of any size.
    dims: tuple[Int64, ...] = ()
    reshape: ModelTensorReshape | None = None
    is_shape_tensor: bool = False
    allow_ragged_batch: bool = False
    optional: bool = False
    is_non_linear_format_io: bool = False


class ModelOutput(ConfigMessage):
    name: str = ""
    data_type: DataType = DataType.TYPE_INVALID
    dims: tuple[Int64, ...] = ()
    reshape: ModelTensorReshape | None = None
    label_filename: str = ""
    is_shape_tensor: bool = False
    is_non_linear_format_io: bool = False


class BatchInputKind(enum.IntEnum):
    """What a batch input is computed from."""

    BATCH_ELEMENT_COUNT = 0
    BATCH_ACCUMULATED_ELEMENT_COUNT = 1
    BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO = 2
    BATCH_MAX_ELEMENT_COUNT_AS_SHAPE = 3
    BATCH_ITEM_SHAPE = 4
    BATCH_ITEM_SHAPE_FLATTEN = 5


class BatchInput(ConfigMessage):
    kind: BatchInputKind = BatchInputKind.BATCH_ELEMENT_COUNT
    target_name: tuple[str, ...] = ()
    data_type: DataType = DataType.TYPE_INVALID
    source_input: tuple[str, ...] = ()


class BatchOutputKind(enum.IntEnum):
    """How a batch output is divided among the requests of the batch."""

    BATCH_SCATTER_WITH_INPUT_SHAPE = 0


class BatchOutput(ConfigMessage):
    target_name: tuple[str, ...] = ()
    kind: BatchOutputKind = BatchOutputKind.BATCH_SCATTER_WITH_INPUT_SHAPE
    source_input: tuple[str, ...] = ()
