"""Where the time of requests goes: the phases of one request at a model, and those of an ensemble's steps.

Owns what the phases mean and their sums. Whoever runs a request notes the moments; times are monotonic nanoseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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


# Of an ensemble's request whose path nobody asked for.
UNKNOWN_PATH: Final = Phases()


class Span(Protocol):
    """The moments of one request at one model, which has ended.

    Of a step, `origin` is the one whose answer made it ready, None for the ensemble's own inputs. `is_counted` where
    its whole time has been counted before its request was answered.
    """

    step: int
    received_ns: int
    started_ns: int
    batch_wait_ns: int
    blocked_ns: int
    ended_ns: int
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
    if times.path is UNKNOWN_PATH:
        return Phases(compute=whole_ns)
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

    def figures(self, step: int, model: str, usual: Sequence[int] = (0,) * 7) -> StepFigures:
        """With the sums of what is usual."""
        count, whole, waited, batch_wait, *computed = usual
        phases = (waited - batch_wait, batch_wait, *computed, whole - waited - sum(computed))
        both = [sum(each) for each in zip(self.both, phases, strict=True)]
        return StepFigures(
            step, model, self.count + count, _sum_of(both, self.beside), _sum_of(both, self.path)
        )


def path_phases(received_ns: int, queued_ns: int, last: Span | None, end_ns: int) -> Phases:
    """Where the time of an ensemble's request went, as far as it was waited for."""
    path = [0] * len(Phases._fields)
    until_ns = ended_ns = queued_ns if last is None else last.ended_ns
    span: Span | None = last
    while span is not None:
        _add(path, phases_until(span, until_ns))
        until_ns = span.received_ns
        span = span.origin
    _add(path, Phases(until_ns - queued_ns, 0, queued_ns - received_ns, 0, end_ns - ended_ns))
    return Phases(*path)


class EnsembleTimes:
    """The sums over the requests of one ensemble; whoever calls holds the owner's lock."""

    def __init__(self, model_name: str, step_models: Mapping[int, str]) -> None:
        """`step_models` are the names of the steps' models, by the steps' numbers."""
        self._model_name = model_name
        self._step_models = step_models
        self._steps = {step: _StepCounter() for step in step_models}
        # What is usual, by step: how many spans, their whole time, and of that waiting in all, waiting for a batch,
        # and the three parts of computing.
        self._usual = {step: [0] * 7 for step in step_models}
        self._own = _StepCounter()

    def count(
        self, received_ns: int, queued_ns: int, spans: Collection[Span], last: Span | None, end_ns: int
    ) -> None:
        """Count a request that is answered; `last` is the span whose end ended it, None where there was none.

        Every request of an ensemble comes here: what is usual is counted without a call or an object.
        """
        usual = self._usual
        on_path = 0
        until_ns = ended_ns = queued_ns if last is None else last.ended_ns
        span: Span | None = last
        while span is not None:
            on_path += 1
            times = span.times
            begin_ns = span.received_ns
            if (
                times is None
                or times.path is not None
                or span.blocked_ns
                or span.is_counted
                or span.ended_ns != until_ns
            ):
                on_path -= self._count_unusual(span, until_ns)
            else:
                sums = usual[span.step]
                sums[0] += 1
                sums[1] += until_ns - begin_ns
                sums[2] += span.started_ns - begin_ns
                if span.batch_wait_ns:
                    sums[3] += span.batch_wait_ns
                sums[4] += times.input_ns
                sums[5] += times.infer_ns
                sums[6] += times.output_ns
            until_ns = begin_ns
            span = span.origin
        if on_path != len(spans) and last is not None:
            self._count_beside(spans, last)
        own = self._own
        own.count += 1
        sums = own.both
        sums[0] += until_ns - queued_ns
        sums[2] += queued_ns - received_ns
        sums[4] += end_ns - ended_ns

    def _count_unusual(self, span: Span, until_ns: int) -> bool:
        """Count a span of the path; returns whether its whole time had been counted before."""
        counter = self._steps[span.step]
        was_counted = span.is_counted
        if not was_counted and span.ended_ns == until_ns:
            counter.count += 1
            _add(counter.both, phases_until(span, until_ns))
            return False
        if not was_counted:
            self.count_early((span,))
        _add(counter.path, phases_until(span, until_ns))
        return was_counted

    def _count_beside(self, spans: Iterable[Span], last: Span) -> None:
        """Count the spans that the request did not wait for."""
        on_path = set()
        span: Span | None = last
        while span is not None:
            on_path.add(id(span))
            span = span.origin
        self.count_early(span for span in spans if id(span) not in on_path)

    def count_early(self, spans: Iterable[Span]) -> None:
        """Count steps that nothing waits for, as far as is known: of a stream, which may have no end."""
        for span in spans:
            counter = self._steps[span.step]
            counter.count += 1
            _add(counter.beside, phases_until(span, span.ended_ns))

    def figures(self) -> tuple[StepFigures, ...]:
        """The sums so far, of the ensemble itself and then of each step."""
        return (
            self._own.figures(OWN_STEP, self._model_name),
            *(
                self._steps[step].figures(step, model, self._usual[step])
                for step, model in self._step_models.items()
            ),
        )


def _add(sums: list[int], phases: Phases) -> None:
    sums[0] += phases[0]
    sums[1] += phases[1]
    sums[2] += phases[2]
    sums[3] += phases[3]
    sums[4] += phases[4]
    sums[5] += phases[5]


def _sum_of(first: list[int], second: list[int]) -> Phases:
    return Phases(*map(sum, zip(first, second, strict=True)))
