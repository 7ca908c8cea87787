"""Tracing of requests: who is traced, what is noted of them, and where it is written.

A request's times are kept by the request itself, so a trace is put together when its request has ended. A server that
traces nothing pays for a look at `Tracer.is_on`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, cast

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.datatypes import DataType
from cantata.runtime.observe.trace_file import Event, TraceFiles
from cantata.runtime.observe.trace_settings import (
    TENSORS,
    TIMESTAMPS,
    TraceChoice,
    TraceSettings,
    parse_changes,
)

if TYPE_CHECKING:
    from cantata.runtime.request import InferenceRequest
    from cantata.runtime.response import InferenceResponse
    from cantata.runtime.tensor import Tensor

_log = logging.getLogger("cantata.trace")

# What a front-end does around a request: the starts of the names that its moments are noted by.
HTTP: Final = ("HTTP_RECV", "HTTP_SEND")
GRPC: Final = ("GRPC_WAITREAD", "GRPC_SEND")


class Tracer:
    """The traces of one server. `_lock` guards the choice; `is_on` is read without it."""

    def __init__(self, command_line: TraceSettings) -> None:
        self._lock = threading.Lock()
        self._choice = TraceChoice(command_line)
        self._files = TraceFiles()
        self._ids = itertools.count(1)
        # Whether a request that comes now might be traced.
        self.is_on = self._choice.is_any_active

    def settings(self, model_name: str = "") -> TraceSettings:
        """The settings of a model, or of the server."""
        with self._lock:
            return self._choice.settings(model_name)

    def update(self, changes: Mapping[str, Sequence[str]], model_name: str = "") -> TraceSettings:
        """Change settings of a model or of the server: each has one value, several levels, or none to be cleared.

        Raises InferenceError for values that cannot be.
        """
        parsed = parse_changes(changes)
        with self._lock:
            if parsed:
                self._choice.update(model_name, parsed)
                self.is_on = self._choice.is_any_active
            return self._choice.settings(model_name)

    def begin(self, request: InferenceRequest, stages: tuple[str, str]) -> None:
        """Trace a request that a front-end is about to submit, if it is one of those that are chosen."""
        with self._lock:
            settings = self._choice.choose(request.model_name)
            self.is_on = self._choice.is_any_active
        if settings is not None:
            request.trace = RequestTrace(self, settings, stages, monotonic_ns())

    def next_id(self) -> int:
        """A number that no other trace has."""
        return next(self._ids)

    def write(self, settings: TraceSettings, events: list[Event]) -> None:
        """Keep a trace that is complete; one that cannot be written is logged and lost."""
        try:
            self._files.write(settings.file, settings.log_frequency, events)
        except OSError as error:
            _log.error("a trace could not be written: %s", error)


class RequestTrace:
    """The trace of one request; of a step's where it has a `parent_id`. Used by one thread at a time."""

    __slots__ = ("_children", "_events", "_settings", "_stages", "_tracer", "id", "parent_id")

    def __init__(
        self,
        tracer: Tracer,
        settings: TraceSettings,
        stages: tuple[str, str] | None,
        now_ns: int,
        parent: RequestTrace | None = None,
    ) -> None:
        self.id = tracer.next_id()
        self.parent_id = 0 if parent is None else parent.id
        self._tracer = tracer
        self._settings = settings
        self._stages = stages
        self._children: list[RequestTrace] = []
        # What is noted on the way, but for what the request itself remembers.
        self._events: list[Event] = []
        if stages is not None:
            self._note(f"{stages[0]}_END", now_ns)
            self._note("REQUEST_START", now_ns)

    def child(self) -> RequestTrace:
        """The trace of a request that this one causes: a step of an ensemble."""
        made = RequestTrace(self._tracer, self._settings, None, 0, self)
        self._children.append(made)
        return made

    def answered(self, request: InferenceRequest, response: InferenceResponse | None, final: bool) -> None:
        """A response is about to be sent."""
        if response is not None and TENSORS in self._settings.levels:
            for name, tensor in response.outputs.items():
                self._events.append(_tensor(self.id, "TENSOR_BACKEND_OUTPUT", name, tensor))
        if final:
            now_ns = monotonic_ns()
            self._note("INFER_RESPONSE_COMPLETE", now_ns)
            if self._stages is None:
                # What the last step's answer leads to happens while it is sent, and ends the whole trace.
                self._complete(request, now_ns)
            else:
                self._note(f"{self._stages[1]}_START", now_ns)

    def ended(self, request: InferenceRequest) -> None:
        """The request's last response has been handed to its sender: a front-end's trace is written."""
        if self._stages is not None:
            now_ns = monotonic_ns()
            self._note(f"{self._stages[1]}_END", now_ns)
            self._complete(request, now_ns)
            self._tracer.write(self._settings, self._all_events())

    def _complete(self, request: InferenceRequest, now_ns: int) -> None:
        self._note("REQUEST_END", now_ns)
        events = [_identity(self, request), *self._moments(request)]
        if TENSORS in self._settings.levels:
            events += [
                _tensor(self.id, "TENSOR_QUEUE_INPUT", name, tensor)
                for name, tensor in request.inputs.items()
            ]
        self._events[:0] = events

    def _moments(self, request: InferenceRequest) -> list[Event]:
        """What the request remembers of its way."""
        if TIMESTAMPS not in self._settings.levels:
            return []
        first = "REQUEST" if self._stages is None else self._stages[0]
        moments = [(f"{first}_START", request.received_ns)]
        if request.queued_ns:
            moments.append(("QUEUE_START", request.queued_ns))
        if request.started_ns and not self._children:
            moments.append(("COMPUTE_START", request.started_ns))
            times = request.times
            if times is not None:
                input_end_ns = request.started_ns + times.input_ns
                output_start_ns = input_end_ns + times.infer_ns
                moments += [
                    ("COMPUTE_INPUT_END", input_end_ns),
                    ("COMPUTE_OUTPUT_START", output_start_ns),
                    ("COMPUTE_END", output_start_ns + times.output_ns),
                ]
        return [_moment(self.id, name, ns) for name, ns in moments]

    def _all_events(self) -> list[Event]:
        events = list(self._events)
        for child in self._children:
            events += child._all_events()
        return events

    def _note(self, name: str, ns: int) -> None:
        if TIMESTAMPS in self._settings.levels:
            self._events.append(_moment(self.id, name, ns))


def _identity(trace: RequestTrace, request: InferenceRequest) -> Event:
    event: Event = {"id": trace.id, "model_name": request.model_name, "model_version": request.model_version}
    if request.id:
        event["request_id"] = request.id
    if trace.parent_id:
        event["parent_id"] = trace.parent_id
    return event


def _moment(trace_id: int, name: str, ns: int) -> Event:
    return {"id": trace_id, "timestamps": [{"name": name, "ns": ns}]}


def _tensor(trace_id: int, activity: str, name: str, tensor: Tensor) -> Event:
    elements = tensor.array.reshape(-1).tolist()
    if tensor.datatype is DataType.BYTES:
        elements = [cast(bytes, element).decode("utf-8", "replace") for element in elements]
    return {
        "id": trace_id,
        "activity": activity,
        "tensor": {
            "name": name,
            "data": ",".join(_text(element) for element in elements),
            "shape": ",".join(map(str, tensor.shape)),
            "dtype": tensor.datatype.name,
        },
    }


def _text(element: object) -> str:
    return f"{element:.9g}" if isinstance(element, float) else str(element)
