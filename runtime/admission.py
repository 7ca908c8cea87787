"""How many bytes of requests are held, by the server and by each model, and what is refused when it would be too many.

Owns the counting and the refusal. Knows no wire and no queue: front-ends say what a request takes before they read it,
and a request gives it back with its final answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cantata.runtime.errors import invalid_argument, overloaded
from cantata.runtime.observe.snapshots import ByteFigures

if TYPE_CHECKING:
    from cantata.grammars.model_config import ModelConfig
    from cantata.runtime.request import InferenceRequest

# The model parameter that limits what the requests of one model may take.
MAX_QUEUE_BYTES_PARAMETER: Final = "MAX_QUEUE_BYTES"


class ByteBudget:
    """So many bytes, of which requests hold some. Any thread may call. `_lock` guards `_held` and `_shed`.

    Invariant: at most `limit` bytes are held.
    """

    __slots__ = ("_held", "_lock", "_shed", "described", "limit", "on_shed")

    def __init__(self, limit: int, described: str) -> None:
        """`described` says whose budget it is, and what sets it."""
        self.limit = limit
        self.described = described
        self._lock = threading.Lock()
        self._held = 0
        self._shed = 0
        # Told of each refusal, before that is raised.
        self.on_shed: Callable[[], None] | None = None

    def take(self, size: int) -> None:
        """Hold `size` bytes more; raises InferenceError (UNAVAILABLE), and holds none of them, when they do not fit."""
        with self._lock:
            held = self._held
            if held + size <= self.limit:
                self._held = held + size
                return
            self._shed += 1
        if self.on_shed is not None:
            self.on_shed()
        raise overloaded(
            f"Exceeds maximum queue bytes: the request takes {size} bytes, and {held} of the {self.limit} of "
            f"{self.described} are in use"
        )

    def give_back(self, size: int) -> None:
        """Hold `size` bytes less."""
        with self._lock:
            self._held -= size

    @property
    def figures(self) -> ByteFigures:
        """What is held now, and how often a request was refused."""
        with self._lock:
            return ByteFigures(self._held, self.limit, self._shed)


class ByteLease:
    """What one request holds of budgets: `size` bytes of each. Used by one thread at a time; released once for all."""

    __slots__ = ("_budgets", "size")

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self._budgets: tuple[ByteBudget, ...] = ()

    def hold(self, budget: ByteBudget) -> bool:
        """Hold `size` bytes of `budget` too, unless it does already: returns whether it is new. Raises as `take`."""
        if budget in self._budgets:
            return False
        budget.take(self.size)
        self._budgets = (*self._budgets, budget)
        return True

    def let_go(self, budget: ByteBudget) -> None:
        """Give back what is held of one budget."""
        budget.give_back(self.size)
        self._budgets = tuple(other for other in self._budgets if other is not budget)

    def resize(self, size: int) -> None:
        """Hold `size` bytes of each budget from now on; raises as `take`, and holds nothing at all then."""
        more = size - self.size
        if more > 0:
            budgets, self._budgets = self._budgets, ()
            for index, budget in enumerate(budgets):
                try:
                    budget.take(more)
                except Exception:
                    for position, other in enumerate(budgets):
                        other.give_back(size if position < index else self.size)
                    raise
            self._budgets = budgets
        else:
            for budget in self._budgets:
                budget.give_back(-more)
        self.size = size

    def release(self) -> None:
        """Give everything back; nothing happens the second time."""
        budgets, self._budgets = self._budgets, ()
        for budget in budgets:
            budget.give_back(self.size)


def tensor_bytes(request: InferenceRequest) -> int:
    """What a request's tensors take."""
    return sum(tensor.byte_size() for tensor in request.inputs.values())


class Admission:
    """The budgets of one server. `server` is None without `--max-queue-bytes`.

    `is_on` says whether anybody has a budget: where nobody has, nothing needs to be asked.
    """

    def __init__(self, max_queue_bytes: int) -> None:
        self.server: ByteBudget | None = None
        if max_queue_bytes:
            self.server = ByteBudget(max_queue_bytes, "the server (--max-queue-bytes)")
        self.is_on = self.server is not None

    def model_budget(self, config: ModelConfig) -> ByteBudget | None:
        """A new budget for a model whose parameters say so; raises InferenceError for a value that is no size."""
        parameter = config.parameters.get(MAX_QUEUE_BYTES_PARAMETER)
        if parameter is None:
            return None
        text = parameter.string_value
        if not text.isascii() or not text.isdecimal() or int(text) == 0:
            raise invalid_argument(
                f"model '{config.name}', parameter {MAX_QUEUE_BYTES_PARAMETER}: expected a positive number of bytes, "
                f"got '{text}'"
            )
        self.is_on = True
        return ByteBudget(int(text), f"model '{config.name}' (parameter {MAX_QUEUE_BYTES_PARAMETER})")
