"""Traced requests as OpenTelemetry spans, sent over OTLP/HTTP; the one user of the opentelemetry packages.

Owns what a span says (reference, section 10) and the exporter. Spans wait in a bounded queue for a thread of the
SDK's: a collector that is slow or away costs no request anything but its spans.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument
from cantata.runtime.observe.trace_context import TraceContext
from cantata.runtime.observe.trace_events import Moment, arrival, computing, departure, queueing
from cantata.runtime.observe.trace_settings import TIMESTAMPS, OpenTelemetryOptions
from cantata.runtime.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanContext

    from cantata.runtime.observe.trace import RequestTrace
    from cantata.runtime.request import InferenceRequest

_SERVICE: Final = "triton-inference-server"
# How long the last spans may take to be sent when the server ends.
_FLUSH_S: Final = 3.0


class SpanExport:
    """Where the spans of one server go. `open` and `close` are called once each."""

    def __init__(self, options: OpenTelemetryOptions) -> None:
        self._options = options
        self._form: _SpanForm | None = None
        self._processor: BatchSpanProcessor | None = None

    def open(self) -> None:
        """Start sending; raises InferenceError where the packages are missing or the options cannot be."""
        options = self._options
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise internal_error(
                f"tracing with OpenTelemetry needs packages that are not installed ({error.name}): "
                "pip install 'cantata[otel]'"
            ) from None
        self._form = _SpanForm(options)
        try:
            self._processor = BatchSpanProcessor(
                OTLPSpanExporter(endpoint=options.url),
                max_queue_size=options.max_queue_size,
                schedule_delay_millis=options.schedule_delay_ms,
                max_export_batch_size=options.max_export_batch_size,
            )
        except ValueError as error:
            raise invalid_argument(f"--trace-config opentelemetry: {error}") from None

    def close(self) -> None:
        """Send what is left, as far as that takes no longer than a few seconds."""
        processor, self._processor = self._processor, None
        if processor is None:
            return
        # A collector that is away is tried again and again, until the exporter is shut.
        patience = threading.Timer(_FLUSH_S, processor.span_exporter.shutdown)
        patience.daemon = True
        patience.start()
        try:
            processor.shutdown()  # type: ignore[no-untyped-call]
        finally:
            patience.cancel()
            patience.join()

    def send(self, trace: RequestTrace, request: InferenceRequest, sink: SpanSink) -> None:
        """Queue the spans of one request; never waits, never raises."""
        processor, form = self._processor, self._form
        if processor is None or form is None:
            return
        for span in form.spans(trace, request, sink):
            processor.on_end(span)


class SpanSink:
    """The spans of one request and of all that it leads to. See TraceSink.

    The trace, and the span of the front-end's part, are known from the start, so that others can be told of them.
    """

    __slots__ = ("_export", "parent", "root_span_id", "trace_id", "wall_offset_ns")

    def __init__(self, export: SpanExport, parent: TraceContext | None) -> None:
        self._export = export
        self.parent = parent
        self.trace_id = new_trace_id() if parent is None else parent.trace_id
        self.root_span_id = new_span_id()
        # From the monotonic clock to the time of day.
        self.wall_offset_ns = time.time_ns() - monotonic_ns()

    def context_of(self, trace: RequestTrace) -> TraceContext:
        """The span of a request, to be a parent of others."""
        return TraceContext(self.trace_id, trace.span_id, "" if self.parent is None else self.parent.state)

    def completed(self, trace: RequestTrace, request: InferenceRequest) -> None:
        """A request has ended."""
        self._export.send(trace, request, self)


class _SpanForm:
    """Makes spans of requests. Apart, so that the packages are imported once, and only where they are used."""

    def __init__(self, options: OpenTelemetryOptions) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

        self._event, self._span, self._context = Event, ReadableSpan, SpanContext
        self._kind = SpanKind.SERVER
        self._status, self._error = Status, StatusCode.ERROR
        self._fine = Status()
        self._sampled = TraceFlags(TraceFlags.SAMPLED)
        self._state = TraceState
        self._scope = InstrumentationScope("cantata", VERSION)
        given = dict(options.resource)
        # With what the environment says; the SDK's own name for a service without one is not ours.
        self._resource = Resource.create(dict(given))
        if str(self._resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            self._resource = self._resource.merge(Resource({SERVICE_NAME: _SERVICE}))

    def spans(self, trace: RequestTrace, request: InferenceRequest, sink: SpanSink) -> list[ReadableSpan]:
        """The spans of a request that has ended, innermost first."""
        made: list[ReadableSpan] = []
        computed = computing(trace, request)
        if computed:
            ends_ns = computed[-1][1] if len(computed) > 1 else trace.answered_ns
            part = _Part("compute", new_span_id(), trace.span_id, computed[0][1], ends_ns, computed)
            made.append(self._made(part, trace, sink))
        outer_id = sink.root_span_id if trace.parent is None else trace.parent.span_id
        # The sending of its answer is the front-end's part.
        moments = [*queueing(trace, request), ("REQUEST_END", trace.answered_ns)]
        part = _Part(request.model_name, trace.span_id, outer_id, trace.begun_ns, trace.answered_ns, moments)
        made.append(self._made(part, trace, sink, _attributes(trace, request)))
        if trace.parent is None:
            moments = [*arrival(trace, request), *departure(trace)]
            parent_id = 0 if sink.parent is None else sink.parent.span_id
            part = _Part(
                "InferRequest", sink.root_span_id, parent_id, request.received_ns, trace.ended_ns, moments
            )
            made.append(self._made(part, trace, sink))
        return made

    def _made(
        self, part: _Part, trace: RequestTrace, sink: SpanSink, attributes: dict[str, Any] | None = None
    ) -> ReadableSpan:
        offset_ns = sink.wall_offset_ns
        is_timed = TIMESTAMPS in trace.settings.levels
        # The client's own span, if it has named one, is the only one from elsewhere.
        is_remote = part.id == sink.root_span_id
        return self._span(
            name=part.name,
            context=self._context_of(sink, part.id),
            parent=self._context_of(sink, part.parent_id, is_remote) if part.parent_id else None,
            resource=self._resource,
            attributes=attributes or {},
            events=[self._event(name, timestamp=ns + offset_ns) for name, ns in part.moments if is_timed],
            kind=self._kind,
            status=self._fine if trace.error is None else self._status(self._error, str(trace.error)),
            start_time=part.start_ns + offset_ns,
            end_time=part.end_ns + offset_ns,
            instrumentation_scope=self._scope,
        )

    def _context_of(self, sink: SpanSink, span_id: int, is_remote: bool = False) -> SpanContext:
        state = self._state.from_header([sink.parent.state]) if sink.parent is not None else None
        return self._context(sink.trace_id, span_id, is_remote, self._sampled, state)


class _Part(NamedTuple):
    """What becomes one span; `parent_id` 0 for none. Times are on the monotonic clock."""

    name: str
    id: int
    parent_id: int
    start_ns: int
    end_ns: int
    moments: list[Moment]


def _attributes(trace: RequestTrace, request: InferenceRequest) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "triton.model_name": request.model_name,
        "triton.model_version": request.model_version,
        "triton.trace_id": trace.id,
        "triton.trace_parent_id": 0 if trace.parent is None else trace.parent.id,
    }
    if request.id:
        attributes["triton.request_id"] = request.id
    return attributes


def new_trace_id() -> int:
    """The number of a trace; no other has it."""
    return random.getrandbits(128) or 1


def new_span_id() -> int:
    """The number of a span; no other of its trace has it."""
    return random.getrandbits(64) or 1


def open_export(options: OpenTelemetryOptions) -> SpanExport:
    """A span export that sends; raises InferenceError where it cannot."""
    export = SpanExport(options)
    try:
        export.open()
    except InferenceError:
        export.close()
        raise
    return export
