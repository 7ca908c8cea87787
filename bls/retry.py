"""When a failed call is made again: `bls.Retry`.

Owns the policy and its budget. Knows nothing of calls.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from cantata.bls.call_errors import Code

# How many retries a budget allows before any call has succeeded, and at most saves up.
_MOST_SAVED = 10.0


class Retry:
    """Make a call again when it fails with one of the codes `on`, up to `attempts` times in all.

    `budget` bounds what retries add to the load of a model that is in trouble: the retries of all calls that share
    this object are at most that fraction of the calls, after the first ten. Before each retry there is a pause:
    `delay` seconds, doubled each time, and shortened by chance by up to a half.
    """

    __slots__ = ("_saved", "attempts", "budget", "delay", "on")

    def __init__(
        self,
        on: Collection[Code] = (Code.UNAVAILABLE,),
        *,
        attempts: int = 3,
        budget: float = 0.2,
        delay: float = 0.01,
    ) -> None:
        if attempts < 1 or budget < 0 or delay < 0:
            raise ValueError(f"attempts {attempts}, budget {budget}, delay {delay}: at least 1, 0 and 0")
        self.on = frozenset(on)
        self.attempts = attempts
        self.budget = budget
        self.delay = delay
        self._saved = _MOST_SAVED

    def called(self) -> None:
        """A call is made for the first time: it pays into the budget."""
        self._saved = min(_MOST_SAVED, self._saved + self.budget)

    def allows(self, attempt: int, code: Code) -> bool:
        """Whether attempt number `attempt` (1 is the first) that failed with `code` is followed by another."""
        if attempt >= self.attempts or code not in self.on or self._saved < 1:
            return False
        self._saved -= 1
        return True

    def pause(self, attempt: int) -> float:
        """Seconds to wait after that attempt."""
        return float(self.delay * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
