"""Threads that wait for a cache outside the process, or compare large requests: front-ends and models do neither."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_log = logging.getLogger("cantata.cache")

_THREAD_COUNT: Final = 8
# With more questions than this before it, one is better not asked: the model is as quick.
_MOST_WAITING: Final = 1024


class CacheThreads:
    """Runs what was asked in a few threads. `_lock` guards `_waiting`. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._executor = ThreadPoolExecutor(_THREAD_COUNT, "cantata-cache")

    def run(self, work: Callable[[], None]) -> bool:
        """Have `work` run soon; False, and it is not, while too much is waiting or after `close`."""
        with self._lock:
            if self._waiting >= _MOST_WAITING:
                return False
            self._waiting += 1
        try:
            self._executor.submit(self._run, work)
        except RuntimeError:
            self._done()
            return False
        return True

    def close(self) -> None:
        """End the threads once everything has run."""
        self._executor.shutdown()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _log.exception("a question to the response cache failed")
        finally:
            self._done()

    def _done(self) -> None:
        with self._lock:
            self._waiting -= 1
