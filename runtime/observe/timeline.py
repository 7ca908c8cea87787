"""A request's own timeline in its response: where its time went, step by step and call by call.

Owns the parameter that asks for it and the document that answers (docs/metrics.md). What the phases mean is said in
`phases.py`; they add up to the whole time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from cantata.runtime.observe.phases import UNKNOWN_PATH, Phases

if TYPE_CHECKING:
    from cantata.runtime.observe.trace import RequestTrace
    from cantata.runtime.request import InferenceRequest
    from cantata.runtime.response import InferenceResponse, ParameterValue

# The request's parameter (true), and the response's (the document).
TIMELINE: Final = "cantata_timeline"


def without_timeline(
    parameters: dict[str, ParameterValue] | None,
) -> dict[str, ParameterValue] | None:
    """Parameters but for the timeline's, which is of one request alone."""
    if parameters is None or TIMELINE not in parameters:
        return parameters
    return {name: value for name, value in parameters.items() if name != TIMELINE} or None


class Timeline:
    """What one request's trace leads to: a parameter of its responses. See TraceSink.

    A response that is not the last has what has happened so far.
    """

    def __init__(self) -> None:
        # By the parent's number; a call that has not ended when the response leaves is missing.
        self._children: dict[int, list[tuple[RequestTrace, InferenceRequest]]] = {}

    def answered(self, trace: RequestTrace, request: InferenceRequest, response: InferenceResponse) -> None:
        """Add the timeline to a response that is about to be sent."""
        document = self._entry(trace, request, request.received_ns)
        # A copy: a response's parameters may be the model's own.
        response.parameters = {**(response.parameters or {}), TIMELINE: orjson.dumps(document).decode()}

    def completed(self, trace: RequestTrace, request: InferenceRequest) -> None:
        """A step or a call has ended."""
        if trace.parent is not None:
            self._children.setdefault(trace.parent.id, []).append((trace, request))

    def _entry(self, trace: RequestTrace, request: InferenceRequest, origin_ns: int) -> dict[str, Any]:
        end_ns = trace.answered_ns
        entry: dict[str, Any] = {} if trace.step is None else {"step": trace.step}
        entry |= {
            "model": request.model_name,
            "version": str(request.model_version),
            "start_us": _us(request.received_ns - origin_ns),
            "total_us": _us(end_ns - request.received_ns),
            "phases_us": _phases(trace, request, end_ns),
        }
        if request.times is not None and request.times.batch_size:
            entry["batch_size"] = request.times.batch_size
        if trace.error is not None:
            entry["error"] = trace.error.message
        children = sorted(
            self._children.get(trace.id, ()), key=lambda child: (child[1].received_ns, child[0].step or 0)
        )
        inner = [self._entry(*child, origin_ns) for child in children]
        if trace.is_ensemble:
            entry["steps"] = inner
        elif inner:
            entry["calls"] = inner
        return entry


def _phases(trace: RequestTrace, request: InferenceRequest, end_ns: int) -> dict[str, float]:
    """The phases by name, in microseconds, from when the server had all of the request."""
    received_ns = request.received_ns
    queued_ns = request.queued_ns or end_ns
    if trace.is_ensemble:
        phases = _ensemble_phases(request, queued_ns, end_ns)
    else:
        phases = _model_phases(request, queued_ns, end_ns)
    named = {"receive": _us(queued_ns - received_ns)}
    return named | {name: _us(ns) for name, ns in zip(Phases._fields, phases, strict=True)}


def _ensemble_phases(request: InferenceRequest, queued_ns: int, end_ns: int) -> Phases:
    """Those of the steps that it waited for, one after the other."""
    path = None if request.times is None else request.times.path
    if path is None or path is UNKNOWN_PATH:
        # A stream that goes on: which of its steps it waits for is known at its end.
        return Phases(compute=end_ns - queued_ns)
    # Its own input is what is told as `receive`.
    own_ns = queued_ns - request.received_ns
    rest_ns = end_ns - request.received_ns - sum(path)
    return path._replace(input=path.input - own_ns, output=path.output + rest_ns)


def _model_phases(request: InferenceRequest, queued_ns: int, end_ns: int) -> Phases:
    started_ns, times = request.started_ns, request.times
    if not queued_ns <= started_ns <= end_ns:
        return Phases(queue=end_ns - queued_ns)
    batch_wait = request.batch_wait_ns
    queue = started_ns - queued_ns - batch_wait
    # A step that streams knows for how long it was held back.
    held_ns: int = getattr(request.sender, "blocked_ns", 0)
    if times is None:
        compute = end_ns - started_ns
        held_ns = min(held_ns, compute)
        return Phases(queue, batch_wait, compute=compute - held_ns, blocked=held_ns)
    held_ns = min(held_ns, times.infer_ns)
    rest_ns = end_ns - started_ns - times.input_ns - times.infer_ns - times.output_ns
    return Phases(
        queue, batch_wait, times.input_ns, times.infer_ns - held_ns, times.output_ns, rest_ns + held_ns
    )


def _us(ns: int) -> float:
    return ns / 1000
