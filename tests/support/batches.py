"""Builders of requests and batches for backends that are run without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cantata.grammars.model_config import ModelConfig
from cantata.runtime.backends.backend import BackendInstance, MetricStore, ServerServices
from cantata.runtime.execution.calls import WaitingSender
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor, tensor_of_array


def request_for(
    spec: ModelSpec, inputs: Mapping[str, Any], requested_outputs: tuple[str, ...] = (), id: str = ""
) -> InferenceRequest:
    """A valid request whose inputs are these arrays, each of the datatype that the model expects."""
    tensors = {name: _tensor(spec, name, value) for name, value in inputs.items()}
    request = InferenceRequest(
        spec.model_name, tensors, WaitingSender(), 0, id=id, requested_outputs=requested_outputs
    )
    spec.validate(request)
    return request


def batch_of(spec: ModelSpec, *requests: InferenceRequest) -> Execution:
    """A batch that is about to run."""
    size = sum(request.batch_size for request in requests)
    return Execution(spec, list(requests), size, 0, on_finish=_ignore)


def run_batch(
    instance: BackendInstance, config: ModelConfig, *inputs: Mapping[str, Any], outputs: tuple[str, ...] = ()
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The outputs of each request of a batch, by name; each request has the same requested outputs."""
    spec = ModelSpec(config, 1)
    execution = batch_of(spec, *(request_for(spec, each, outputs) for each in inputs))
    assert instance.execute(execution)
    return [outputs_of(response) for response in execution.responses]


def outputs_of(response: InferenceResponse | None) -> dict[str, np.ndarray[Any, Any]]:
    """A response's outputs as arrays."""
    assert response is not None
    assert response.error is None
    return {name: tensor.array for name, tensor in response.outputs.items()}


def _tensor(spec: ModelSpec, name: str, value: Any) -> Tensor:
    return tensor_of_array(value, spec.inputs[name].datatype if name in spec.inputs else None)


def _ignore(_: Execution) -> None:
    pass


class NoServices:
    """A server that is never asked for anything."""

    @property
    def workers(self) -> WorkerPool:
        raise AssertionError("no backend needs workers to be made")

    def submit(self, request: InferenceRequest) -> None:
        raise AssertionError(f"unexpected request for {request.model_name}")

    def run_now(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        raise AssertionError(f"unexpected request for {request.model_name}")

    def is_decoupled(self, model_name: str, model_version: int) -> bool:
        raise AssertionError(f"unexpected question about {model_name} {model_version}")

    def batches_here(self, model_name: str, model_version: int) -> bool:
        raise AssertionError(f"unexpected question about {model_name} {model_version}")

    def is_model_ready(self, model_name: str, model_version: int) -> bool:
        raise AssertionError(f"unexpected question about {model_name} {model_version}")

    def load_model(self, model_name: str, parameters: Mapping[str, str | bytes]) -> None:
        raise AssertionError(f"unexpected load of {model_name}")

    def unload_model(self, model_name: str, unload_dependents: bool) -> None:
        raise AssertionError(f"unexpected unload of {model_name}")

    @property
    def custom_metrics(self) -> MetricStore:
        raise AssertionError("no backend needs metrics to be made")


NO_SERVICES: ServerServices = NoServices()
