"""A stand-in for `cantata.runtime.server.Server` as the front-ends see it: models are plain functions.

A model is a function from a request to its responses; it runs through the real WorkerPool, so that quick models run on
the front-end's thread and others on workers, as in the real server.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cantata.grammars.model_config import DataType as ConfigDataType
from cantata.grammars.model_config import ModelConfig, ModelInput, ModelOutput, ModelTransactionPolicy
from cantata.runtime.admission import Admission
from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument, not_found, unavailable
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.custom_metrics import CustomMetrics
from cantata.runtime.observe.snapshots import (
    InferStatistics,
    ModelFigures,
    ModelStatistics,
    StatisticDuration,
)
from cantata.runtime.observe.trace import Tracer
from cantata.runtime.observe.trace_settings import TraceSettings
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.shared_memory import SharedMemory
from cantata.runtime.tensor import Tensor

Compute = Callable[[InferenceRequest], Iterable[InferenceResponse]]

NO_TIME = StatisticDuration(0, 0)


@dataclass(frozen=True)
class ServerMetadata:
    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class ModelIndexEntry:
    name: str
    version: str
    state: str
    reason: str


class FakeModel:
    """A READY model version that answers by calling `compute`; `is_quick` lets it run on the caller's thread."""

    def __init__(
        self,
        config: ModelConfig,
        compute: Compute,
        *,
        version: int = 1,
        is_quick: bool = True,
        directory: Path = Path("/nonexistent"),
    ) -> None:
        self.name = config.name
        self.version = version
        self.config = config
        self.spec = ModelSpec(config, version)
        self.is_decoupled = self.spec.is_decoupled
        self.is_ready = True
        self.platform = config.platform or config.backend
        self.directory = directory
        self.config_json = b'{"name":"%s","max_batch_size":%d}' % (
            config.name.encode(),
            config.max_batch_size,
        )
        self.is_quick = is_quick
        self.compute = compute


class _FakeWork:
    def __init__(self, model: FakeModel, request: InferenceRequest) -> None:
        self._model = model
        self._request = request

    @property
    def is_quick(self) -> bool:
        return self._model.is_quick

    @property
    def is_quick_alone(self) -> bool:
        return False

    @property
    def may_wait(self) -> bool:
        return False

    def run(self) -> None:
        request = self._request
        try:
            for response in self._model.compute(request):
                request.respond(response, final=not self._model.is_decoupled)
            if not request.is_finished:
                request.respond(None, final=True)
        except InferenceError as error:
            request.fail(error)
        except Exception as error:
            request.fail(internal_error(repr(error)))


class FakeServer:
    """The facade of the server over `models`. `submitted` keeps every accepted request."""

    def __init__(self, *models: FakeModel) -> None:
        self.workers = WorkerPool()
        self.tracer = Tracer(TraceSettings())
        self.shared_memory = SharedMemory(allows_clients=True, find_driver=lambda: None)
        self.admission = Admission(0)
        self.custom_metrics = CustomMetrics()
        self.submitted: deque[InferenceRequest] = deque(maxlen=1000)
        self.submitted_on: deque[str] = deque(maxlen=1000)
        self.is_exiting = False
        self.asks_for_readiness = False
        self.live = True
        self.ready = True
        self.unavailable_versions: set[tuple[str, int]] = set()
        self.statistics_by_model: dict[str, ModelStatistics] = {}
        self.is_controlled = False
        self.controlled: list[tuple[str, str]] = []
        self.figures: list[ModelFigures] = []
        self._models: dict[str, dict[int, FakeModel]] = {}
        for model in models:
            self._models.setdefault(model.name, {})[model.version] = model

    def submit(self, request: InferenceRequest) -> None:
        model = self.model(request.model_name, request.model_version)
        model.spec.validate(request)
        request.model_version = model.version
        self.submitted.append(request)
        self.submitted_on.append(threading.current_thread().name)
        self.workers.dispatch(_FakeWork(model, request))

    def model(self, name: str, version: int = -1) -> FakeModel:
        versions = self._models.get(name)
        if versions is None:
            raise invalid_argument(f"Request for unknown model: '{name}' is not found")
        found = versions.get(max(versions) if version == -1 else version)
        if found is None:
            raise not_found(f"Request for unknown model: '{name}' version {version} is not found")
        return found

    def model_versions(self, name: str) -> list[int]:
        self.model(name)
        return sorted(self._models[name])

    def is_live(self) -> bool:
        return self.live

    def is_ready(self) -> bool:
        return self.ready

    def is_model_ready(self, name: str, version: int = -1) -> bool:
        found = self.model(name, version)
        return (found.name, found.version) not in self.unavailable_versions

    def metadata(self) -> ServerMetadata:
        return ServerMetadata("triton", "0.1.0", ("classification", "sequence"))

    def repository_index(self, ready_only: bool = False) -> list[ModelIndexEntry]:
        entries = [
            ModelIndexEntry(model.name, str(model.version), "READY", "")
            for versions in self._models.values()
            for model in versions.values()
        ]
        if not ready_only:
            entries.append(ModelIndexEntry("broken", "1", "UNAVAILABLE", "Invalid argument: no"))
            entries.append(ModelIndexEntry("never_loaded", "", "", ""))
        return entries

    def statistics(self, name: str = "", version: int = -1) -> list[ModelStatistics]:
        if name and name not in self._models:
            raise invalid_argument(f"requested model '{name}' is not available")
        if name and version != -1 and version not in self._models[name]:
            raise invalid_argument(f"requested model version is not available for model '{name}'")
        return [
            self.statistics_by_model.get(model.name, empty_statistics(model.name, str(model.version)))
            for versions in self._models.values()
            for model in versions.values()
            if name in ("", model.name) and version in (-1, model.version)
        ]

    def load_model(self, name: str, parameters: Mapping[str, str | bytes] | None = None) -> None:
        self._control("load", name)

    def unload_model(self, name: str, unload_dependents: bool = False) -> None:
        self._control("unload with dependents" if unload_dependents else "unload", name)

    def _control(self, action: str, name: str) -> None:
        if not self.is_controlled:
            raise unavailable("explicit model load / unload is not allowed if polling is enabled")
        self.controlled.append((action, name))

    def model_figures(self) -> list[ModelFigures]:
        return self.figures

    def cache_figures(self) -> None:
        """There is no cache."""

    def close(self) -> None:
        self.workers.close()


def empty_statistics(name: str, version: str) -> ModelStatistics:
    """The statistics of a model that has served nothing."""
    return ModelStatistics(name, version, 0, 0, 0, InferStatistics(*[NO_TIME] * 8), (), {})


def model_config(
    name: str,
    inputs: dict[str, tuple[DataType, tuple[int, ...]]],
    outputs: dict[str, tuple[DataType, tuple[int, ...]]],
    *,
    max_batch_size: int = 0,
    decoupled: bool = False,
    labels: dict[str, str] | None = None,
) -> ModelConfig:
    """A configuration of a Python model from `{tensor: (datatype, dims)}`; `labels` names outputs' label files."""
    return ModelConfig(
        name=name,
        backend="python",
        max_batch_size=max_batch_size,
        input=tuple(
            ModelInput(name=tensor, data_type=ConfigDataType(int(datatype)), dims=dims)
            for tensor, (datatype, dims) in inputs.items()
        ),
        output=tuple(
            ModelOutput(
                name=tensor,
                data_type=ConfigDataType(int(datatype)),
                dims=dims,
                label_filename=(labels or {}).get(tensor, ""),
            )
            for tensor, (datatype, dims) in outputs.items()
        ),
        model_transaction_policy=ModelTransactionPolicy(decoupled=True) if decoupled else None,
    )


def respond_with(
    request: InferenceRequest,
    outputs: dict[str, Tensor],
    parameters: dict[str, bool | int | float | str] | None = None,
) -> InferenceResponse:
    """The response to `request` that holds those of `outputs` that it asks for."""
    wanted = request.requested_outputs or tuple(outputs)
    return InferenceResponse(
        request.model_name,
        request.model_version,
        request.id,
        {name: tensor for name, tensor in outputs.items() if name in wanted},
        parameters,
    )


def identity(request: InferenceRequest) -> Iterator[InferenceResponse]:
    """Each input comes back as an output: IN becomes OUT, IN_1 becomes OUT_1."""
    outputs = {name.replace("IN", "OUT", 1): tensor for name, tensor in request.inputs.items()}
    yield respond_with(request, outputs)


def identity_model(
    name: str,
    datatype: DataType = DataType.FP32,
    dims: tuple[int, ...] = (4,),
    *,
    max_batch_size: int = 0,
    is_quick: bool = True,
) -> FakeModel:
    """A model with the input IN, which it returns as OUT."""
    config = model_config(
        name, {"IN": (datatype, dims)}, {"OUT": (datatype, dims)}, max_batch_size=max_batch_size
    )
    return FakeModel(config, identity, is_quick=is_quick)
