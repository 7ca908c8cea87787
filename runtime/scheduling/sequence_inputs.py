"""What a sequence model gets beside its inputs: control tensors, its state, and rows that stand for nobody.

Owns the contents of these tensors (reference, section 6.4), compiled at load from the configuration and the files of
initial states. Decides nothing about when a request runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cantata.grammars.model_config import (
    ControlKind,
    ModelConfig,
    ModelSequenceBatching,
    SequenceInitialState,
    SequenceState,
)
from cantata.runtime.datatypes import ELEMENT_SIZES, NUMPY_DTYPES, DataType
from cantata.runtime.errors import InferenceError, invalid_argument
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START, InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.sequence_table import Sequence as LiveSequence
from cantata.runtime.sequence_tensors import control_datatype
from cantata.runtime.tensor import RawTensorError, Tensor, WritableTensor, tensor_of_raw, zeros

_FLAGS = SEQUENCE_START | SEQUENCE_END
_INITIAL_STATE_DIRECTORY = "initial_state"


class _Nobody:
    """The sender of a request that stands for none."""

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        """Nobody is answered."""

    def wait_until_ready(self) -> None:
        """Nobody is waited for."""


NOBODY = _Nobody()


@dataclass(frozen=True, slots=True)
class _State:
    """`initial` has no writer. With `is_in_place` each sequence has a copy, which its model may write to."""

    input_name: str
    output_name: str
    initial: Tensor
    is_in_place: bool

    def current(self, states: dict[str, Tensor]) -> Tensor:
        """The value for the next request of the sequence whose states these are."""
        value = states[self.output_name]
        if self.is_in_place and not isinstance(value, WritableTensor):
            array = value.array
            # What the model gave is the sequence's alone; an initial state is everybody's.
            value = WritableTensor(value.datatype, array if array.flags.writeable else array.copy())
            states[self.output_name] = value
        return value


class SequenceInputs:
    """The added inputs of one model. Raises InferenceError when made, if an initial state cannot be read."""

    def __init__(self, config: ModelConfig, model_directory: Path) -> None:
        batching = config.sequence_batching or ModelSequenceBatching()
        self._model_name = config.name
        self._shape = (1, 1) if config.max_batch_size > 0 else (1,)
        self._id_input = ""
        self._id_datatype = DataType.UINT64
        # By a request's flags, for requests that there are; and for those that there are not.
        self._controls: list[dict[str, Tensor]] = [
            self._flag_tensors(batching, flags, is_ready=True) for flags in range(_FLAGS + 1)
        ]
        self._null_inputs = self._flag_tensors(batching, 0, is_ready=False)
        for control_input in batching.control_input:
            for control in control_input.control:
                if control.kind is ControlKind.CONTROL_SEQUENCE_CORRID:
                    self._id_input = control_input.name
                    self._id_datatype = control_datatype(control)
        if self._id_input:
            self._null_inputs[self._id_input] = self._id_tensor("" if self._is_text else 0)
        leading = self._shape[1:]
        self._states = tuple(_compiled(state, leading, model_directory) for state in batching.state)
        self._null_inputs.update((state.input_name, state.initial) for state in self._states)

    @property
    def _is_text(self) -> bool:
        return self._id_datatype is DataType.BYTES

    def check(self, request: InferenceRequest) -> None:
        """Raises InferenceError (INVALID_ARG) when a validated request cannot be part of any sequence."""
        if request.batch_size > 1:
            raise invalid_argument(
                f"inference request to model '{self._model_name}' must specify batch-size 1 due to requirements of "
                "sequence batcher"
            )
        correlation_id = request.correlation_id
        if self._id_input and isinstance(correlation_id, str) is not self._is_text and correlation_id:
            given = "BYTES" if isinstance(correlation_id, str) else "UINT64"
            raise invalid_argument(
                f"{request.described_id()}sequence batching control '{self._id_input}' data-type is '{given}', but "
                f"model '{self._model_name}' expects '{self._id_datatype.name}'"
            )

    def prepare(self, request: InferenceRequest, sequence: LiveSequence) -> None:
        """Add to a request's inputs, when its turn in its sequence has come."""
        inputs = request.inputs
        flags = request.flags & _FLAGS
        inputs.update(self._controls[flags])
        if self._id_input:
            if sequence.id_tensor is None:
                sequence.id_tensor = self._id_tensor(sequence.correlation_id)
            inputs[self._id_input] = sequence.id_tensor
        if self._states:
            states = sequence.states
            if states is None or flags & SEQUENCE_START:
                # Never the old dictionary: a request of a sequence that was cut may still be writing to that.
                states = sequence.states = {state.output_name: state.initial for state in self._states}
            request.states = states
            for state in self._states:
                inputs[state.input_name] = state.current(states)

    def null_request(self, like: InferenceRequest) -> InferenceRequest:
        """A request that stands for none in a batch with `like`: its shapes, no data, and nobody to answer to."""
        own = self._null_inputs
        inputs = {name: _blank(tensor) for name, tensor in like.inputs.items() if name not in own}
        inputs.update(own)
        for state in self._states:
            # States that have grown are as large in every row.
            value = like.inputs[state.input_name]
            if value.shape != state.initial.shape or value.datatype is not state.initial.datatype:
                inputs[state.input_name] = _blank(value)
        request = InferenceRequest(
            like.model_name,
            inputs,
            NOBODY,
            like.received_ns,
            model_version=like.model_version,
            requested_outputs=like.requested_outputs,
        )
        request.batch_size = 1
        if self._states:
            request.states = {}
        return request

    def _flag_tensors(
        self, batching: ModelSequenceBatching, flags: int, *, is_ready: bool
    ) -> dict[str, Tensor]:
        values = {
            ControlKind.CONTROL_SEQUENCE_START: bool(flags & SEQUENCE_START),
            ControlKind.CONTROL_SEQUENCE_END: bool(flags & SEQUENCE_END),
            ControlKind.CONTROL_SEQUENCE_READY: is_ready,
        }
        tensors: dict[str, Tensor] = {}
        for control_input in batching.control_input:
            for control in control_input.control:
                if control.kind not in values:
                    continue
                false_true: Sequence[float] = (
                    control.int32_false_true or control.fp32_false_true or control.bool_false_true
                )
                datatype = control_datatype(control)
                array = np.full(self._shape, false_true[values[control.kind]], NUMPY_DTYPES[datatype])
                tensors[control_input.name] = Tensor(datatype, _shared(array))
        return tensors

    def _id_tensor(self, correlation_id: int | str) -> Tensor:
        datatype = self._id_datatype
        if isinstance(correlation_id, str):
            array: npt.NDArray[Any] = np.full(self._shape, correlation_id.encode(), dtype=object)
        else:
            bits = 8 * ELEMENT_SIZES[datatype]
            # Wider ids lose their upper bits, and become negative where the datatype is signed.
            unsigned = np.full(self._shape, correlation_id & ((1 << bits) - 1), dtype=f"u{bits // 8}")
            array = unsigned.view(NUMPY_DTYPES[datatype])
        return Tensor(datatype, _shared(array))


def _compiled(state: SequenceState, leading: tuple[int, ...], model_directory: Path) -> _State:
    return _State(
        state.input_name,
        state.output_name,
        _initial_tensor(state, leading, model_directory),
        state.use_same_buffer_for_input_output,
    )


def _initial_tensor(state: SequenceState, leading: tuple[int, ...], model_directory: Path) -> Tensor:
    initial = state.initial_state[0] if state.initial_state else None
    datatype = DataType(int(state.data_type))
    dims = state.dims if initial is None else initial.dims
    shape = (*leading, *(1 if dim == -1 else dim for dim in dims))
    if initial is not None and initial.data_file is not None:
        return _read_state(initial, datatype, shape, model_directory)
    return Tensor(datatype, _shared(zeros(datatype, shape)))


def _read_state(
    initial: SequenceInitialState, datatype: DataType, shape: tuple[int, ...], model_directory: Path
) -> Tensor:
    path = model_directory / _INITIAL_STATE_DIRECTORY / (initial.data_file or "")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise invalid_argument(
            f"failed to read the initial state '{initial.name}' from {path}: {error.strerror}"
        ) from None
    if datatype is not DataType.BYTES:
        expected = prod(shape) * ELEMENT_SIZES[datatype]
        if len(raw) < expected:
            raise _too_short(expected, path, len(raw))
        raw = raw[:expected]
    try:
        return tensor_of_raw(datatype, shape, raw)
    except RawTensorError as error:
        raise invalid_argument(f"initial state '{initial.name}' from {path}: {error}") from None


def _too_short(expected: int, path: Path, size: int) -> InferenceError:
    return invalid_argument(
        f"initial_state setting expects {expected} bytes, but the data provided from {path} only has {size} bytes"
    )


def _blank(tensor: Tensor) -> Tensor:
    return Tensor(tensor.datatype, zeros(tensor.datatype, tensor.shape))


def _shared(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
