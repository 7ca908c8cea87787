"""What a configuration says of ragged batches, as tables: which inputs are laid end to end, and what goes with them.

Names and datatypes only; what is computed from them is in `execution/ragged_batch.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cantata.runtime.datatypes import DataType

if TYPE_CHECKING:
    # A model's own process is given this ready made, and needs no configuration.
    from cantata.grammars.model_config import ModelConfig


class BatchInputKind(enum.IntEnum):
    """What a batch input tells the model about its batch (reference, section 6.5); numbered as the configuration's."""

    ELEMENT_COUNT = 0
    ACCUMULATED_ELEMENT_COUNT = 1
    ACCUMULATED_ELEMENT_COUNT_WITH_ZERO = 2
    MAX_ELEMENT_COUNT_AS_SHAPE = 3
    ITEM_SHAPE = 4
    ITEM_SHAPE_FLATTEN = 5


@dataclass(frozen=True, slots=True)
class BatchInputSpec:
    """An input that no request has: computed from the `source` inputs of the batch, given under each target name."""

    kind: BatchInputKind
    targets: tuple[str, ...]
    datatype: DataType
    source: str


@dataclass(frozen=True, slots=True)
class RaggedSpec:
    """`inputs` are flattened and laid end to end; `batch_outputs` are such outputs, each with its source input."""

    inputs: frozenset[str]
    batch_inputs: tuple[BatchInputSpec, ...]
    batch_outputs: Mapping[str, str]


def ragged_spec(config: ModelConfig) -> RaggedSpec | None:
    """None where a configuration has nothing of the kind."""
    inputs = frozenset(tensor.name for tensor in config.input if tensor.allow_ragged_batch)
    if not (inputs or config.batch_input or config.batch_output):
        return None
    return RaggedSpec(
        inputs,
        tuple(
            BatchInputSpec(
                BatchInputKind(int(batch_input.kind)),
                batch_input.target_name,
                DataType(int(batch_input.data_type)),
                batch_input.source_input[0],
            )
            for batch_input in config.batch_input
        ),
        {
            target: batch_output.source_input[0]
            for batch_output in config.batch_output
            for target in batch_output.target_name
        },
    )


def batch_input_datatypes(config: ModelConfig) -> dict[str, DataType]:
    """The datatypes of the batch inputs by name."""
    return {
        target: DataType(int(batch_input.data_type))
        for batch_input in config.batch_input
        for target in batch_input.target_name
    }
