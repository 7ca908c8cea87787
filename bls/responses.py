"""pb_utils.InferenceResponse: what a model answers, or what a model that it called answered."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cantata.bls.errors import TritonError, TritonModelException, triton_error
from cantata.bls.parameters import checked_parameters
from cantata.bls.tensor import Tensor, own_tensor
from cantata.runtime.response import InferenceResponse as RuntimeResponse
from cantata.runtime.response import ParameterValue


class InferenceResponse:
    """Output tensors, or an error, in which case the tensors do not count."""

    __slots__ = ("_error", "_output_tensors", "_parameters")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] | None = None,
        error: TritonError | None = None,
        parameters: dict[str, ParameterValue] | None = None,
    ) -> None:
        tensors = list(output_tensors) if output_tensors else []
        for tensor in tensors:
            if type(tensor) is not Tensor:
                _check_tensor(tensor)
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(f"expected a TritonError as the response's error, found type '{type(error)}'")
        self._output_tensors = tensors
        self._error = error
        self._parameters = checked_parameters(parameters) if parameters is not None else None

    def output_tensors(self) -> list[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """The response's parameters as JSON."""
        return json.dumps(self._parameters or {})


def _check_tensor(tensor: object) -> None:
    if tensor is None:
        raise TritonModelException("Output tensor for inference response should not be empty.")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a Tensor in the response's output tensors, found type '{type(tensor)}'")


def received_response(response: RuntimeResponse) -> InferenceResponse:
    """The answer of a called model."""
    received = InferenceResponse.__new__(InferenceResponse)
    received._output_tensors = [own_tensor(name, value) for name, value in response.outputs.items()]
    received._error = None if response.error is None else triton_error(response.error)
    received._parameters = response.parameters
    return received
