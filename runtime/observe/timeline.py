"""A request's own timeline in its response: where its time went, step by step and call by call.

Owns the parameter that asks for it and the document that answers. A model's parts add up to its whole time; of an
ensemble, `own_us` is the time in which none of its steps ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from cantata.runtime.observe.trace import RequestTrace
    from cantata.runtime.request import InferenceRequest
    from cantata.runtime.response import InferenceResponse

# The request's parameter (true), and the response's (the document).
TIMELINE: Final = "cantata_timeline"


class Timeline:
    """What one request's trace leads to: a parameter of its final response. See TraceSink."""

    def __init__(self) -> None:
        # By the parent's number; a call that has not ended when the response leaves is missing.
        self._children: dict[int, list[tuple[RequestTrace, InferenceRequest]]] = {}

    def answered(self, trace: RequestTrace, request: InferenceRequest, response: InferenceResponse) -> None:
        """Add the timeline to a final response that is about to be sent."""
        document = self._entry(trace, request, request.received_ns)
        # A copy: a response's parameters may be the model's own.
        response.parameters = {**(response.parameters or {}), TIMELINE: orjson.dumps(document).decode()}

    def completed(self, trace: RequestTrace, request: InferenceRequest) -> None:
        """A step or a call has ended."""
        if trace.parent is not None:
            self._children.setdefault(trace.parent.id, []).append((trace, request))

    def _entry(self, trace: RequestTrace, request: InferenceRequest, origin_ns: int) -> dict[str, Any]:
        end_ns = trace.answered_ns
        entry: dict[str, Any] = {
            "model": request.model_name,
            "version": str(request.model_version),
            "start_us": _us(request.received_ns - origin_ns),
            "total_us": _us(end_ns - request.received_ns),
        }
        children = sorted(self._children.get(trace.id, ()), key=lambda child: child[1].received_ns)
        inner = [self._entry(*child, origin_ns) for child in children]
        if trace.is_ensemble:
            covered = _covered_ns([(child.received_ns, each.answered_ns) for each, child in children])
            entry |= {"own_us": _us(end_ns - request.received_ns - covered), "steps": inner}
            return entry
        entry |= _parts(request, end_ns)
        if inner:
            entry["calls"] = inner
        return entry


def _parts(request: InferenceRequest, end_ns: int) -> dict[str, float]:
    """The parts of a request that one model answered, or refused: all that it went through."""
    queued_ns = request.queued_ns or end_ns
    started_ns = request.started_ns or end_ns
    parts = {
        "receive_us": _us(queued_ns - request.received_ns),
        "queue_us": _us(started_ns - queued_ns),
    }
    times = request.times
    if times is not None:
        computed_ns = times.input_ns + times.infer_ns + times.output_ns
        parts |= {
            "compute_input_us": _us(times.input_ns),
            "compute_infer_us": _us(times.infer_ns),
            "compute_output_us": _us(times.output_ns),
            "respond_us": _us(end_ns - started_ns - computed_ns),
        }
    return parts


def _covered_ns(spans: list[tuple[int, int]]) -> int:
    """How long at least one of the spans, which are in the order of their starts, lasted."""
    covered = 0
    until = 0
    for start, end in spans:
        covered += max(0, end - max(start, until))
        until = max(until, end)
    return covered


def _us(ns: int) -> float:
    return ns / 1000
