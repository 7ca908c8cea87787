"""The inference server without any wire: builds the parts, owns start and stop, and `submit` is the one way in.

Front-ends, the embedded API and BLS calls stand on this class. It holds no policy of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from cantata.runtime.admission import Admission, ByteLease, tensor_bytes
from cantata.runtime.caching.settings import create_cache
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, StatusCode, internal_error, invalid_argument, unavailable
from cantata.runtime.execution.limited_dispatch import LimitedDispatch
from cantata.runtime.execution.rate_limiter import RateLimitMode
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.memory_return import MemoryReturn, memory_return
from cantata.runtime.observe.custom_metrics import CustomMetrics
from cantata.runtime.observe.snapshots import CacheFigures, ModelFigures, ModelStatistics
from cantata.runtime.observe.trace import Tracer
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository.control import ModelControlMode, Poller
from cantata.runtime.repository.loader import ModelLoader
from cantata.runtime.repository.model_caching import ModelCaching
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.repository.registry import FailedVersion, ModelIndexEntry, Registry
from cantata.runtime.repository.repository import ModelRepository
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.caching_scheduler import CachingScheduler
from cantata.runtime.scheduling.timer import Timer
from cantata.runtime.shared_memory import SharedMemory
from cantata.runtime.version import VERSION

_log = logging.getLogger("cantata.server")

# What clients may rely on beyond the core protocol, in the order of the reference, section 3.
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """What `GET /v2` says."""

    name: str
    version: str
    extensions: tuple[str, ...]


class Server:
    """A server of one set of model repositories. `start` and `close` are called once each, by one thread."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.workers = WorkerPool()
        self.tracer = Tracer(options.trace)
        self.admission = Admission(options.max_queue_bytes)
        self.shared_memory = SharedMemory(options.allow_client_shm)
        # What models count by themselves.
        self.custom_metrics = CustomMetrics()
        self._timer = Timer()
        self._registry = Registry()
        self._caching = self._response_caching()
        self._loader = ModelLoader(
            options.backend_config,
            _Services(self),
            self.workers,
            self._timer,
            self._limits(),
            self.admission,
            self._caching,
            options.latencies,
        )
        self._repository = ModelRepository(
            options.model_repository,
            self._loader,
            self._registry,
            mode=options.model_control_mode,
            config_name=options.model_config_name,
            auto_complete=not options.disable_auto_complete_config,
            thread_count=options.model_load_thread_count,
            namespacing=options.model_namespacing,
        )
        self._poller: Poller | None = None
        self._memory_return: MemoryReturn | None = None
        self._is_started = False
        self._is_exiting = False
        self._close_lock = threading.Lock()
        self._is_closed = False

    def _limits(self) -> LimitedDispatch | None:
        if self.options.rate_limit is RateLimitMode.OFF:
            return None
        return LimitedDispatch(self.workers, self.options.rate_limit_resource)

    def _response_caching(self) -> ModelCaching | None:
        try:
            cache = create_cache(self.options.cache_config)
        except ValueError as error:
            raise invalid_argument(str(error)) from None
        return None if cache is None else ModelCaching(cache, self.workers, self._timer)

    def start(self) -> None:
        """Load every model, and serve.

        Raises InferenceError when a repository cannot be read or, with `exit_on_error`, when a model fails to load;
        everything is closed again then, and `failures` still tells why.
        """
        try:
            self.tracer.start()
            if self._caching is not None:
                self._caching.start()
            self._repository.load_startup_models(self.options.load_model)
        except InferenceError:
            self.close()
            raise
        if self.options.exit_on_error and self.failures():
            self.close()
            raise internal_error("failed to load all models")
        self._is_started = True
        self._watch_memory()
        if self.options.model_control_mode is ModelControlMode.POLL:
            self._poller = Poller(self._repository.poll, self.options.repository_poll_secs)
            self._poller.start()

    def _watch_memory(self) -> None:
        give_back = memory_return()
        if self.admission.server is None or give_back is None:
            return
        self._memory_return = MemoryReturn(give_back)
        self._memory_return.start()
        self.admission.server.on_shed = self._memory_return.note

    def stop_accepting(self) -> None:
        """Refuse requests from outside from now on; those accepted, and what they call, go on."""
        self._is_exiting = True

    def close(self) -> bool:
        """Stop accepting, wait for accepted requests, and unload everything.

        Waits for `exit_timeout_secs` at most; returns False when requests were left unanswered by then (they are
        failed). Closing twice does nothing.
        """
        with self._close_lock:
            if self._is_closed:
                return True
            self._is_closed = True
        self.stop_accepting()
        if self._poller is not None:
            self._poller.close()
        if self._memory_return is not None:
            self._memory_return.close()
        deadline_ns = monotonic_ns() + int(self.options.exit_timeout_secs * 1e9)
        all_ended = self._repository.unload_all(deadline_ns)
        if not all_ended:
            _log.error("Exit timeout expired. Exiting immediately.")
        self._timer.close()
        if self._caching is not None:
            self._caching.close()
        self.tracer.close()
        if all_ended:
            self.workers.close()
        return all_ended

    def submit(self, request: InferenceRequest) -> None:
        """Accept a request from outside. Raises InferenceError when it is refused, and sends nothing then.

        Every answer to an accepted request goes through its sender, on whichever thread has it.
        """
        self.check_serving()
        budget = self.admission.server
        if budget is None or request.lease is not None:
            self.submit_within(request)
            return
        request.lease = ByteLease(tensor_bytes(request))
        request.lease.hold(budget)
        try:
            self.submit_within(request)
        except BaseException:
            request.lease.release()
            raise

    def hold(self, lease: ByteLease, model_name: str, model_version: int) -> None:
        """Have a request that is about to be read hold what it takes of the server's budget, and of its model's.

        Raises InferenceError when there is no room for it; what it holds by then is for the caller to release.
        """
        if self.admission.server is not None:
            lease.hold(self.admission.server)
        try:
            budget = self._registry.find(model_name, model_version).byte_budget
        except InferenceError:
            # It will be refused for this when it has been read.
            return
        if budget is not None:
            lease.hold(budget)

    def check_serving(self) -> None:
        """Raise InferenceError unless the server has started, and has not begun to stop."""
        if self._is_exiting or not self._is_started:
            raise unavailable("Server not ready")

    def submit_within(self, request: InferenceRequest) -> None:
        """Accept a request that an accepted request makes: as `submit`, and also while the server is exiting."""
        version = self._registry.find(request.model_name, request.model_version)
        try:
            version.accept(request)
        except InferenceError as error:
            # The version may have been replaced between being found and being asked.
            if error.code is not StatusCode.UNAVAILABLE or version.is_ready:
                raise
            self._registry.find(request.model_name, request.model_version).accept(request)

    def run_now(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        """Run a request from outside on this thread where it need not wait; False where it is to be submitted.

        Raises InferenceError when it is refused.
        """
        self.check_serving()
        return self.admission.server is None and self.run_now_within(request, only_if_quick=only_if_quick)

    def run_now_within(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        """Run a request that an accepted request makes: as `run_now`, and also while the server is exiting."""
        version = self._registry.find(request.model_name, request.model_version)
        return version.run_now(request, only_if_quick)

    def load_model(self, name: str, parameters: Mapping[str, str | bytes] | None = None) -> None:
        """Load or reload a model; raises InferenceError when that is not allowed, or fails.

        `parameters` may hold a `config` (JSON) and `file:<path>`s in place of what the repository holds.
        """
        self._repository.load(name, parameters or {})

    def unload_model(self, name: str, unload_dependents: bool = False) -> None:
        """Stop serving a model; returns when that has begun. Raises InferenceError when it is not allowed."""
        self._repository.unload(name, unload_dependents)

    def model(self, name: str, version: int = -1) -> ModelVersion:
        """A READY version, with -1 the highest; raises InferenceError with the lookup's error."""
        return self._registry.find(name, version)

    def model_versions(self, name: str) -> list[int]:
        """The READY versions of a model, ascending."""
        return self._registry.entry(name).ready_versions

    @property
    def is_exiting(self) -> bool:
        """Whether the server has begun to stop."""
        return self._is_exiting

    def is_live(self) -> bool:
        """Whether the server can answer at all."""
        return not self._is_exiting

    def is_ready(self) -> bool:
        """Whether requests can be served: with strict readiness, by every model that was found.

        See `asks_for_readiness` on how long it takes.
        """
        if not self._is_started or self._is_exiting:
            return False
        if not self.options.strict_readiness:
            return True
        return self._registry.is_every_model_ready() and all(
            version.says_ready() for version in self._registry.all_versions() if version.is_ready
        )

    def is_model_ready(self, name: str, version: int = -1) -> bool:
        """Whether a version can serve; raises InferenceError for a model or version that does not exist.

        A model that is not loaded, was unloaded or failed to load is merely not ready: clients unload and then ask
        whether they have, and tools ask for each model of the index. See `asks_for_readiness` on how long it takes.
        """
        try:
            found = self._registry.find(name, version)
        except InferenceError as error:
            has_none = version == -1 and (
                error.code is StatusCode.NOT_FOUND or self._registry.is_on_disk(name)
            )
            if has_none or error.code is StatusCode.UNAVAILABLE or self._registry.entry(name).is_unloaded:
                return False
            raise
        return found.can_serve and found.says_ready()

    @property
    def asks_for_readiness(self) -> bool:
        """Whether `is_ready` and `is_model_ready` ask code of models, which may take seconds."""
        return any(version.must_be_asked for version in self._registry.all_versions())

    def metadata(self) -> ServerMetadata:
        """The server's own name, version and extensions."""
        return ServerMetadata(self.options.id, VERSION, EXTENSIONS)

    def repository_index(self, ready_only: bool = False) -> list[ModelIndexEntry]:
        """Every model and version there is, with its state and the reason for it."""
        self._repository.look_at_disk()
        return self._registry.index(ready_only)

    def failures(self) -> list[FailedVersion]:
        """The models and versions that could not be loaded."""
        return self._registry.failures()

    def loaded_versions(self) -> list[ModelVersion]:
        """Every version that is loaded, by name and version."""
        return self._registry.all_versions()

    def statistics(self, name: str = "", version: int = -1) -> list[ModelStatistics]:
        """The figures of all READY models, of one, or of one version; raises InferenceError for one that is not."""
        found = [loaded for loaded in self._registry.all_versions() if loaded.is_ready]
        if name:
            found = [loaded for loaded in found if loaded.name == name]
            if not found:
                raise invalid_argument(f"requested model '{name}' is not available")
            if version != -1:
                found = [loaded for loaded in found if loaded.version == version]
                if not found:
                    raise invalid_argument(f"requested model version is not available for model '{name}'")
        return [loaded.scheduler.statistics(loaded.name, str(loaded.version)) for loaded in found]

    def model_figures(self) -> list[ModelFigures]:
        """What the metrics show of each READY version."""
        now_ns = monotonic_ns()
        return [
            ModelFigures(
                name=loaded.name,
                version=str(loaded.version),
                metric_tags=dict(loaded.config.metric_tags),
                statistics=loaded.scheduler.statistics(loaded.name, str(loaded.version)),
                failures=loaded.scheduler.failures(),
                pending=loaded.scheduler.pending(),
                load_seconds=loaded.load_seconds,
                processes=loaded.process_figures(),
                steps=loaded.step_figures(),
                histogram=None if loaded.latencies is None else loaded.latencies.histogram(),
                summaries={} if loaded.latencies is None else loaded.latencies.summaries(now_ns),
                namespace=loaded.namespace,
                byte_budget=None if loaded.byte_budget is None else loaded.byte_budget.figures,
                is_cached=isinstance(loaded.scheduler, CachingScheduler),
            )
            for loaded in self._registry.all_versions()
            if loaded.is_ready
        ]

    def cache_figures(self) -> CacheFigures | None:
        """The figures of the response cache; None without one, or where other servers use it too."""
        return None if self._caching is None else self._caching.figures()


class _Services:
    """What the server does for its backends (ServerServices)."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.submit = server.submit_within
        self.run_now = server.run_now_within

    @property
    def workers(self) -> WorkerPool:
        return self._server.workers

    def is_decoupled(self, model_name: str, model_version: int) -> bool:
        return self._server.model(model_name, model_version).is_decoupled

    def batches_here(self, model_name: str, model_version: int) -> bool:
        return self._server.model(model_name, model_version).batches_here

    def is_model_ready(self, model_name: str, model_version: int) -> bool:
        try:
            return self._server.is_model_ready(model_name, model_version)
        except InferenceError:
            return False

    def load_model(self, model_name: str, parameters: Mapping[str, str | bytes]) -> None:
        self._server.check_serving()
        self._server.load_model(model_name, parameters)

    def unload_model(self, model_name: str, unload_dependents: bool) -> None:
        self._server.check_serving()
        self._server.unload_model(model_name, unload_dependents)

    @property
    def custom_metrics(self) -> CustomMetrics:
        return self._server.custom_metrics
