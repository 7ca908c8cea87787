"""One version of one model while it is known to the server: its state, what requests need of it, and its scheduler."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Protocol

import orjson

from cantata.grammars.model_config import ModelConfig
from cantata.grammars.reading import model_config_to_json
from cantata.runtime.backends.backend import LoadedModel
from cantata.runtime.errors import InferenceError
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.request import InferenceRequest


class ModelState(enum.Enum):
    """The states of the repository index (reference, section 6.12)."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Scheduler(Protocol):
    """What queues a model version's requests and answers them; a ModelScheduler or an EnsembleScheduler."""

    def enqueue(self, request: InferenceRequest) -> None: ...
    def stop(self) -> None: ...
    def wait_until_idle(self, timeout_s: float | None) -> bool: ...
    def close(self) -> None: ...
    def statistics(self, name: str, version: str) -> ModelStatistics: ...
    def failures(self) -> dict[str, int]: ...
    def pending(self) -> int: ...
    @property
    def unavailability(self) -> InferenceError | None: ...
    @property
    def in_flight(self) -> int: ...


class ModelVersion:
    """A loaded model version. Everything but `state` and `reason` is fixed once it is made.

    `model` is what the backend loaded, None for an ensemble. `depends_on` are the versions that an ensemble's steps
    call: they are unloaded after it, so no request needs to hold them.
    """

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        directory: Path,
        spec: ModelSpec,
        scheduler: Scheduler,
        model: LoadedModel | None,
        depends_on: tuple[ModelVersion, ...],
        load_seconds: float,
    ) -> None:
        self.name = config.name
        self.version = version
        self.config = config
        self.directory = directory
        self.spec = spec
        self.scheduler = scheduler
        self.model = model
        self.depends_on = depends_on
        self.load_seconds = load_seconds
        self.state = ModelState.LOADING
        self.reason = ""
        self._config_json: bytes | None = None

    @property
    def is_ready(self) -> bool:
        return self.state is ModelState.READY

    @property
    def can_serve(self) -> bool:
        """Whether it is READY, and an instance of it, and of all that its steps call, can execute now."""
        return (
            self.is_ready
            and self.scheduler.unavailability is None
            and all(version.can_serve for version in self.depends_on)
        )

    @property
    def is_decoupled(self) -> bool:
        return self.spec.is_decoupled

    @property
    def platform(self) -> str:
        """The configuration's platform or, where it has none, its backend."""
        return self.config.platform or self.config.backend

    @property
    def config_json(self) -> bytes:
        """The completed configuration as JSON (reference, section 1); made when first asked for."""
        if self._config_json is None:
            self._config_json = orjson.dumps(model_config_to_json(self.config))
        return self._config_json

    def accept(self, request: InferenceRequest) -> None:
        """Validate and enqueue a request; raises InferenceError when it is refused."""
        self.spec.validate(request)
        request.model_version = self.version
        self.scheduler.enqueue(request)

    def close(self) -> None:
        """Close the scheduler, its instances and the model; accepted requests should have been waited for."""
        self.scheduler.close()
        if self.model is not None:
            self.model.close()
