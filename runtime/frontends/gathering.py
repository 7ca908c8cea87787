"""When a front-end writes the answers of models that run one after the other on its thread: a few at a time.

A write costs as much as a small model, and wakes a client, which takes from the models that run next. Decides the
moment only; whoever runs the models writes what is left at their end, and before it waits.
"""

from __future__ import annotations

from typing import Final

from cantata.runtime.clock import monotonic_ns

# Answers gather for so long; the last of them then waits for the model that runs, too, which is a quick one.
_GATHERED_NS: Final = 1_500_000


class Gathering:
    """One front-end's; its thread's own."""

    __slots__ = ("_written_ns",)

    def __init__(self) -> None:
        self._written_ns = 0

    def is_over(self) -> bool:
        """Whether the answers at hand are to be written now; the next ones gather from then on."""
        now_ns = monotonic_ns()
        if now_ns - self._written_ns < _GATHERED_NS:
            return False
        self._written_ns = now_ns
        return True
