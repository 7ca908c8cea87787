"""One model instance as work for a thread: running a batch in it, and whether it is quick enough to run anywhere.

Owns the containment of what a model raises and the trust that a model earns. Knows no queue: its driver does.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from cantata.runtime.backends.backend import BackendInstance
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.execution.containment import run_contained
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.worker_pool import serves_others, watch_here

_log = logging.getLogger("cantata.scheduler")

# An execution below this is quick; one that takes longer holds up whoever else its thread serves.
_QUICK_NS = 800_000
# One that takes this long is slow beyond doubt: below it, the machine may have been busy with something else.
_SLOW_NS = 5_000_000
# A quick execution earns one point of trust, up to the most; a slow one costs several. With enough, it is quick.
_MOST_TRUST = 32
_TRUSTED = 8
_COST_OF_SLOWNESS = 4
# What it costs a model that calls others to be slow beyond doubt: eight times as much each time, up to the most. It is
# slow when they are, now and then perhaps, and each time holds up others. It is forgiven slowly, too: that the machine
# stood still for a moment is no reason to run the model elsewhere for long.
_FIRST_DISTRUST = 56
_MOST_DISTRUST = 28_672
_DISTRUST_FACTOR = 8


class InstanceDriver(Protocol):
    """Whose instances they are."""

    def run_instance(self, instance: ScheduledInstance) -> None:
        """Run one batch in a reserved instance, and see what comes next. Never raises."""


class ScheduledInstance:
    """One instance of a model version as work for a thread. It is reserved from dispatch until it is idle again."""

    __slots__ = (
        "_blocks_for_calls_only",
        "_distrust",
        "_may_block",
        "_quick_runs",
        "_scheduler",
        "_trust",
        "backend_instance",
        "free_ns",
        "goes_on",
        "is_away",
        "is_quick",
        "is_quick_alone",
        "is_reserved",
        "leaves_slow_batches",
        "left",
        "may_wait",
        "reserved_ns",
    )

    def __init__(self, scheduler: InstanceDriver, backend_instance: BackendInstance) -> None:
        self._scheduler = scheduler
        self.backend_instance = backend_instance
        self.is_quick = False
        self.is_quick_alone = False
        # Both under the scheduler's lock. An instance that is away cannot execute until it is back.
        self.is_reserved = False
        self.is_away = False
        # Since when it, or another, was free when it was reserved; and when that was.
        self.free_ns = 0
        self.reserved_ns = 0
        # Set, for one that is to be closed while others serve, when it runs no more; None for all others.
        self.left: threading.Event | None = None
        # Whether it has ever gone on with a batch in the background.
        self.goes_on = False
        self._trust = 0
        self._distrust = _FIRST_DISTRUST
        # With full trust, since it was last slow beyond doubt, or forgiven; counted only while there is more distrust.
        self._quick_runs = 0
        # Models that wait for others say so; those of other backends never do.
        self._may_block = hasattr(backend_instance, "makes_blocking_calls")
        # Those that leave a batch to another thread, where it is not over in an instant, hold up nobody either.
        self.leaves_slow_batches = getattr(backend_instance, "leaves_slow_batches", False)
        self.may_wait = self._may_block and not self.leaves_slow_batches
        self._blocks_for_calls_only = self.leaves_slow_batches or getattr(
            backend_instance, "blocks_for_calls_only", False
        )

    def run(self) -> None:
        """Take a batch and run it; the thread that calls this owns the instance meanwhile."""
        self._scheduler.run_instance(self)

    def execute(self, execution: Execution) -> bool:
        """Run a batch as BackendInstance.execute says; what it raises fails the requests that are not answered yet."""
        if self.leaves_slow_batches:
            execution.may_be_left = serves_others()
            execution.watch = watch_here()
        is_over = run_contained(self.backend_instance.execute, execution)
        # Waiting for a process is nothing that keeps a front-end from beginning the next batch: it would not wait.
        waited_ns = 0 if execution.keeps_instance else execution.waited_ns
        self.kept_thread_for(monotonic_ns() - execution.start_ns - waited_ns)
        if not is_over and not execution.keeps_instance:
            self.goes_on = True
        return is_over

    def close(self, model_name: str) -> None:
        """Close the backend's instance; a failure is logged and keeps no other from being closed."""
        try:
            self.backend_instance.close()
        except Exception:
            _log.exception("an instance of model '%s' could not be closed", model_name)

    def went_on(self, execution: Execution) -> None:
        """Somebody has gone on with a batch that was left, and ended it."""
        # Where its process has not answered, nobody knows what the end of a batch costs.
        if execution.resumed_ns:
            self.kept_thread_for(monotonic_ns() - execution.resumed_ns)

    def kept_thread_for(self, duration_ns: int) -> None:
        """Learn from one execution, or from the end of one that was left, whether the instance is quick."""
        blocks = self._may_block and self.backend_instance.makes_blocking_calls  # type: ignore[attr-defined]
        trust = self._trust
        if blocks and not self._blocks_for_calls_only:
            trust = 0
        elif duration_ns < _QUICK_NS:
            if trust < _MOST_TRUST:
                trust += 1
            elif self._distrust > _FIRST_DISTRUST:
                self._forgive()
        elif duration_ns < _SLOW_NS:
            trust -= _COST_OF_SLOWNESS if trust > 0 else 0
        elif blocks:
            trust = -self._distrust
            self._distrust = min(self._distrust * _DISTRUST_FACTOR, _MOST_DISTRUST)
            self._quick_runs = 0
        else:
            trust = 0
        self._trust = trust
        self.is_quick = trust >= _TRUSTED and not blocks
        self.is_quick_alone = trust >= _TRUSTED and blocks

    def _forgive(self) -> None:
        self._quick_runs += 1
        if self._quick_runs >= self._distrust * _DISTRUST_FACTOR:
            self._quick_runs = 0
            self._distrust //= _DISTRUST_FACTOR
