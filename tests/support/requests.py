"""Builders of models' specs and requests, and a sender that remembers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cantata.grammars.model_config import DataType as ConfigType
from cantata.grammars.model_config import ModelConfig, ModelInput, ModelOutput
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor, tensor_of_array


def identity_config(
    name: str = "identity", *, max_batch_size: int = 0, dims: tuple[int, ...] = (-1,)
) -> ModelConfig:
    """A model with one FP32 input and one FP32 output of the same shape."""
    return ModelConfig(
        name=name,
        backend="python",
        max_batch_size=max_batch_size,
        input=(ModelInput(name="INPUT", data_type=ConfigType.TYPE_FP32, dims=dims),),
        output=(ModelOutput(name="OUTPUT", data_type=ConfigType.TYPE_FP32, dims=dims),),
    )


def identity_spec(*, max_batch_size: int = 0, dims: tuple[int, ...] = (-1,)) -> ModelSpec:
    return ModelSpec(identity_config(max_batch_size=max_batch_size, dims=dims), 1)


@dataclass
class RecordingSender:
    """Keeps every response; fails the test that answers twice."""

    responses: list[InferenceResponse | None] = field(default_factory=list)
    finals: int = 0

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        assert not self.finals, "answered after the final response"
        self.responses.append(response)
        self.finals += final

    def wait_until_ready(self) -> None:
        """Always ready."""

    @property
    def error(self) -> str:
        """The text of the only response's error."""
        (response,) = self.responses
        assert response is not None
        assert response.error is not None
        return response.error.message


def tensor(*shape: int) -> Tensor:
    return tensor_of_array(np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape))


def make_request(
    *shape: int, id: str = "", queued_ns: int = 0, batch_size: int = 1, **inputs: Tensor
) -> InferenceRequest:
    """A request with one FP32 input of `shape` (or the given inputs), as if it had been validated."""
    request = InferenceRequest(
        "identity", inputs or {"INPUT": tensor(*shape)}, RecordingSender(), received_ns=queued_ns, id=id
    )
    request.queued_ns = queued_ns
    request.batch_size = batch_size
    return request
