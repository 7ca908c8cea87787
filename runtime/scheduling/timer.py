"""One thread that calls back at given times: for batches that wait to fill, and restarts that wait to be tried.

Knows nothing of what it calls. Callbacks must be quick; one that raises is logged and keeps no other from being
called.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from typing import Final

from cantata.runtime.clock import monotonic_ns

_log = logging.getLogger("cantata.scheduler")

# Conditions cannot wait for as long as a request may say; after this long it is looked at again.
_LONGEST_WAIT_S: Final = 3600.0


class Timer:
    """Calls functions at times on the monotonic clock. `_condition` guards `_heap` and `_is_closed`.

    The thread is started by the first `call_at`: a server without delays never has it.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> None:
        """Call `callback` once, at `time_ns` or soon after; never after `close`."""
        with self._condition:
            if self._is_closed:
                return
            heapq.heappush(self._heap, (time_ns, next(self._order), callback))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="cantata-timer", daemon=True)
                self._thread.start()
            elif self._heap[0][0] == time_ns:
                self._condition.notify()

    def close(self) -> None:
        """Forget what is still to be called, and end the thread."""
        with self._condition:
            self._is_closed = True
            self._heap.clear()
            self._condition.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _serve(self) -> None:
        while True:
            with self._condition:
                while not self._is_closed and (not self._heap or self._heap[0][0] > monotonic_ns()):
                    wait_s = (self._heap[0][0] - monotonic_ns()) / 1e9 if self._heap else _LONGEST_WAIT_S
                    self._condition.wait(min(wait_s, _LONGEST_WAIT_S))
                if self._is_closed:
                    return
                callback = heapq.heappop(self._heap)[2]
            try:
                callback()
            except Exception:
                _log.exception("what was to be done at a certain time failed")
