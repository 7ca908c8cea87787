"""One response to an inference request: outputs by name, or an error."""

from __future__ import annotations

from cantata.runtime.errors import InferenceError
from cantata.runtime.tensor import Tensor

# What a request's or a response's parameter can be (InferParameter, reference section 2).
ParameterValue = bool | int | float | str


class InferenceResponse:
    """What a model answered. `error` is set, or `outputs` holds the tensors in the order they are to be sent.

    `id` is the request's. `parameters` reach the client as they are.
    """

    __slots__ = ("error", "id", "model_name", "model_version", "outputs", "parameters")

    def __init__(
        self,
        model_name: str,
        model_version: int,
        id: str,
        outputs: dict[str, Tensor],
        parameters: dict[str, ParameterValue] | None = None,
        error: InferenceError | None = None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = id
        self.outputs = outputs
        self.parameters = parameters
        self.error = error
