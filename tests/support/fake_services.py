"""A server for backends under test: callable models in place of a repository.

Keeps the contract of ServerServices; a called model runs on the thread that calls it, or when the test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.observe.custom_metrics import CustomMetrics
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse

Answer = Callable[[InferenceRequest], None]


@dataclass
class FakeServices:
    """`models` holds what answers each model's requests; `held` collects those of models in `holding`."""

    models: dict[str, Answer] = field(default_factory=dict)
    decoupled: set[str] = field(default_factory=set)
    holding: set[str] = field(default_factory=set)
    held: list[InferenceRequest] = field(default_factory=list)
    submitted: list[InferenceRequest] = field(default_factory=list)
    workers: WorkerPool = field(default_factory=WorkerPool)
    custom_metrics: CustomMetrics = field(default_factory=CustomMetrics)

    def submit(self, request: InferenceRequest) -> None:
        self.is_decoupled(request.model_name, request.model_version)
        self.submitted.append(request)
        if request.model_name in self.holding:
            self.held.append(request)
        else:
            self.models[request.model_name](request)

    def run_now(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        return False

    def is_decoupled(self, model_name: str, model_version: int) -> bool:
        if model_name not in self.models:
            raise InferenceError(StatusCode.NOT_FOUND, f"unknown model '{model_name}' {model_version}")
        return model_name in self.decoupled

    def batches_here(self, model_name: str, model_version: int) -> bool:
        return False

    def is_model_ready(self, model_name: str, model_version: int) -> bool:
        return model_name in self.models

    def load_model(self, model_name: str, parameters: Mapping[str, str | bytes]) -> None:
        self.models[model_name] = echo

    def unload_model(self, model_name: str, unload_dependents: bool) -> None:
        self.models.pop(model_name, None)

    def release(self) -> None:
        """Answer what is held."""
        held, self.held = self.held, []
        for request in held:
            self.models[request.model_name](request)


def echo(request: InferenceRequest) -> None:
    """Answers with the inputs, under their own names."""
    request.respond(InferenceResponse(request.model_name, 1, request.id, dict(request.inputs)), True)
