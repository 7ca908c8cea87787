"""Which outputs a request wants as classes, and a response with these in their place (reference, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cantata.runtime.errors import invalid_argument
from cantata.runtime.frontends.classification import classified
from cantata.runtime.frontends.grpc.infer_message import InferMessage
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.response import InferenceResponse


@dataclass(frozen=True, slots=True)
class RequestedClasses:
    """How many classes of which outputs of `model` a request wants."""

    model: ModelVersion
    counts: dict[str, int]

    def applied_to(self, response: InferenceResponse) -> InferenceResponse:
        """`response` with classes for the outputs that were asked for so. Raises InferenceError."""
        outputs = {
            name: classified(tensor, self.counts[name], self.model, name) if name in self.counts else tensor
            for name, tensor in response.outputs.items()
        }
        return InferenceResponse(
            response.model_name, response.model_version, response.id, outputs, response.parameters
        )


def requested_classes(message: InferMessage, model: ModelVersion) -> RequestedClasses | None:
    """What `message` asks for, None where it asks for none. Raises InferenceError (INVALID_ARG)."""
    counts = {
        output.name: _class_count(output.parameters["classification"])
        for output in message.outputs
        if output.parameters is not None and "classification" in output.parameters
    }
    return RequestedClasses(model, counts) if counts else None


def _class_count(parameter: Any) -> int:
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise invalid_argument("invalid value type for 'classification' parameter, expected int64_param")
    if parameter.int64_param <= 0:
        raise invalid_argument("invalid value for 'classification' parameter, expected >= 0")
    return int(parameter.int64_param)
