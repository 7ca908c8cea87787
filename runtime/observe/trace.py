"""Tracing of requests: who is traced, what is noted of them, and where it goes.

A request's times are kept by the request itself, so a trace is put together when its request has ended. A server that
traces nothing pays for a look at `Tracer.is_on`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError
from cantata.runtime.observe.otel import SpanExport, SpanSink, new_span_id, open_export
from cantata.runtime.observe.timeline import TIMELINE, Timeline, without_timeline
from cantata.runtime.observe.trace_context import context_of_headers
from cantata.runtime.observe.trace_events import identity_event, moment_events, tensor_event
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

_log = logging.getLogger("cantata.trace")

# What a front-end does around a request: the starts of the names that its moments are noted by.
HTTP: Final = ("HTTP_RECV", "HTTP_SEND")
GRPC: Final = ("GRPC_WAITREAD", "GRPC_SEND")

Headers = Iterable[tuple[str | bytes, str | bytes]]


class TraceSink(Protocol):
    """Where a trace goes."""

    def completed(self, trace: RequestTrace, request: InferenceRequest) -> None:
        """A request, or one that it led to, has ended; on whichever thread answered it."""


class Trace(Protocol):
    """What a request knows of its being traced. The calls come one at a time."""

    def child(self, *, step: int | None = None) -> Trace:
        """The trace of a request that this one leads to: a step of an ensemble, or a call that a model makes."""

    def answered(self, request: InferenceRequest, response: InferenceResponse | None, final: bool) -> None:
        """A response is about to be sent."""

    def ended(self, request: InferenceRequest) -> None:
        """The final response has been handed to its sender."""

    def carrier(self) -> str:
        """What a model hands on to other services, as a JSON object of headers; "" where there is nothing."""


class Tracer:
    """The traces of one server. `_lock` guards the choice; `is_on` is read without it."""

    def __init__(self, command_line: TraceSettings) -> None:
        self._lock = threading.Lock()
        self._choice = TraceChoice(command_line)
        self._open_telemetry = command_line.open_telemetry
        self._export: SpanExport | None = None
        self._files = TraceFiles()
        self._ids = itertools.count(1)
        # Whether a request that comes now might be traced.
        self.is_on = self._choice.is_any_active

    def start(self) -> None:
        """Open what traces are sent to; raises InferenceError where that cannot be."""
        if self._open_telemetry is not None:
            self._export = open_export(self._open_telemetry)

    def close(self) -> None:
        """Send what is left, as far as it goes quickly."""
        if self._export is not None:
            self._export.close()

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

    def begin(self, request: InferenceRequest, stages: tuple[str, str] | None, headers: Headers = ()) -> None:
        """Trace a request that a front-end is about to submit, if it is one of those that are chosen, or asks for it.

        To be called where `is_on`, or where the request has parameters. A request without a front-end has no `stages`.
        `headers` may say what trace it is part of.
        """
        sinks: list[TraceSink] = []
        timeline: Timeline | None = None
        settings: TraceSettings | None = None
        if self.is_on:
            settings = self._choose(request, headers, sinks)
        if request.parameters is not None and request.parameters.get(TIMELINE) is True:
            request.parameters = without_timeline(request.parameters)
            timeline = Timeline()
            sinks.append(timeline)
        if sinks:
            request.trace = RequestTrace(
                self._ids, settings or _ONLY_TIMELINE, stages, monotonic_ns(), tuple(sinks), timeline
            )

    def _choose(
        self, request: InferenceRequest, headers: Headers, sinks: list[TraceSink]
    ) -> TraceSettings | None:
        """The settings that a request is traced by, and the sinks that they mean; None where it is not chosen."""
        context = None if self._export is None else context_of_headers(headers)
        with self._lock:
            settings = self._choice.choose(request.model_name, has_context=context is not None)
            self.is_on = self._choice.is_any_active
        if settings is None:
            return None
        if self._export is not None:
            sinks.append(SpanSink(self._export, context))
        elif settings.file:
            sinks.append(_FileSink(self._files, settings))
        return settings


_ONLY_TIMELINE: Final = TraceSettings()


class RequestTrace:
    """The trace of one request, or of one that it led to, which has a `parent`. See Trace.

    `begun_ns` is when the server had the request, `answered_ns` when its final response was there, and `ended_ns`
    when that had been handed on; 0 before.
    """

    __slots__ = (
        "_ids",
        "_sinks",
        "_timeline",
        "answered_ns",
        "begun_ns",
        "ended_ns",
        "error",
        "id",
        "is_ensemble",
        "output_events",
        "parent",
        "settings",
        "span_id",
        "stages",
        "step",
    )

    def __init__(
        self,
        ids: itertools.count[int],
        settings: TraceSettings,
        stages: tuple[str, str] | None,
        now_ns: int,
        sinks: tuple[TraceSink, ...],
        timeline: Timeline | None = None,
        parent: RequestTrace | None = None,
    ) -> None:
        self._ids = ids
        self._sinks = sinks
        self._timeline = timeline
        self.id = next(ids)
        self.span_id = new_span_id()
        self.settings = settings
        self.stages = stages
        self.parent = parent
        self.is_ensemble = False
        # Which step of its parent it is; None for a call, and where there is no parent.
        self.step: int | None = None
        self.begun_ns = now_ns
        self.answered_ns = 0
        self.ended_ns = 0
        self.error: InferenceError | None = None
        # What it answered, where that is traced: the tensors may be gone when the trace is put together.
        self.output_events: list[Event] = []

    def child(self, *, step: int | None = None) -> RequestTrace:
        self.is_ensemble |= step is not None
        made = RequestTrace(self._ids, self.settings, None, monotonic_ns(), self._sinks, None, self)
        made.step = step
        return made

    def answered(self, request: InferenceRequest, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self.error = response.error
            if TENSORS in self.settings.levels:
                for name, tensor in response.outputs.items():
                    self.output_events.append(tensor_event(self, "TENSOR_BACKEND_OUTPUT", name, tensor))
        if not final:
            if self._timeline is not None and response is not None and response.error is None:
                self.answered_ns = monotonic_ns()
                self._timeline.answered(self, request, response)
            return
        self.answered_ns = monotonic_ns()
        if self.parent is not None:
            # What a step's answer leads to happens while it is sent, and is not its own.
            self.ended_ns = self.answered_ns
            self._complete(request)
        elif self._timeline is not None and response is not None and response.error is None:
            self._timeline.answered(self, request, response)

    def ended(self, request: InferenceRequest) -> None:
        if self.parent is None:
            self.ended_ns = monotonic_ns()
            self._complete(request)

    def carrier(self) -> str:
        for sink in self._sinks:
            if isinstance(sink, SpanSink):
                return sink.context_of(self).carrier()
        return ""

    def _complete(self, request: InferenceRequest) -> None:
        for sink in self._sinks:
            try:
                sink.completed(self, request)
            except Exception:
                # Whatever happens to a trace is no affair of its request's.
                _log.exception("a trace of model '%s' was lost", request.model_name)


class _FileSink:
    """Gathers a request and all that it leads to, so that they stand together in a file. `_lock` guards the events.

    What ends after the request itself is written by itself.
    """

    def __init__(self, files: TraceFiles, settings: TraceSettings) -> None:
        self._files = files
        self._settings = settings
        self._lock = threading.Lock()
        self._inner: list[Event] = []
        self._is_written = False

    def completed(self, trace: RequestTrace, request: InferenceRequest) -> None:
        events = self._events(trace, request)
        with self._lock:
            if trace.parent is not None and not self._is_written:
                self._inner += events
                return
            self._is_written = True
            events += self._inner
            self._inner = []
        settings = self._settings
        try:
            self._files.write(settings.file, settings.log_frequency, events)
        except OSError as error:
            _log.error("a trace could not be written: %s", error)

    def _events(self, trace: RequestTrace, request: InferenceRequest) -> list[Event]:
        events = [identity_event(trace, request)]
        if TIMESTAMPS in self._settings.levels:
            events += moment_events(trace, request)
        if TENSORS in self._settings.levels:
            events += [
                tensor_event(trace, "TENSOR_QUEUE_INPUT", name, tensor)
                for name, tensor in request.inputs.items()
            ]
            events += trace.output_events
        return events
