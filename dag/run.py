"""One request on its way through an ensemble: events in, instructions out.

Owns which step runs when, what each is given, what is answered and when it is over. Knows no thread, clock,
lock, model or tensor: values are opaque (None is a null: a tensor that is not there), and so are errors.
Whoever drives it calls one method at a time and carries the instructions out, the answers in the order in
which they came.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from cantata.dag.plan import Delivery, Plan, PlanStep, Stream

V = TypeVar("V")
E = TypeVar("E")

# A slot that no value has reached yet; None is taken by nulls, and by slots whose last use is over.
_UNSET: Final = object()


@dataclass(frozen=True, slots=True)
class SequenceOverride:
    """The sequence that a step's response names, for the readers of its tensors in place of the request's."""

    correlation_id: int | str
    start: bool
    end: bool


class StopReason(enum.Enum):
    """Why a run ended badly of itself, no step having failed."""

    OUTPUT_NOT_SET = enum.auto()
    CANCELLED = enum.auto()


@dataclass(frozen=True, slots=True)
class RunStopped:
    """The error of a run that no step's error explains. `message` names neither ensemble nor request."""

    reason: StopReason
    message: str


class _Iteration:
    """The values of one stream for one of its responses: iteration `number`."""

    __slots__ = ("number", "outputs_missing", "sequences", "slots", "stream", "uses", "waiting")

    def __init__(self, stream: Stream, number: int) -> None:
        self.stream = stream
        self.number = number
        self.slots: list[object] = [_UNSET] * len(stream.uses)
        self.uses = list(stream.uses)
        self.waiting = list(stream.waiting)
        self.outputs_missing = stream.output_count
        # None until a response names a sequence: most never do.
        self.sequences: dict[int, SequenceOverride] | None = None


class RunStep(Generic[V]):
    """Run `step` with `inputs` (nulls are left out); tell the run of every response, naming this very object.

    `inputs` is the reader's own to keep or to change; `step.adaptations` says which of them may change shape.
    """

    __slots__ = ("_has_responded", "_is_finished", "_iteration", "inputs", "sequence", "step")

    def __init__(
        self, step: PlanStep, inputs: dict[str, V], sequence: SequenceOverride | None, iteration: _Iteration
    ) -> None:
        self.step = step
        self.inputs = inputs
        self.sequence = sequence
        self._iteration = iteration
        self._has_responded = False
        self._is_finished = False

    @property
    def iteration(self) -> int:
        """Which response of the decoupled step before it this is for; 0 where there is none."""
        return self._iteration.number

    def __repr__(self) -> str:
        return f"RunStep({self.step.index}, {self.step.model_name!r}, iteration={self.iteration})"


class Respond(Generic[V]):
    """Answer with `outputs` (nulls are left out); `plan.output_adaptations` says which may change shape."""

    __slots__ = ("final", "outputs", "sequence")

    def __init__(self, outputs: dict[str, V], sequence: SequenceOverride | None, final: bool) -> None:
        self.outputs = outputs
        self.sequence = sequence
        self.final = final

    def __repr__(self) -> str:
        return f"Respond({self.outputs!r}, final={self.final})"


@dataclass(frozen=True, slots=True)
class Finish:
    """Answer finally with nothing: every response has been sent."""


@dataclass(frozen=True, slots=True)
class Fail(Generic[E]):
    """Answer finally with `error`: a step's own, or the run's reason."""

    error: E | RunStopped


Instruction: TypeAlias = RunStep[V] | Respond[V] | Finish | Fail[E]

_FINISH: Final = Finish()


class EnsembleRun(Generic[V, E]):
    """One request in flight. `start` once, then one event for each response of each `RunStep`.

    Invariants:
    - exactly one final instruction ever (`Respond` with `final`, `Finish` or `Fail`), the last one, and only
      when no step is in flight;
    - an ensemble that is not decoupled sends one `Respond`, final, or one `Fail`;
    - a step runs at most once an iteration, when all its inputs have a value or a null;
    - after the first error no step runs and nothing is answered until the steps in flight have ended; that
      error is then the answer, whatever the others say;
    - responses leave in the order of their iterations: one made early waits for those before it;
    - a value is let go at its last use.

    A step that is not decoupled is heard once: what it says after its outputs, or after its final, is
    ignored.
    """

    __slots__ = (
        "_completed",
        "_error",
        "_finals",
        "_first",
        "_in_flight",
        "_instructions",
        "_is_cancelled",
        "_iteration_counts",
        "_next_response",
        "_plan",
        "_silent",
    )

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._in_flight = 0
        self._finals = 0
        self._error: E | RunStopped | None = None
        self._is_cancelled = False
        # Iterations that can be answered once those before them are or, without decoupled steps, once no step is
        # in flight. None: one that never will be answered.
        self._completed: dict[int, _Iteration | None] = {}
        self._next_response = 0
        self._iteration_counts = [0] * len(plan.streams)
        self._first = _Iteration(plan.streams[0], 0)
        # Steps that ended without a word; for the explanation of an output that is never set.
        self._silent: tuple[PlanStep, ...] = ()
        self._instructions: list[Instruction[V, E]] = []

    @property
    def is_finished(self) -> bool:
        """Whether the final instruction has been given."""
        return self._finals > 0

    @property
    def is_stopped(self) -> bool:
        """Whether an error has been met: a step that is not dispatched yet need not be, `step_failed` says so."""
        return self._error is not None

    def start(self, inputs: Mapping[str, V]) -> list[Instruction[V, E]]:
        """Begin with the request's tensors; an optional input that is missing becomes a null."""
        self._deliver(self._first, self._plan.inputs, inputs, None)
        return self._settled()

    def step_responded(
        self,
        run_step: RunStep[V],
        outputs: Mapping[str, V] | None,
        final: bool,
        sequence: SequenceOverride | None = None,
    ) -> list[Instruction[V, E]]:
        """A step answered; `outputs` is None for a final that carries nothing."""
        if run_step._is_finished:
            return []
        step = run_step.step
        if outputs is not None and self._error is None:
            if step.is_decoupled:
                number = self._iteration_counts[step.output_stream]
                self._iteration_counts[step.output_stream] = number + 1
                self._deliver(
                    _Iteration(self._plan.streams[step.output_stream], number),
                    step.outputs,
                    outputs,
                    sequence,
                )
            elif not run_step._has_responded:
                run_step._has_responded = True
                self._deliver(run_step._iteration, step.outputs, outputs, sequence)
        if final:
            self._step_ended(run_step)
        return self._settled()

    def step_failed(self, run_step: RunStep[V], error: E, final: bool = True) -> list[Instruction[V, E]]:
        """A step answered with an error, or could not be enqueued."""
        if run_step._is_finished:
            return []
        run_step._has_responded = True
        self._stop(error)
        if final:
            self._step_ended(run_step)
        return self._settled()

    def cancel(self) -> None:
        """Nobody waits any more: noticed before the next step is run. Steps in flight are left to end."""
        self._is_cancelled = True

    def check_invariants(self) -> None:
        """Raise AssertionError where this run contradicts itself."""
        assert self._in_flight >= 0
        assert self._finals <= 1
        assert self._finals == 0 or self._in_flight == 0
        assert not self._instructions
        assert not self._plan.is_decoupled or all(number > self._next_response for number in self._completed)
        if self._error is not None or self._finals:
            assert not self._completed
            assert not self._first.slots
        else:
            spent = [slot for slot, uses in enumerate(self._first.uses) if uses == 0]
            assert all(self._first.slots[slot] is None for slot in spent)

    def _deliver(
        self,
        iteration: _Iteration,
        deliveries: tuple[Delivery, ...],
        values: Mapping[str, V],
        sequence: SequenceOverride | None,
    ) -> None:
        """Put values into their slots, and run each step that has now all it needs."""
        slots = iteration.slots
        waiting = iteration.waiting
        if sequence is not None:
            if iteration.sequences is None:
                iteration.sequences = {}
            iteration.sequences.update((slot, sequence) for _, slot, _, _ in deliveries)
        for name, slot, readers, is_requested in deliveries:
            slots[slot] = values.get(name)
            for place in readers:
                waiting[place] -= 1
                if not waiting[place]:
                    self._run(iteration, iteration.stream.steps[place])
            if is_requested:
                iteration.outputs_missing -= 1
        if not iteration.outputs_missing and iteration.stream.output_count:
            self._complete(iteration)

    def _run(self, iteration: _Iteration, step: PlanStep) -> None:
        if self._is_cancelled:
            self._stop(RunStopped(StopReason.CANCELLED, "the request was cancelled"))
            return
        slots = iteration.slots
        uses = iteration.uses
        sequence = None
        inputs: dict[str, V] = {}
        for name, slot in step.inputs:
            value = slots[slot]
            if value is not None:
                inputs[name] = value  # type: ignore[assignment]
            uses[slot] -= 1
            if not uses[slot]:
                slots[slot] = None
            if iteration.sequences is not None:
                sequence = iteration.sequences.get(slot, sequence)
        self._in_flight += 1
        self._instructions.append(RunStep(step, inputs, sequence, iteration))

    def _complete(self, iteration: _Iteration) -> None:
        """All requested outputs of an iteration are there."""
        if self._error is not None:
            return
        self._completed[iteration.number] = iteration
        if self._plan.is_decoupled:
            self._respond_in_order()

    def _respond_in_order(self) -> None:
        while self._next_response in self._completed:
            iteration = self._completed.pop(self._next_response)
            self._next_response += 1
            if iteration is not None:
                self._instructions.append(self._response(iteration))

    def _response(self, iteration: _Iteration) -> Respond[V]:
        slots = iteration.slots
        sequence = None
        outputs: dict[str, V] = {}
        for name, slot in self._plan.outputs:
            value = slots[slot]
            if value is not None:
                outputs[name] = value  # type: ignore[assignment]
            if iteration.sequences is not None:
                sequence = iteration.sequences.get(slot, sequence)
        iteration.slots = []
        return Respond(outputs, sequence, False)

    def _step_ended(self, run_step: RunStep[V]) -> None:
        run_step._is_finished = True
        self._in_flight -= 1
        if run_step._has_responded or run_step.step.is_decoupled or self._error is not None:
            return
        self._silent = (*self._silent, run_step.step)
        number = run_step._iteration.number
        is_awaited = run_step.step.stream == self._plan.output_stream and number >= self._next_response
        if self._plan.is_decoupled and is_awaited:
            # This iteration will have no response: the later ones need not wait for it.
            self._completed[number] = None
            self._respond_in_order()

    def _stop(self, error: E | RunStopped) -> None:
        """Keep the first error, and let go of what nothing will read any more."""
        if self._error is None:
            self._error = error
            self._completed.clear()
            self._first.slots = []

    def _settled(self) -> list[Instruction[V, E]]:
        """What this event led to, with the ending when nothing is in flight any more."""
        instructions = self._instructions
        self._instructions = []
        if not self._in_flight and not self._finals:
            self._finals = 1
            self._end(instructions)
        return instructions

    def _end(self, instructions: list[Instruction[V, E]]) -> None:
        if self._error is not None:
            instructions.append(Fail(self._error))
            return
        if not self._plan.is_decoupled:
            answer = self._completed.pop(0, None)
            instructions.append(Fail(self._deadlock()) if answer is None else self._response(answer))
        last = instructions[-1] if instructions else None
        if isinstance(last, Respond):
            last.final = True
        elif not isinstance(last, Fail):
            instructions.append(_FINISH)
        self._first.slots = []

    def _deadlock(self) -> RunStopped:
        slots = self._first.slots
        missing = ", ".join(f"'{name}'" for name, slot in self._plan.outputs if slots[slot] is _UNSET)
        silent = ", ".join(f"step {step.index} ('{step.model_name}')" for step in self._silent)
        return RunStopped(
            StopReason.OUTPUT_NOT_SET,
            "unexpected deadlock, at least one output is not set while no more ensemble steps can be made: "
            f"{missing} cannot be made because {silent} ended without a response",
        )
