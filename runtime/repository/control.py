"""Who says which models are loaded, and the thread that looks for changes where nobody does."""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Sequence

_log = logging.getLogger("cantata.repository")


class ModelControlMode(enum.Enum):
    """Who says what is loaded (reference, section 6.12)."""

    NONE = "none"
    EXPLICIT = "explicit"
    POLL = "poll"


def check_startup_models(mode: ModelControlMode, names: Sequence[str]) -> None:
    """Raise ValueError where the models that are to be loaded from the start contradict the mode, or each other."""
    if names and mode is not ModelControlMode.EXPLICIT:
        raise ValueError(
            "Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well."
        )
    if "*" in names and len(names) > 1:
        raise ValueError("Wildcard model name '*' must be the ONLY startup model if specified at all.")


class Poller:
    """Calls `poll` every `interval_s` seconds, on a thread of its own, until closed."""

    def __init__(self, poll: Callable[[], None], interval_s: float) -> None:
        self._poll = poll
        self._interval_s = interval_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="cantata-poll", daemon=True)

    def start(self) -> None:
        """Begin to wait for the first time."""
        self._thread.start()

    def close(self) -> None:
        """Stop, after the poll that may be going on."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        while not self._closing.wait(self._interval_s):
            try:
                self._poll()
            except Exception:
                _log.exception("the model repositories could not be looked at")
