"""Which models' answers are kept, and what tells the answers of one load from those of another.

Puts a caching scheduler before a model's own where the configuration and the server both ask for it. Knows nothing of
what the cache is.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Sequence

from cantata.runtime.backends.catalog import sees_tensors_only
from cantata.runtime.caching.cache_threads import CacheThreads
from cantata.runtime.caching.request_key import RequestKey
from cantata.runtime.caching.response_cache import ResponseCache
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.latencies import Latencies
from cantata.runtime.observe.snapshots import CacheFigures
from cantata.runtime.repository.completion import PreparedModel
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.scheduling.caching_rules import CachedScheduler, CachingParts, CachingRules
from cantata.runtime.scheduling.caching_scheduler import CachingScheduler
from cantata.runtime.scheduling.priority_queue import queue_policies
from cantata.runtime.scheduling.response_order import ResponseOrder
from cantata.runtime.scheduling.timer import Timer

_log = logging.getLogger("cantata.repository")


class ModelCaching:
    """The response cache of one server, and its models' use of it. `_lock` guards `_loads`."""

    def __init__(self, cache: ResponseCache, workers: WorkerPool, timer: Timer) -> None:
        self._cache = cache
        self._parts = CachingParts(cache, CacheThreads(), timer, workers)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # How often each model version has been loaded.
        self._loads: Counter[tuple[str, int]] = Counter()

    def start(self) -> None:
        """Make the cache ready; raises InferenceError where it cannot be."""
        self._cache.start()

    def close(self) -> None:
        """Let the cache go; every model must have been closed."""
        self._parts.threads.close()
        self._cache.close()

    def figures(self) -> CacheFigures | None:
        """The figures of the whole cache; None of one that other servers use too."""
        return None if self._cache.is_remote else self._cache.figures()

    def load_identity(
        self, prepared: PreparedModel, version: int, steps: Sequence[ModelVersion] = ()
    ) -> bytes:
        """What no other load of any model has.

        In a cache of several servers: what no other load of this server has, and no server whose model has other files,
        or files of other times.
        """
        if not self._cache.is_remote:
            return b"%d" % next(self._numbers)
        directory = prepared.directory
        with self._lock:
            load = self._loads[directory.name, version]
            self._loads[directory.name, version] += 1
        content = (sorted(directory.fingerprint), directory.config_text, directory.config_json, load)
        digest = hashlib.sha256(b"%a" % (content,))
        for step in steps:
            digest.update(step.load_identity)
        return digest.digest()

    def keeps(self, spec: ModelSpec, prepared: PreparedModel, steps: Sequence[ModelVersion] = ()) -> bool:
        """Whether a model's answers are kept; a configuration that asks for it in vain is pointed out."""
        asked = prepared.config.response_cache
        if asked is None or not asked.enable:
            return False
        reason = ""
        if spec.is_decoupled:
            reason = "a step answers any number of times"
        elif any(map(_has_sequences, steps)):
            reason = "a step's answers depend on the requests before"
        if reason:
            _log.warning("model '%s': its responses are not cached: %s", spec.model_name, reason)
        return not reason

    def before(
        self,
        inner: CachedScheduler,
        spec: ModelSpec,
        prepared: PreparedModel,
        load_identity: bytes,
        steps: Sequence[ModelVersion] = (),
        latencies: Latencies | None = None,
    ) -> CachingScheduler:
        """A scheduler that keeps what `inner` answers, which must not order its answers itself."""
        config = prepared.config
        tensors_only = all(map(_sees_tensors_only, steps)) if steps else sees_tensors_only(config.backend)
        batching = config.dynamic_batching
        rules = CachingRules(
            order=ResponseOrder() if batching is not None and batching.preserve_ordering else None,
            policies=None if batching is None else queue_policies(batching),
            calls_nobody=tensors_only,
            has_own_timeouts=bool(steps),
        )
        key = RequestKey(spec, load_identity, with_parameters=not tensors_only)
        return CachingScheduler(inner, key, self._parts, rules, latencies)


def _has_sequences(version: ModelVersion) -> bool:
    return version.config.sequence_batching is not None or any(map(_has_sequences, version.depends_on))


def _sees_tensors_only(version: ModelVersion) -> bool:
    if version.depends_on:
        return all(map(_sees_tensors_only, version.depends_on))
    return sees_tensors_only(version.config.backend)
