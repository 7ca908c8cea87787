"""Giving memory back to the system while the server's budget of bytes has requests refused; a model's does not.

Requests that come and go in all sizes leave holes between those that stay, which the C library keeps for later: the
process would take several times what its budget of bytes says. Owns the thread that has the holes given back. Knows no
request.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Final

# At most so often: what is given back must be fetched again when it is needed.
_INTERVAL_S: Final = 1.0


def memory_return() -> Callable[[], object] | None:
    """What gives back the memory that is free; None where the C library has no such function."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return lambda: trim(0)


class MemoryReturn:
    """Gives free memory back from time to time after `note` has been called. `start` and `close` are called once."""

    def __init__(self, give_back: Callable[[], object], interval_s: float = _INTERVAL_S) -> None:
        self._give_back = give_back
        self._interval_s = interval_s
        self._is_wanted = threading.Event()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="cantata-memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def note(self) -> None:
        """There is no room; any thread."""
        self._is_wanted.set()

    def close(self) -> None:
        self._is_closing.set()
        self._is_wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        while True:
            self._is_wanted.wait()
            if self._is_closing.wait(self._interval_s):
                return
            # First: what is noted from here on leads to another round.
            self._is_wanted.clear()
            self._give_back()
