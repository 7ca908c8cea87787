"""One version of one model while it is known to the server: its state, what requests need of it, and its scheduler."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import orjson

from cantata.grammars.model_config import ModelConfig
from cantata.grammars.reading import model_config_to_json
from cantata.runtime.admission import ByteBudget, ByteLease, tensor_bytes
from cantata.runtime.backends.backend import LoadedModel, ProcessHostedModel, SelfReportingInstance
from cantata.runtime.errors import InferenceError
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.latencies import Latencies
from cantata.runtime.observe.phases import StepFigures
from cantata.runtime.observe.snapshots import ModelStatistics, ProcessFigures
from cantata.runtime.repository.hosted_instances import HostedInstances
from cantata.runtime.repository.namespaces import identifier_of
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.model_scheduler import ModelScheduler

_log = logging.getLogger("cantata.repository")


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
    """A loaded model version. Everything but `state`, `reason` and, in part, `config` is fixed once it is made.

    `model` is what the backend loaded and `instances` are what runs it, both None for an ensemble. `depends_on` are the
    versions that an ensemble's steps call: they are unloaded after it, so no request needs to hold them. `byte_budget`
    is what its requests may hold, None for as much as there is. `load_identity` tells this load's answers from others'
    where answers are cached.
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
        instances: HostedInstances | None = None,
        byte_budget: ByteBudget | None = None,
        load_identity: bytes = b"",
        latencies: Latencies | None = None,
        step_figures: Callable[[], tuple[StepFigures, ...]] = tuple,
        namespace: str = "",
    ) -> None:
        self.name = config.name
        self.namespace = namespace
        self.version = version
        self.config = config
        self.directory = directory
        self.spec = spec
        self.scheduler = scheduler
        self.model = model
        self.depends_on = depends_on
        self.load_seconds = load_seconds
        self.byte_budget = byte_budget
        # What can run requests on their callers' threads, where nothing else is to be asked.
        self._direct: ModelScheduler | None = None
        if isinstance(scheduler, ModelScheduler) and scheduler.can_run_now:
            self._direct = None if spec.is_decoupled or byte_budget is not None else scheduler
        self.load_identity = load_identity
        # Its histograms and summaries, where these are wanted; and where the time of an ensemble's requests goes.
        self.latencies = latencies
        self.step_figures = step_figures
        self.instances = instances
        self.state = ModelState.LOADING
        self.reason = ""
        self._config_json: bytes | None = None

    @property
    def identifier(self) -> str:
        """What its model is known by."""
        return identifier_of(self.name, self.namespace)

    @property
    def is_ready(self) -> bool:
        return self.state is ModelState.READY

    @property
    def can_serve(self) -> bool:
        """Whether it is READY, and an instance of it, and of all that its steps call, can execute now."""
        return self.is_ready and self.can_execute

    @property
    def can_execute(self) -> bool:
        """The same, but for READY: what an ensemble calls may have been replaced, and serves on for that ensemble."""
        return self.scheduler.unavailability is None and all(
            version.can_execute for version in self.depends_on
        )

    @property
    def must_be_asked(self) -> bool:
        """Whether `says_ready` asks code of a model, here or in a model that a step calls."""
        return bool(self._reporting) or any(version.must_be_asked for version in self.depends_on)

    def says_ready(self) -> bool:
        """Whether the model's own code, and that of all that its steps call, says it is ready. May take seconds."""
        try:
            return all(instance.is_ready() for instance in self._reporting) and all(
                version.says_ready() for version in self.depends_on
            )
        except InferenceError as error:
            _log.warning("model '%s' is taken as not ready: %s", self.name, error.message)
            return False

    @property
    def _reporting(self) -> tuple[SelfReportingInstance, ...]:
        """The instances whose model says by itself whether it is ready."""
        return () if self.instances is None else self.instances.reporting

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

    def reconfigure(self, config: ModelConfig) -> None:
        """Take a configuration that differs only in what changes while the version serves."""
        self.config = config
        self._config_json = None

    def accept(self, request: InferenceRequest) -> None:
        """Validate and enqueue a request; raises InferenceError when it is refused."""
        self.spec.validate(request)
        request.model_version = self.version
        if self.byte_budget is None:
            self.scheduler.enqueue(request)
        else:
            self._enqueue_within(self.byte_budget, request)

    @property
    def batches_here(self) -> bool:
        """See ModelScheduler.batches_here."""
        return self._direct is not None and self._direct.batches_here

    def run_now(self, request: InferenceRequest, only_if_quick: bool) -> bool:
        """Validate a request, and run it on this thread if it need not wait; False where it has to be accepted.

        See ModelScheduler.run_now. Raises InferenceError when it is refused.
        """
        if self._direct is None or not self._direct.is_idle:
            return False
        self.spec.validate(request)
        version = request.model_version
        request.model_version = self.version
        if self._direct.run_now(request, only_if_quick=only_if_quick):
            return True
        request.model_version = version
        return False

    def _enqueue_within(self, budget: ByteBudget, request: InferenceRequest) -> None:
        """Enqueue a request that holds its part of the budget until it is answered."""
        lease = request.lease
        if lease is None:
            lease = request.lease = ByteLease(tensor_bytes(request))
        is_new = lease.hold(budget)
        try:
            self.scheduler.enqueue(request)
        except InferenceError:
            if is_new:
                lease.let_go(budget)
            raise

    def process_figures(self) -> ProcessFigures | None:
        """How the processes of its instances fared; None where they have none."""
        return self.model.process_figures() if isinstance(self.model, ProcessHostedModel) else None

    def close(self) -> None:
        """Close the scheduler, its instances and the model; accepted requests should have been waited for."""
        self.scheduler.close()
        if self.instances is not None:
            self.instances.close()
        if self.model is not None:
            self.model.close()
