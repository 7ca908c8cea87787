"""A model.py's answers turned into the runtime's, and checked against the model's configuration.

Owns the check of every output's datatype. Shapes are the model's affair, as in Triton: a step that cannot take one
says so itself. Arrays pass by reference.
"""

from __future__ import annotations

from math import prod

from cantata.bls.errors import inference_error
from cantata.bls.responses import InferenceResponse
from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.model_spec import ModelSpec, TensorSpec, client_side_shape
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse as RuntimeResponse
from cantata.runtime.tensor import Tensor


class OutputTable:
    """One model version's outputs."""

    __slots__ = ("_compiled", "_spec")

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        # The datatype, and the output itself where its shape is another to the client than to the model.
        self._compiled = {
            output.name: (output.datatype, output if output.reshape is not None else None)
            for output in spec.outputs.values()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Every output of the model."""
        return self._spec.output_names

    @property
    def may_reschedule(self) -> bool:
        """Whether requests may run again before they are answered."""
        return self._spec.is_iterative

    def error_response(self, request: InferenceRequest, error: InferenceError) -> RuntimeResponse:
        """The answer to a request that failed."""
        return RuntimeResponse(self._spec.model_name, self._spec.model_version, request.id, {}, None, error)

    def response_of(self, request: InferenceRequest, answer: InferenceResponse) -> RuntimeResponse:
        """The answer as it leaves: without tensors that were not requested or are not the model's outputs.

        A tensor of another datatype than the configuration's makes it an INTERNAL error that names the tensor.
        """
        if answer._error is not None:
            return self.error_response(request, inference_error(answer._error))
        spec = self._spec
        requested = request.requested_outputs
        states = request.states if spec.state_outputs else None
        outputs: dict[str, Tensor] = {}
        for tensor in answer._output_tensors:
            name = tensor._name
            if states is not None and name in spec.state_outputs:
                states[name] = tensor._value
            compiled = self._compiled.get(name)
            if compiled is None or (requested and name not in requested):
                continue
            value = tensor._value
            datatype, reshaped = compiled
            if value.datatype is not datatype:
                return self.error_response(request, self._datatype_error(name, datatype, value))
            outputs[name] = value if reshaped is None else self._reshaped(reshaped, value)
        return RuntimeResponse(spec.model_name, spec.model_version, request.id, outputs, answer._parameters)

    def _reshaped(self, output: TensorSpec, value: Tensor) -> Tensor:
        shape = client_side_shape(output, value.array.shape, self._spec.batches)
        return value.reshaped(shape) if prod(shape) == value.array.size else value

    def _datatype_error(self, name: str, datatype: DataType, value: Tensor) -> InferenceError:
        return internal_error(
            f"model '{self._spec.model_name}', output '{name}': expected {datatype.name}, got {value.datatype.name}"
        )
