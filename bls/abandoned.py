"""Where promises go that a model has dropped: a sender without a final response, an iterator left half read.

The garbage collector may find them on any thread, under any lock, so it only puts them into a queue here, and a
thread of its own ends them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

_log = logging.getLogger("cantata.python")


class Reaper:
    """Runs what is left to do for dropped objects. `add` may be called from a weak reference's callback."""

    def __init__(self) -> None:
        # SimpleQueue.put is re-entrant: a garbage collection inside it may call it again.
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # Guards `_thread`: models are loaded by several threads.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs already."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cantata-abandoned", daemon=True)
                self._thread.start()

    def add(self, ending: Callable[[], None]) -> None:
        """Have `ending` called soon, by the reaper's thread."""
        self._queue.put(ending)

    def close(self) -> None:
        """End the thread, after what is queued."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        while (ending := self._queue.get()) is not None:
            try:
                ending()
            except Exception:
                _log.exception("an abandoned request could not be ended")
