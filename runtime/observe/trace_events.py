"""A traced request as the objects of a trace file (reference, section 10).

Owns their form and the names of the moments. Knows no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias, cast

from cantata.runtime.datatypes import DataType
from cantata.runtime.observe.trace_file import Event
from cantata.runtime.tensor import Tensor

if TYPE_CHECKING:
    from cantata.runtime.observe.trace import RequestTrace
    from cantata.runtime.request import InferenceRequest

# What happened, and when.
Moment: TypeAlias = tuple[str, int]


def identity_event(trace: RequestTrace, request: InferenceRequest) -> Event:
    """What was asked of whom."""
    event: Event = {"id": trace.id, "model_name": request.model_name, "model_version": request.model_version}
    if request.id:
        event["request_id"] = request.id
    if trace.parent is not None:
        event["parent_id"] = trace.parent.id
    return event


def moment_events(trace: RequestTrace, request: InferenceRequest) -> Iterator[Event]:
    """All that is known of a request that has ended."""
    moments = [*arrival(trace, request), *queueing(trace, request), *computing(trace, request)]
    for name, ns in (*moments, *departure(trace), ("REQUEST_END", trace.ended_ns)):
        yield {"id": trace.id, "timestamps": [{"name": name, "ns": ns}]}


def tensor_event(trace: RequestTrace, activity: str, name: str, tensor: Tensor) -> Event:
    """A tensor with all its elements."""
    elements = tensor.array.reshape(-1).tolist()
    if tensor.datatype is DataType.BYTES:
        elements = [cast(bytes, element).decode("utf-8", "replace") for element in elements]
    return {
        "id": trace.id,
        "activity": activity,
        "tensor": {
            "name": name,
            "data": ",".join(_text(element) for element in elements),
            "shape": ",".join(map(str, tensor.shape)),
            "dtype": tensor.datatype.name,
        },
    }


def arrival(trace: RequestTrace, request: InferenceRequest) -> list[Moment]:
    """What a front-end did before the server had the request; nothing for a request from within."""
    if trace.stages is None:
        return []
    received = trace.stages[0]
    return [(f"{received}_START", request.received_ns), (f"{received}_END", trace.begun_ns)]


def queueing(trace: RequestTrace, request: InferenceRequest) -> list[Moment]:
    """From when the server had the request until its model did."""
    moments = [("REQUEST_START", trace.begun_ns)]
    if request.queued_ns:
        moments.append(("QUEUE_START", request.queued_ns))
    return moments


def computing(trace: RequestTrace, request: InferenceRequest) -> list[Moment]:
    """What its model did; nothing for an ensemble, whose steps do everything."""
    if not request.started_ns or trace.is_ensemble:
        return []
    moments = [("COMPUTE_START", request.started_ns)]
    times = request.times
    if times is not None:
        input_end_ns = request.started_ns + times.input_ns
        output_start_ns = input_end_ns + times.infer_ns
        moments += [
            ("COMPUTE_INPUT_END", input_end_ns),
            ("COMPUTE_OUTPUT_START", output_start_ns),
            ("COMPUTE_END", output_start_ns + times.output_ns),
        ]
    return moments


def departure(trace: RequestTrace) -> list[Moment]:
    """What became of the final response."""
    moments = [("INFER_RESPONSE_COMPLETE", trace.answered_ns)]
    if trace.stages is not None:
        sent = trace.stages[1]
        moments += [(f"{sent}_START", trace.answered_ns), (f"{sent}_END", trace.ended_ns)]
    return moments


def _text(element: object) -> str:
    return f"{element:.9g}" if isinstance(element, float) else str(element)
