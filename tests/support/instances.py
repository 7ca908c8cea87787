"""Model instances for tests: ones that answer at once, and ones whose batches the test ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from cantata.runtime.errors import InferenceError, unavailable
from cantata.runtime.execution.execution import Execution
from cantata.runtime.response import InferenceResponse


def echo(execution: Execution) -> None:
    """Answer each request of a batch with its own input."""
    for index, request in enumerate(execution.requests):
        execution.responses[index] = InferenceResponse(
            "identity", 1, request.id, {"OUTPUT": next(iter(request.inputs.values()))}
        )


class InstantInstance:
    """Runs `behaviour` for each batch and remembers the batches."""

    def __init__(self, behaviour: Callable[[Execution], None] = echo) -> None:
        self._behaviour = behaviour
        self.batches: list[list[str]] = []
        self.threads: list[str] = []
        self.is_closed = False

    def execute(self, execution: Execution) -> bool:
        self.batches.append([request.id for request in execution.requests])
        self.threads.append(threading.current_thread().name)
        self._behaviour(execution)
        return True

    def close(self) -> None:
        self.is_closed = True


class ManualInstance:
    """Each batch waits in `running` until the test calls `finish` for it."""

    def __init__(self) -> None:
        self.running: SimpleQueue[Execution] = SimpleQueue()
        self._permits = threading.Semaphore(0)
        self.batches: list[list[str]] = []

    def execute(self, execution: Execution) -> bool:
        self.batches.append([request.id for request in execution.requests])
        self.running.put(execution)
        self._permits.acquire()
        echo(execution)
        return True

    def wait_for_batch(self) -> Execution:
        """The next batch that has begun to run."""
        return self.running.get(timeout=10)

    def finish(self) -> None:
        """Let one batch end."""
        self._permits.release()

    def close(self) -> None:
        """Nothing to release."""


class BackgroundInstance:
    """Leaves every batch running, as a model with `async def execute` does; the test finishes it."""

    def __init__(self) -> None:
        self.running: list[Execution] = []

    def execute(self, execution: Execution) -> bool:
        self.running.append(execution)
        return False

    def close(self) -> None:
        """Nothing to release."""


class RestartingInstance(InstantInstance):
    """Goes away and comes back when the test says so (backend.RestartingInstance)."""

    def __init__(self) -> None:
        super().__init__()
        self._on_change: Callable[[], None] | None = None
        self._error: InferenceError | None = None

    def watch(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    def unavailability(self) -> InferenceError | None:
        return self._error

    def go_away(self) -> None:
        self._change(unavailable("its process has ended"))

    def come_back(self) -> None:
        self._change(None)

    def _change(self, error: InferenceError | None) -> None:
        self._error = error
        if self._on_change is not None:
            self._on_change()


class LeavingInstance:
    """Leaves each batch to another thread, as a process' does where it is not over in an instant; the test ends it."""

    leaves_slow_batches = True
    makes_blocking_calls = True

    def __init__(self) -> None:
        self.left: SimpleQueue[Execution] = SimpleQueue()
        self.batches: list[list[str]] = []

    def execute(self, execution: Execution) -> bool:
        self.batches.append([request.id for request in execution.requests])
        execution.keeps_instance = True
        self.left.put(execution)
        return False

    def finish(self) -> None:
        """End one batch, as soon as there is one."""
        execution = self.left.get(timeout=10)
        echo(execution)
        execution.finish()

    def close(self) -> None:
        """Nothing to release."""
