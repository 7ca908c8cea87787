"""A collector of OpenTelemetry spans for tests: takes OTLP over HTTP on a free port, and hands out what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span as it came; `parent` is 0 for a root."""

    name: str
    kind: int
    trace_id: int
    id: int
    parent: int
    attributes: dict[str, Any]
    events: dict[str, int]
    start_ns: int
    end_ns: int
    status: int
    message: str
    trace_state: str
    resource: dict[str, str]


class Collector:
    """What has been sent to `url` so far. `_changed` guards the spans."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._changed = threading.Condition()
        self._spans: list[Span] = []

    def take(self, body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        spans = [
            _span(span, {each.key: each.value.string_value for each in resource_spans.resource.attributes})
            for resource_spans in message.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]
        with self._changed:
            self._spans += spans
            self._changed.notify_all()

    def wait_for(self, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """All spans, once there are enough of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: enough(self._spans), 10), [
                each.name for each in self._spans
            ]
            return list(self._spans)

    def trace_of(self, request_id: str) -> list[Span]:
        """The spans of the trace that the request of that id is part of, once its root is there."""

        def trace(spans: list[Span]) -> list[Span]:
            ids = {span.trace_id for span in spans if span.attributes.get("triton.request_id") == request_id}
            return [span for span in spans if span.trace_id in ids]

        return trace(self.wait_for(lambda spans: any(span.name == "InferRequest" for span in trace(spans))))


@contextmanager
def otlp_collector() -> Iterator[Collector]:
    """A collector that listens inside the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _span(span: Any, resource: dict[str, str]) -> Span:
    return Span(
        span.name,
        span.kind,
        int.from_bytes(span.trace_id, "big"),
        int.from_bytes(span.span_id, "big"),
        int.from_bytes(span.parent_span_id, "big"),
        {each.key: each.value.string_value or each.value.int_value for each in span.attributes},
        {event.name: event.time_unix_nano for event in span.events},
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code,
        span.status.message,
        span.trace_state,
        resource,
    )
