"""The tensors that sequence batching adds to a model's own: control inputs, and the states it gets and gives.

Names and datatypes only, for backends, which run them like any others. What they hold is filled in by
`scheduling/sequence_inputs.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cantata.runtime.datatypes import DataType

if TYPE_CHECKING:
    # A model's own process needs the names, but no configuration.
    from cantata.grammars.model_config import ModelConfig, SequenceControl


def added_inputs(config: ModelConfig) -> dict[str, DataType]:
    """The datatypes of the inputs that a model gets beside those that requests have, by name."""
    batching = config.sequence_batching
    if batching is None:
        return {}
    added = {
        control_input.name: control_datatype(control)
        for control_input in batching.control_input
        for control in control_input.control
    }
    added.update((state.input_name, DataType(int(state.data_type))) for state in batching.state)
    return added


def state_outputs(config: ModelConfig) -> dict[str, DataType]:
    """The datatypes of the outputs that are states, by name; a client gets those that `output` lists too."""
    batching = config.sequence_batching
    states = () if batching is None else batching.state
    return {state.output_name: DataType(int(state.data_type)) for state in states}


def variable_states(config: ModelConfig) -> tuple[str, ...]:
    """The state inputs whose shapes may differ between sequences."""
    batching = config.sequence_batching
    states = () if batching is None else batching.state
    return tuple(state.input_name for state in states if -1 in state.dims)


def control_datatype(control: SequenceControl) -> DataType:
    """What a control tensor holds."""
    if control.kind.name == "CONTROL_SEQUENCE_CORRID":
        return DataType(int(control.data_type))
    if control.int32_false_true:
        return DataType.INT32
    return DataType.FP32 if control.fp32_false_true else DataType.BOOL
