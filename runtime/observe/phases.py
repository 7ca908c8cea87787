"""Where the time of requests goes: the phases of one request at a model, and those of an ensemble's steps.

Owns what the phases mean and their sums. Whoever runs a request notes the moments; times are monotonic nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from cantata.runtime.observe.statistics import ComputeTimes

# Stands for the step, in the figures of an ensemble, where no step but the ensemble itself was at work.
OWN_STEP: Final = -1


class Phases(NamedTuple):
    """Where the time of one request, or of many together, went; the sum of all is the whole time.

    `queue`: it waited for an instance. `batch_wait`: an instance was free, and waited for the batch to fill.
    `input`: inputs were put together. `compute`: the model ran. `output`: outputs were taken apart. `blocked`: answers
    were there and could not go on: later steps had no room, or a reader was slow, or others were answered first.
    """

    queue: int = 0
    batch_wait: int = 0
    input: int = 0
    compute: int = 0
    output: int = 0
    blocked: int = 0


class Span(Protocol):
    """The moments of one request at one model, which has ended.

    Of a step, `origin` is the one whose answer made it ready, None for the ensemble's own inputs; `until_ns` is set
    where the ensemble's request waited for this step: it is the moment from which it waited for another.
    `is_counted` where its whole time has been counted before its request was answered.
    """

    step: int
    received_ns: int
    started_ns: int
    batch_wait_ns: int
    blocked_ns: int
    ended_ns: int
    until_ns: int
    is_counted: bool
    times: ComputeTimes | None

    @property
    def origin(self) -> Span | None: ...


def phases_until(span: Span, until_ns: int) -> Phases:
    """How the time of a span went, up to some moment within it or after it."""
    received_ns, started_ns, times = span.received_ns, span.started_ns, span.times
    if times is None or not received_ns <= started_ns <= until_ns:
        return Phases(queue=until_ns - received_ns)
    batch_wait = span.batch_wait_ns
    queue = started_ns - received_ns - batch_wait
    compute = times.infer_ns
    left = until_ns - started_ns - times.input_ns - compute - times.output_ns
    if times.path is not None or left < 0:
        return _clipped(span, until_ns - received_ns)
    if span.blocked_ns:
        blocked = min(span.blocked_ns, compute)
        return Phases(queue, batch_wait, times.input_ns, compute - blocked, times.output_ns, left + blocked)
    return Phases(queue, batch_wait, times.input_ns, compute, times.output_ns, left)


def _clipped(span: Span, whole_ns: int) -> Phases:
    """The phases of a nested ensemble, or of a part of a span: one after the other until the time is used up."""
    times = span.times
    assert times is not None
    if times.path is not None:
        parts: Sequence[int] = times.path
    else:
        wait_ns = span.started_ns - span.received_ns
        parts = (
            wait_ns - span.batch_wait_ns,
            span.batch_wait_ns,
            times.input_ns,
            times.infer_ns,
            times.output_ns,
        )
    kept = [0] * len(Phases._fields)
    left = whole_ns
    for index, part in enumerate(parts):
        kept[index] = min(part, left)
        left -= kept[index]
    kept[-1] += left
    return Phases(*kept)


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One step of an ensemble in all requests that were answered; OWN_STEP stands for the ensemble itself.

    `whole` is all the time that was spent at the step. `path` is the part that the ensemble's requests waited for: of
    steps that run side by side, it is in the one that ended last. The `path`s of all steps, and of the ensemble itself,
    add up to the time of its requests.
    """

    step: int
    model: str
    count: int
    whole: Phases
    path: Phases


class _StepCounter:
    """Sums by phase: of spans that were waited for all along, of the others, and of what was waited for of those."""

    __slots__ = ("beside", "both", "count", "path")

    def __init__(self) -> None:
        self.count = 0
        self.both = [0] * len(Phases._fields)
        self.beside = [0] * len(Phases._fields)
        self.path = [0] * len(Phases._fields)

    def figures(self, step: int, model: str) -> StepFigures:
        return StepFigures(
            step, model, self.count, _sum_of(self.both, self.beside), _sum_of(self.both, self.path)
        )


class EnsembleTimes:
    """The sums over the requests of one ensemble; whoever calls holds the owner's lock."""

    def __init__(self, model_name: str, step_models: Mapping[int, str]) -> None:
        """`step_models` are the names of the steps' models, by the steps' numbers."""
        self._model_name = model_name
        self._step_models = step_models
        self._steps = {step: _StepCounter() for step in step_models}
        self._own = _StepCounter()

    def count(
        self, received_ns: int, queued_ns: int, spans: Iterable[Span], last: Span, end_ns: int
    ) -> Phases:
        """Count a request that is answered; `last` is the span whose end ended it. Returns the sum of its path."""
        path = [0] * len(Phases._fields)
        first_ns = self._mark_path(last, path)
        own = Phases(first_ns - queued_ns, 0, queued_ns - received_ns, 0, end_ns - last.ended_ns)
        counter = self._own
        counter.count += 1
        _add(counter.both, own)
        _add(path, own)
        steps = self._steps
        for span in spans:
            counter = steps[span.step]
            counter.count += 1
            phases = phases_until(span, span.ended_ns)
            until_ns = span.until_ns
            if until_ns == span.ended_ns:
                _add(counter.both, phases)
                _add(path, phases)
            else:
                _add(counter.beside, phases)
                if until_ns:
                    phases = phases_until(span, until_ns)
                    _add(counter.path, phases)
                    _add(path, phases)
        return Phases(*path)

    def count_early(self, spans: Iterable[Span]) -> None:
        """Count steps that have ended, of a request that has not: a stream may have no end."""
        for span in spans:
            counter = self._steps[span.step]
            counter.count += 1
            _add(counter.beside, phases_until(span, span.ended_ns))

    def figures(self) -> tuple[StepFigures, ...]:
        """The sums so far, of the ensemble itself and then of each step."""
        return (
            self._own.figures(OWN_STEP, self._model_name),
            *(self._steps[step].figures(step, model) for step, model in self._step_models.items()),
        )

    def _mark_path(self, last: Span, path: list[int]) -> int:
        """Go back over what was waited for; returns when the first of it began."""
        span: Span | None = last
        until_ns = last.ended_ns
        while span is not None:
            if span.is_counted:
                phases = phases_until(span, until_ns)
                _add(self._steps[span.step].path, phases)
                _add(path, phases)
            span.until_ns = until_ns
            until_ns = span.received_ns
            span = span.origin
        return until_ns


def _add(sums: list[int], phases: Phases) -> None:
    queue, batch_wait, input_ns, compute, output, blocked = phases
    sums[0] += queue
    sums[1] += batch_wait
    sums[2] += input_ns
    sums[3] += compute
    sums[4] += output
    sums[5] += blocked


def _sum_of(first: list[int], second: list[int]) -> Phases:
    return Phases(*map(sum, zip(first, second, strict=True)))
