"""The rules that sequence batching obeys: its control tensors, its states, and its two strategies.

Knows one configuration. What a state's file holds is checked when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cantata.grammars.findings import Finding
from cantata.grammars.model_config import (
    ControlKind,
    DataType,
    ModelConfig,
    ModelSequenceBatching,
    SequenceControl,
    SequenceInitialState,
    SequenceState,
)
from cantata.grammars.problems import Path

_ROOT: Final = "sequence_batching"
_CORRELATION_ID_TYPES: Final = (
    DataType.TYPE_UINT64,
    DataType.TYPE_INT64,
    DataType.TYPE_UINT32,
    DataType.TYPE_INT32,
    DataType.TYPE_STRING,
)
_FALSE_TRUE: Final = ("int32_false_true", "fp32_false_true", "bool_false_true")
_FALSE_TRUE_NAMES: Final = "'int32_false_true', 'fp32_false_true' {} 'bool_false_true'"


def check_sequence_batching(config: ModelConfig) -> Iterator[Finding]:
    """Every rule for `sequence_batching`; none where it is not set."""
    batching = config.sequence_batching
    if batching is None:
        return
    yield from _controls(batching, config.name)
    yield from _strategy(batching, config)
    seen: set[str] = set()
    for index, state in enumerate(batching.state):
        path = (_ROOT, "state", index)
        if state.input_name in seen:
            message = f"State input name '{state.input_name}' specified more than once."
            yield Finding((*path, "input_name"), message)
        seen.add(state.input_name)
        yield from _initial_states(state, (*path, "initial_state"))


def _controls(batching: ModelSequenceBatching, model: str) -> Iterator[Finding]:
    tensors: set[str] = set()
    kinds: set[ControlKind] = set()
    for index, control_input in enumerate(batching.control_input):
        path: Path = (_ROOT, "control_input", index)
        name = control_input.name
        if not name:
            yield Finding(path, f"sequence batching control tensor must have a name for {model}")
        elif name in tensors:
            message = f"sequence batching control tensor '{name}' is specified for multiple control kinds for {model}"
            yield Finding((*path, "name"), message)
        tensors.add(name)
        for control_index, control in enumerate(control_input.control):
            control_path = (*path, "control", control_index)
            if control.kind in kinds:
                message = f"sequence batching specifies multiple {control.kind.name} tensors for {model}"
                yield Finding((*control_path, "kind"), message)
            kinds.add(control.kind)
            yield from _control(control, control_path, model)


def _control(control: SequenceControl, path: Path, model: str) -> Iterator[Finding]:
    kind = control.kind.name
    given = [name for name in _FALSE_TRUE if getattr(control, name)]
    if control.kind is ControlKind.CONTROL_SEQUENCE_CORRID:
        if given:
            names = _FALSE_TRUE_NAMES.format("or")
            message = f"sequence batching must not specify either {names} for {kind} for {model}"
            yield Finding((*path, given[0]), message)
        if control.data_type not in _CORRELATION_ID_TYPES:
            *others, last = (data_type.name for data_type in _CORRELATION_ID_TYPES)
            allowed = f"Allowed data types are {', '.join(others)} and {last}"
            yield Finding(
                (*path, "data_type"), f"unexpected data type for control {kind} for {model}. {allowed}"
            )
        return
    if not given:
        names = _FALSE_TRUE_NAMES.format("or")
        yield Finding(path, f"sequence batching must specify either {names} for {kind} for {model}")
    if len(given) > 1:
        names = _FALSE_TRUE_NAMES.format("and")
        message = f"sequence batching specifies more than one from {names} for {kind} for {model}"
        yield Finding((*path, given[1]), message)
    for name in given:
        if len(getattr(control, name)) != 2:
            message = f"sequence batching control '{name}' must have exactly 2 entries for {kind} for {model}"
            yield Finding((*path, name), message, "the value for false, then the one for true")


def _strategy(batching: ModelSequenceBatching, config: ModelConfig) -> Iterator[Finding]:
    if batching.direct is not None and not 0.0 <= batching.direct.minimum_slot_utilization <= 1.0:
        message = f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {config.name}"
        yield Finding((_ROOT, "direct", "minimum_slot_utilization"), message)
    if batching.oldest is None:
        return
    for index, size in enumerate(batching.oldest.preferred_batch_size):
        path = (_ROOT, "oldest", "preferred_batch_size", index)
        if size <= 0:
            yield Finding(path, f"sequence batching preferred batch size must be positive for {config.name}")
        elif size > config.max_batch_size:
            message = f"sequence batching preferred batch size must be <= max batch size for {config.name}"
            yield Finding(path, message, f"max_batch_size is {config.max_batch_size}")


def _initial_states(state: SequenceState, path: Path) -> Iterator[Finding]:
    name = state.input_name
    if len(state.initial_state) > 1:
        message = f"initial_state field for state input '{name}' must contain exactly one or zero element."
        yield Finding(path, f"{message} Found '{len(state.initial_state)}' elements.")
    for index, initial in enumerate(state.initial_state[:1]):
        yield from _initial_state(state, initial, (*path, index))


def _initial_state(state: SequenceState, initial: SequenceInitialState, path: Path) -> Iterator[Finding]:
    name = state.input_name
    if not initial.name:
        yield Finding(path, f"Field 'name' must be set when using initial_state for state input '{name}'.")
    if initial.data_type is not state.data_type:
        yield Finding(
            (*path, "data_type"),
            f"The data type used for 'initial_state' field of state '{name}' does not match the state data type.",
            f"the state's is {state.data_type.name}",
        )
    if len(initial.dims) != len(state.dims):
        message = "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input"
        yield Finding((*path, "dims"), f"{message} '{name}'. {len(initial.dims)} != {len(state.dims)}")
        return
    for dim, described in zip(initial.dims, state.dims, strict=True):
        if dim == -1:
            message = f"'initial_state' field for state input name '{name}' contains variable dimensions."
            yield Finding((*path, "dims"), message)
        elif described not in (-1, dim):
            message = f"'initial_state' dim for input name '{name}' doesn't match 'state' dim description."
            yield Finding((*path, "dims"), f"{message} {dim} != {described}")
