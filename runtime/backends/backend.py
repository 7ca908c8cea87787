"""What a backend is: the protocols that ONNX Runtime, PyTorch and Python models implement.

Owns no behaviour. A backend completes configurations and loads model versions; a loaded model makes instances; an
instance executes batches. Who calls what, and from which thread, is said in each method's docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.calls import Entrance
from cantata.runtime.execution.execution import Execution
from cantata.runtime.observe.snapshots import ProcessFigures

if TYPE_CHECKING:
    # A model's own process needs the protocols, but no configuration.
    from cantata.grammars.model_config import ModelConfig
    from cantata.runtime.observe.custom_metrics import MetricChange, MetricKind


class ServerServices(Entrance, Protocol):
    """What a backend may ask of the server that hosts it; the server itself implements it."""

    def is_decoupled(self, model_name: str, model_version: int) -> bool:
        """Whether that model answers with any number of responses; raises InferenceError when it is not ready."""

    def batches_here(self, model_name: str, model_version: int) -> bool:
        """Whether a call made now would run alone, on the calling thread, in a model that batches requests.

        Raises InferenceError when the model is not ready.
        """

    def is_model_ready(self, model_name: str, model_version: int) -> bool:
        """Whether a model, in that version or with -1 the highest, can serve. May take seconds to find out."""

    def load_model(self, model_name: str, parameters: Mapping[str, str | bytes]) -> None:
        """Load or reload a model; raises InferenceError when that is not allowed now, or fails.

        `parameters` may put a configuration, or files, in place of what the repository holds.
        """

    def unload_model(self, model_name: str, unload_dependents: bool) -> None:
        """Begin to unload a model; raises InferenceError when that is not allowed now."""

    @property
    def custom_metrics(self) -> MetricStore:
        """Where the metrics are that models define."""


class MetricStore(Protocol):
    """The metrics that models define, by number; see CustomMetrics, which is the server's."""

    def open_family(self, name: str, description: str, kind: MetricKind) -> int: ...
    def open_metric(self, family_number: int, labels: Mapping[str, str], bounds: Sequence[float]) -> int: ...
    def change(self, number: int, change: MetricChange, amount: float) -> None: ...
    def value(self, number: int) -> float: ...
    def close(self, number: int) -> None: ...


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """What the command line says of one backend: `--backend-config=<backend>,<setting>=<value>`."""

    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files lie. `version_directory` is `model_directory` / str(version)."""

    name: str
    version: int
    model_directory: Path
    version_directory: Path


@dataclass(frozen=True, slots=True)
class InstancePlacement:
    """One instance: its name (`<group>_<i>`), and where it runs. `kind` is CPU, GPU or MODEL; device 0 on CPU."""

    name: str
    kind: str
    device_id: int


class BackendInstance(Protocol):
    """One model instance. `execute` is called by one thread at a time, though not always by the same one."""

    def execute(self, execution: Execution) -> bool:
        """Run a batch, and fill `execution.responses`; see Execution for what to leave there.

        Returns True when the batch is over. Returns False when the instance goes on with it in the background (an
        `async def execute`): the instance may be given further batches meanwhile, unless `execution.keeps_instance`
        says otherwise, and `execution.finish()` must follow, once, from any thread. An InferenceError raised fails
        every request that is not answered yet; any other exception is reported as INTERNAL with its traceback in the
        log.
        """

    def close(self) -> None:
        """Release what the instance holds; called once, when no batch runs in it."""


@runtime_checkable
class SelfReportingInstance(Protocol):
    """What an instance is besides where its model can say by itself whether it is ready."""

    @property
    def has_readiness_hook(self) -> bool:
        """Whether it does. Fixed once the instance is made."""

    def is_ready(self) -> bool:
        """What the model says. May take seconds, on any thread; raises InferenceError where it fails to say."""


@runtime_checkable
class RestartingInstance(Protocol):
    """What an instance is besides where it can fail as a whole and come back: one in a process of its own."""

    def watch(self, on_change: Callable[[], None]) -> None:
        """Have `on_change` called, from any thread, whenever `unavailability` has changed. Called once."""

    def unavailability(self) -> InferenceError | None:
        """Why the instance cannot execute now, or None. Quick, and takes no lock."""


@runtime_checkable
class SenderHoldingInstance(Protocol):
    """What an instance is besides whose model may hold a request after `execute` has returned, and for ever."""

    @property
    def is_executing(self) -> bool:
        """Whether `execute` runs, or goes on in the background."""


class LoadedModel(Protocol):
    """A model version whose shared parts (weights, code) are in memory."""

    def create_instance(self, placement: InstancePlacement) -> BackendInstance:
        """Make one instance, ready to execute; raises InferenceError when it cannot be made."""

    def close(self) -> None:
        """Release what the instances shared; called once, after every instance was closed."""


@runtime_checkable
class ProcessHostedModel(Protocol):
    """What a model is besides whose instances are processes, which can end by themselves."""

    def process_figures(self) -> ProcessFigures:
        """The figures of all instances together."""


@runtime_checkable
class ReconfigurableModel(Protocol):
    """What a model is besides whose instances are told the whole configuration."""

    def reconfigure(self, config: ModelConfig) -> None:
        """Make further instances for `config`, which differs from the present one in its groups and versions only."""


@runtime_checkable
class HostingBackend(Protocol):
    """What a backend is besides where the number of a model's instances decides what they are."""

    def hosts_alike(self, files: ModelFiles, one: ModelConfig, other: ModelConfig) -> bool:
        """Whether what was loaded for `one` can make the instances of `other`, which differs in its groups only."""


class Backend(Protocol):
    """One backend, made once for each server by its module's `create_backend(settings, services)`."""

    def default_instance_count(self, kind: str) -> int:
        """How many instances a group without `count` gets on `kind` (reference, section 6.8)."""

    def default_kind(self) -> str:
        """The kind of a model without instance groups: AUTO, CPU, GPU or MODEL."""

    def complete_config(self, files: ModelFiles, config: ModelConfig) -> ModelConfig:
        """`config` with what the model's own files say filled in; raises InferenceError where they disagree.

        Called at load, before the configuration is validated, unless completion is disabled.
        """

    def load(self, files: ModelFiles, config: ModelConfig) -> LoadedModel:
        """Read the model; raises InferenceError with the reason when it cannot be served."""

    def close(self) -> None:
        """Release what all models of the backend share; called once, after the last model was closed."""
