"""Unloading: model versions and instances that no longer serve finish what they accepted, and are closed.

Owns the waiting and the order: an ensemble is closed before the models that its steps call, and a model only when no
ensemble holds it any more.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.repository.model_version import ModelState, ModelVersion

_log = logging.getLogger("cantata.repository")

UNLOADED = "unloaded"
# A model that is unloaded may hold a request's response sender without using it for this long.
_PATIENCE_S: Final = 30.0


class Retirement:
    """Closes versions that were replaced or unloaded. `_lock` guards its attributes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # How many ensembles that are not closed yet call each version.
        self._holders: Counter[ModelVersion] = Counter()
        # Versions that are to be closed when nobody holds them.
        self._leaving: set[ModelVersion] = set()
        # Versions whose requests are waited for, each by a thread; whoever takes one out of here closes it.
        self._draining: set[ModelVersion] = set()
        self._threads: set[threading.Thread] = set()

    def hold(self, versions: Iterable[ModelVersion]) -> None:
        """Note what the ensembles among newly loaded `versions` call."""
        with self._lock:
            for version in versions:
                self._holders.update(version.depends_on)

    def retire(self, versions: Iterable[ModelVersion]) -> None:
        """Let UNLOADING versions go, in the background: they answer the requests that they have, and are closed."""
        with self._lock:
            self._leaving.update(versions)
            free = self._take_free()
        self._start(free)

    def end_later(self, endings: Iterable[Callable[[], None]]) -> None:
        """Run each in the background; all of them end by themselves, or when their model does."""
        for ending in endings:
            self._run(partial(self._end, ending), "cantata-instances")

    def discard(self, versions: Iterable[ModelVersion]) -> None:
        """Close versions that never served."""
        for version in versions:
            _close(version)

    def close_all(self, versions: Sequence[ModelVersion], deadline_ns: int) -> bool:
        """Close `versions` and all that are still leaving; returns False when requests were left unanswered."""
        with self._lock:
            # Those that an ensemble still held go with it.
            remaining = [*versions, *self._leaving]
            self._leaving.clear()
            threads = list(self._threads)
        all_ended = _wait_until_idle(remaining, deadline_ns)
        for version in remaining:
            version.state = ModelState.UNLOADING
            version.scheduler.stop()
        for thread in threads:
            thread.join(max(0.0, (deadline_ns - monotonic_ns()) / 1e9))
        with self._lock:
            stuck, self._draining = self._draining, set()
        # One whose thread has not begun may have nothing left to wait for.
        all_ended = all_ended and _wait_until_idle(list(stuck), deadline_ns)
        remaining += stuck
        # An ensemble goes before the models that its steps call.
        for version in sorted(remaining, key=_depth, reverse=True):
            _close(version)
        return all_ended

    def _take_free(self) -> list[ModelVersion]:
        """The leaving versions that nobody holds, to be drained from now on; the caller holds the lock."""
        free = [version for version in self._leaving if not self._holders[version]]
        self._leaving.difference_update(free)
        self._draining.update(free)
        return free

    def _start(self, versions: list[ModelVersion]) -> None:
        for version in versions:
            self._run(partial(self._drain, version), f"cantata-unload-{version.name}")

    def _run(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        with self._lock:
            thread.start()
            self._threads.add(thread)

    def _end(self, ending: Callable[[], None]) -> None:
        try:
            ending()
        except Exception:
            _log.exception("instances could not be closed")
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _drain(self, version: ModelVersion) -> None:
        version.scheduler.stop()
        self._wait_for_answers(version)
        with self._lock:
            is_closed = version not in self._draining
            self._draining.discard(version)
        if not is_closed:
            _close(version)
        with self._lock:
            self._holders.subtract(version.depends_on)
            del self._holders[version]
            free = self._take_free()
            self._threads.discard(threading.current_thread())
        self._start(free)

    def _wait_for_answers(self, version: ModelVersion) -> None:
        """Until every accepted request is answered, or nothing has been for long and nothing is executed any more.

        What is left then are requests whose response senders the model holds; closing it fails them.
        """
        before = None
        while not version.scheduler.wait_until_idle(_PATIENCE_S):
            now = version.scheduler.statistics(version.name, str(version.version))
            instances = version.instances
            if now == before and instances is not None and instances.only_hold_senders:
                _log.warning(
                    "model '%s' version %d is unloaded with %d requests that it does not answer",
                    version.name,
                    version.version,
                    version.scheduler.in_flight,
                )
                return
            before = now


def _close(version: ModelVersion) -> None:
    try:
        version.close()
    except Exception:
        _log.exception("model '%s' version %d could not be closed", version.name, version.version)
    version.state = ModelState.UNAVAILABLE
    version.reason = UNLOADED
    _log.info("model '%s' version %d is unloaded", version.name, version.version)


def _depth(version: ModelVersion) -> int:
    """How many levels of ensembles stand on each other below this version."""
    return 1 + max((_depth(needed) for needed in version.depends_on), default=0)


def _wait_until_idle(versions: Sequence[ModelVersion], deadline_ns: int) -> bool:
    """Wait until no version has a request in flight, all at once: one model's requests call on others."""
    while any(version.scheduler.in_flight for version in versions):
        for version in versions:
            left_s = (deadline_ns - monotonic_ns()) / 1e9
            if left_s <= 0 or not version.scheduler.wait_until_idle(left_s):
                return False
    return True
