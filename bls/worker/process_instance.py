"""A model instance that lives in processes, one after the other: what the scheduler sees of it.

Owns starting anew when a process has ended, and the figures of that. A request is never given to a second process:
nobody can know what its model had done for it when the first one ended.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from cantata.bls.worker.worker_process import WorkerProcess
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, unavailable
from cantata.runtime.execution.execution import Execution
from cantata.runtime.observe.snapshots import ProcessFigures
from cantata.runtime.scheduling.timer import Timer

_log = logging.getLogger("cantata.python")

_FIRST_DELAY_NS: Final = 100_000_000
_LONGEST_DELAY_NS: Final = 10_000_000_000
# A model without a limit of its own has this long for its `finalize`.
_FINALIZE_S: Final = 30.0
_UNLOADED: Final = "was ended because its model was unloaded while it started"

# Starts a process; told what to call when it is made, before it starts, and when it has ended.
StartProcess = Callable[[Callable[[WorkerProcess], None], Callable[[InferenceError], None]], WorkerProcess]


class ProcessInstance:
    """See BackendInstance. `_lock` guards everything below it but the process' own state."""

    def __init__(self, name: str, start_process: StartProcess, timer: Timer, timeout_s: float | None) -> None:
        self._name = name
        self._start_process = start_process
        self._timer = timer
        self._stop_timeout_s = _FINALIZE_S if timeout_s is None else timeout_s
        self._lock = threading.Lock()
        self._deaths = 0
        self._restarts = 0
        self._timeouts = 0
        self._process: WorkerProcess | None = None
        # One that does not serve yet.
        self._starting: WorkerProcess | None = None
        self._on_change: Callable[[], None] = _nobody_watches
        # Whether the model has an `is_ready` of its own.
        self.has_readiness_hook = False
        # Why there is no process, where there is none.
        self._end_error = unavailable(f"model instance '{name}' has not started")
        # How many processes in a row have not come to the end of a batch.
        self._failed_starts = 0
        self._is_closing = False
        self._restarting: threading.Thread | None = None

    def start(self) -> None:
        """Start the first process; raises InferenceError when the model cannot be initialized."""
        process = self._start_process(self._made, self._ended)
        self.has_readiness_hook = process.has_readiness_hook
        with self._lock:
            self._process, self._starting = process, None
        self._notice_early_end(process)

    @property
    def makes_blocking_calls(self) -> bool:
        """Every batch waits for the process."""
        return True

    @property
    def leaves_slow_batches(self) -> bool:
        """Whether a thread that serves others may begin a batch: it waits for an instant only, and leaves it then."""
        return True

    @property
    def pid(self) -> int | None:
        """The current process' number, for those who look at it from outside."""
        process = self._process
        return None if process is None else process.pid

    def figures(self) -> ProcessFigures:
        """How its processes fared so far."""
        with self._lock:
            return ProcessFigures(self._deaths, self._restarts, self._timeouts)

    @property
    def is_executing(self) -> bool:
        """See SenderHoldingInstance."""
        process = self._process
        return process is not None and process.is_executing

    def watch(self, on_change: Callable[[], None]) -> None:
        """See RestartingInstance."""
        self._on_change = on_change

    def unavailability(self) -> InferenceError | None:
        """See RestartingInstance."""
        return None if self._process is not None else self._end_error

    def execute(self, execution: Execution) -> bool:
        process = self._process
        if process is None:
            raise unavailable(self._end_error.message)
        return process.execute(execution)

    def is_ready(self) -> bool:
        """What the model's own `is_ready` says; True without one. May take seconds; raises InferenceError."""
        process = self._process
        if process is None:
            return False
        return not process.has_readiness_hook or process.ask_whether_ready()

    def close(self) -> None:
        with self._lock:
            self._is_closing = True
            process, restarting, starting = self._process, self._restarting, self._starting
        if process is not None:
            process.stop(self._stop_timeout_s)
        if starting is not None:
            # It has nothing to finish, and may take for ever to start.
            starting.kill(_UNLOADED)
        if restarting is not None:
            restarting.join()

    def _made(self, process: WorkerProcess) -> None:
        with self._lock:
            self._starting = process
            is_closing = self._is_closing
        if is_closing:
            process.kill(_UNLOADED)

    def _ended(self, error: InferenceError) -> None:
        """A process has ended, asked to or not."""
        with self._lock:
            process, self._process = self._process, None
            if self._is_closing or process is None:
                return
            self._end_error = error
            self._deaths += 1
            self._timeouts += process.has_timed_out
            if process.has_run:
                self._failed_starts = 0
        _log.error("%s", error)
        self._on_change()
        self._restart_later()

    def _notice_early_end(self, process: WorkerProcess) -> None:
        """A process may have ended before it was ours; once is enough, whoever tells."""
        if process.end_error is not None:
            self._ended(process.end_error)

    def _restart_later(self) -> None:
        delay_ns = min(_FIRST_DELAY_NS << min(self._failed_starts, 16), _LONGEST_DELAY_NS)
        self._failed_starts += 1
        self._timer.call_at(monotonic_ns() + delay_ns, self._begin_restart)

    def _begin_restart(self) -> None:
        with self._lock:
            if self._is_closing:
                return
            self._restarting = threading.Thread(
                target=self._restart, name=f"cantata-restart-{self._name}", daemon=True
            )
            self._restarting.start()

    def _restart(self) -> None:
        try:
            process = self._start_process(self._made, self._ended)
        except (InferenceError, OSError) as error:
            # OSError: the machine is out of processes, files or memory for now.
            _log.error("model instance '%s' could not be started again: %s", self._name, error)
            self._note_failed_start(error)
            return
        with self._lock:
            self._starting = None
            is_closing = self._is_closing
            if not is_closing:
                self._process = process
                self._restarts += 1
        if is_closing:
            process.stop(self._stop_timeout_s)
            return
        _log.info("model instance '%s' runs again, in process %d", self._name, process.pid)
        self._on_change()
        self._notice_early_end(process)

    def _note_failed_start(self, error: Exception) -> None:
        with self._lock:
            starting, self._starting = self._starting, None
            if self._is_closing:
                return
            self._deaths += 1
            self._timeouts += starting is not None and starting.has_timed_out
            self._end_error = unavailable(str(error))
        self._restart_later()


def _nobody_watches() -> None:
    """Until the scheduler does."""
