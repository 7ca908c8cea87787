"""Makes model versions out of prepared configurations: backends, instances, schedulers, ensembles' plans.

Owns the backends, each opened when a model first needs it. Decides neither what is loaded nor under which name it
serves: the repository does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from cantata.dag.composition import FindModel, check_composition, is_decoupled_ensemble
from cantata.dag.plan import compile_plan
from cantata.grammars.model_config import ModelTransactionPolicy
from cantata.runtime.admission import Admission
from cantata.runtime.backends.backend import (
    Backend,
    BackendSettings,
    HostingBackend,
    LoadedModel,
    ServerServices,
)
from cantata.runtime.backends.catalog import open_backend
from cantata.runtime.errors import internal_error
from cantata.runtime.execution.limited_dispatch import LimitedDispatch
from cantata.runtime.execution.worker_pool import Dispatcher, WorkerPool
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.latencies import Latencies, latencies_of
from cantata.runtime.observe.metrics_options import LatencyOptions
from cantata.runtime.observe.statistics import StatisticsCounter
from cantata.runtime.repository.completion import PreparedModel, problems_error
from cantata.runtime.repository.hosted_instances import HostedInstances
from cantata.runtime.repository.model_caching import ModelCaching
from cantata.runtime.repository.model_version import ModelVersion, Scheduler
from cantata.runtime.repository.warmup import warm_up
from cantata.runtime.scheduling.batch_strategy import load_batch_strategy
from cantata.runtime.scheduling.batcher import Batcher, SingleRequestQueue
from cantata.runtime.scheduling.dynamic_batcher import DynamicBatcher
from cantata.runtime.scheduling.ensemble_scheduler import EnsembleScheduler
from cantata.runtime.scheduling.model_scheduler import ModelScheduler
from cantata.runtime.scheduling.priority_queue import priority_queue
from cantata.runtime.scheduling.sequence_inputs import SequenceInputs
from cantata.runtime.scheduling.sequence_scheduler import SequenceScheduler
from cantata.runtime.scheduling.sequence_strategies import sequence_batcher
from cantata.runtime.scheduling.timer import Timer

_log = logging.getLogger("cantata.repository")

FindVersion = Callable[[str, int], ModelVersion]


class ModelLoader:
    """Loads model versions. `_lock` guards the opened backends."""

    def __init__(
        self,
        backend_config: Mapping[str, Mapping[str, str]],
        services: ServerServices,
        workers: WorkerPool,
        timer: Timer,
        limits: LimitedDispatch | None = None,
        admission: Admission | None = None,
        caching: ModelCaching | None = None,
        latencies: LatencyOptions | None = None,
    ) -> None:
        """`limits` decides when instances run, where there are limits; `admission` has the budgets of the models.

        `caching` keeps answers, where the server has a cache. `latencies` says what is told of them beyond sums.
        """
        self._backend_config = backend_config
        self._services = services
        self._workers = workers
        self._timer = timer
        self._limits = limits
        self._admission = Admission(0) if admission is None else admission
        self._caching = caching
        self._latencies = LatencyOptions() if latencies is None else latencies
        self._dispatcher: Dispatcher = workers if limits is None else limits
        self._lock = threading.Lock()
        self._backends: dict[str, Backend] = {}

    def backend(self, name: str) -> Backend:
        """The backend of that name, opened once; raises InferenceError when there is none, or it is not installed."""
        with self._lock:
            backend = self._backends.get(name)
            if backend is None:
                settings = {**self._backend_config.get("", {}), **self._backend_config.get(name, {})}
                backend = self._backends[name] = open_backend(name, BackendSettings(settings), self._services)
            return backend

    def load(self, prepared: PreparedModel, version: int) -> ModelVersion:
        """Load one version of a model that is no ensemble; raises InferenceError with the reason it cannot be."""
        started = time.monotonic()
        config = prepared.config
        byte_budget = self._admission.model_budget(config)
        backend = self.backend(config.backend)
        files = prepared.files(version)
        model = backend.load(files, config)
        spec = ModelSpec(config, version)
        caching = self._caching_of(prepared, spec)
        latencies = latencies_of(config, self._latencies, has_cache=caching is not None)
        try:
            scheduler = self._scheduler(prepared, spec, latencies, orders_itself=caching is None)
            warm = partial(
                warm_up, scheduler, spec=spec, config=config, model_directory=files.model_directory
            )
            instances = HostedInstances(model, scheduler, warm, self._limits)
            instances.commit(instances.prepare(config))
        except BaseException:
            _close(model)
            raise
        identity = self._load_identity(prepared, version)
        serving: Scheduler = scheduler
        if caching is not None:
            serving = caching.before(scheduler, spec, prepared, identity, latencies=latencies)
        seconds = time.monotonic() - started
        return ModelVersion(
            config,
            version,
            prepared.directory.path,
            spec,
            serving,
            model,
            (),
            seconds,
            instances,
            byte_budget,
            identity,
            latencies,
            namespace=prepared.directory.namespace,
        )

    def can_change_instances(self, version: ModelVersion, prepared: PreparedModel) -> bool:
        """Whether a version that serves can be given the instances of another configuration of its model."""
        backend = self.backend(prepared.config.backend)
        if not isinstance(backend, HostingBackend):
            return True
        return backend.hosts_alike(prepared.files(version.version), version.config, prepared.config)

    def _caching_of(
        self, prepared: PreparedModel, spec: ModelSpec, steps: Sequence[ModelVersion] = ()
    ) -> ModelCaching | None:
        """What keeps a model's answers, if they are kept."""
        if self._caching is None:
            asked = prepared.config.response_cache
            if asked is not None and asked.enable:
                _log.warning(
                    "model '%s' asks for a response cache, but the server has none: see --cache-config",
                    spec.model_name,
                )
            return None
        return self._caching if self._caching.keeps(spec, prepared, steps) else None

    def _load_identity(
        self, prepared: PreparedModel, version: int, steps: Sequence[ModelVersion] = ()
    ) -> bytes:
        return b"" if self._caching is None else self._caching.load_identity(prepared, version, steps)

    def _scheduler(
        self, prepared: PreparedModel, spec: ModelSpec, latencies: Latencies | None, *, orders_itself: bool
    ) -> ModelScheduler | SequenceScheduler:
        config = prepared.config
        if config.sequence_batching is None:
            batching = config.dynamic_batching
            return ModelScheduler(
                spec,
                _batcher(prepared, spec),
                self._dispatcher,
                self._timer,
                preserves_order=orders_itself and batching is not None and batching.preserve_ordering,
                statistics=StatisticsCounter(latencies),
            )
        inputs = SequenceInputs(config, prepared.directory.path)
        batcher = sequence_batcher(config.sequence_batching, spec, inputs.prepare)
        statistics = StatisticsCounter(latencies)
        return SequenceScheduler(spec, batcher, inputs, self._dispatcher, self._timer, statistics=statistics)

    def load_ensemble(
        self, prepared: PreparedModel, version: int, find_composing: FindModel, find_version: FindVersion
    ) -> ModelVersion:
        """Compile one version of an ensemble over models that are loaded; raises InferenceError where they do not fit.

        `find_composing` describes the models that steps name, loaded or not; `find_version` finds loaded ones.
        """
        started = time.monotonic()
        problems = check_composition(prepared.config, prepared.positions, find_composing)
        if problems:
            raise problems_error(tuple(problems))
        is_decoupled = is_decoupled_ensemble(prepared.config, find_composing)
        config = prepared.config.model_copy(
            update={"model_transaction_policy": ModelTransactionPolicy(decoupled=is_decoupled)}
        )
        ensemble = config.ensemble_scheduling
        if ensemble is None:
            raise internal_error(f"'{config.name}' is no ensemble")
        steps = [find_version(step.model_name, step.model_version) for step in ensemble.step]
        plan = compile_plan(config, [step.config for step in steps])
        spec = ModelSpec(config, version)
        caching = self._caching_of(prepared, spec, steps)
        latencies = latencies_of(config, self._latencies, has_cache=caching is not None)
        ensemble_scheduler = EnsembleScheduler(spec, plan, steps, self._timer, StatisticsCounter(latencies))
        scheduler: Scheduler = ensemble_scheduler
        identity = self._load_identity(prepared, version, steps)
        if caching is not None:
            scheduler = caching.before(scheduler, spec, prepared, identity, steps, latencies)
        seconds = time.monotonic() - started
        return ModelVersion(
            config,
            version,
            prepared.directory.path,
            spec,
            scheduler,
            None,
            tuple(steps),
            seconds,
            byte_budget=self._admission.model_budget(config),
            load_identity=identity,
            latencies=latencies,
            step_figures=ensemble_scheduler.step_figures,
            namespace=prepared.directory.namespace,
        )

    def close(self) -> None:
        """Close the backends; every model must have been closed."""
        with self._lock:
            backends, self._backends = self._backends, {}
        for name, backend in backends.items():
            try:
                backend.close()
            except Exception:
                _log.exception("backend '%s' could not be closed", name)


def _batcher(prepared: PreparedModel, spec: ModelSpec) -> Batcher:
    batching = prepared.config.dynamic_batching
    if batching is None:
        return SingleRequestQueue()
    files = prepared.files(spec.model_version)
    return DynamicBatcher(
        spec,
        batching.preferred_batch_size,
        batching.max_queue_delay_microseconds,
        priorities=priority_queue(batching),
        strategy=load_batch_strategy(prepared.config, files.model_directory, files.version_directory),
    )


def _close(model: LoadedModel) -> None:
    try:
        model.close()
    except Exception:
        _log.exception("a model could not be closed")
