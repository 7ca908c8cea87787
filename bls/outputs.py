"""A model.py's answers turned into the runtime's, and checked against the model's configuration.

Owns the check of every output's datatype and shape. Arrays pass by reference.
"""

from __future__ import annotations

from cantata.bls.errors import inference_error
from cantata.bls.responses import InferenceResponse
from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.model_spec import ModelSpec, TensorSpec, client_side_shape, shape_text
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse as RuntimeResponse
from cantata.runtime.tensor import Tensor


class OutputTable:
    """One model version's outputs."""

    __slots__ = ("_compiled", "_counts_rows", "_spec")

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._compiled = {
            output.name: (output.datatype, output.full_dims, output) for output in spec.outputs.values()
        }
        # A decoupled model may give any number of rows at a time.
        self._counts_rows = spec.batches and not spec.is_decoupled

    def error_response(self, request: InferenceRequest, error: InferenceError) -> RuntimeResponse:
        """The answer to a request that failed."""
        return RuntimeResponse(self._spec.model_name, self._spec.model_version, request.id, {}, None, error)

    def response_of(self, request: InferenceRequest, answer: InferenceResponse) -> RuntimeResponse:
        """The answer as it leaves: without tensors that were not requested or are not the model's outputs.

        A tensor that is not what the configuration says makes it an INTERNAL error that names the tensor.
        """
        if answer._error is not None:
            return self.error_response(request, inference_error(answer._error))
        spec = self._spec
        requested = request.requested_outputs
        outputs: dict[str, Tensor] = {}
        for tensor in answer._output_tensors:
            name = tensor._name
            compiled = self._compiled.get(name)
            if compiled is None or (requested and name not in requested):
                continue
            value = tensor._value
            datatype, full_dims, output = compiled
            shape = value.array.shape
            is_as_configured = (
                value.datatype is datatype
                and output.reshape is None
                and _fits(shape, full_dims)
                and not (self._counts_rows and shape[0] != request.batch_size)
            )
            if not is_as_configured:
                try:
                    value = self._checked(request, output, value)
                except InferenceError as error:
                    return self.error_response(request, error)
            outputs[name] = value
        return RuntimeResponse(spec.model_name, spec.model_version, request.id, outputs, answer._parameters)

    def _checked(self, request: InferenceRequest, output: TensorSpec, value: Tensor) -> Tensor:
        if value.datatype is not output.datatype:
            raise self._error(output, f"expected {output.datatype.name}, got {value.datatype.name}")
        shape = value.array.shape
        if output.reshape is not None:
            value = self._reshaped(output, value)
        if not _fits(value.array.shape, output.full_dims):
            raise self._error(
                output, f"expected the shape {shape_text(output.full_dims)}, got {shape_text(shape)}"
            )
        # A request without rows counts as one row.
        if self._counts_rows and shape[0] not in (request.batch_size, 0):
            raise self._error(
                output,
                f"the request has {request.batch_size} rows, but the answer has the shape {shape_text(shape)}",
            )
        return value

    def _reshaped(self, output: TensorSpec, value: Tensor) -> Tensor:
        shape = client_side_shape(output, value.array.shape, self._spec.batches)
        try:
            return value.reshaped(shape)
        except ValueError:
            raise self._error(
                output,
                f"the shape {shape_text(value.array.shape)} does not fit {shape_text(output.full_dims)}",
            ) from None

    def _error(self, output: TensorSpec, text: str) -> InferenceError:
        return internal_error(f"model '{self._spec.model_name}', output '{output.name}': {text}")


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    if len(shape) != len(dims):
        return False
    for size, dim in zip(shape, dims, strict=True):  # noqa: SIM110 - a generator would cost more than the checks
        if dim not in (-1, size):
            return False
    return True
