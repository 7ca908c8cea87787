"""The infer route: requests from connections to `Server.submit`, responses back to the event loop.

Owns the batching of submissions, and the crossing of threads that responses need. Requests that arrive in one
iteration of the loop are submitted together after it, so that the batcher sees them all; what is quick then runs right
here. Knows nothing of JSON or sockets.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, internal_error, unavailable, unsupported
from cantata.runtime.execution.file_watch import FileWatch
from cantata.runtime.execution.worker_pool import Collector
from cantata.runtime.frontends.classification import classified
from cantata.runtime.frontends.gathering import Gathering
from cantata.runtime.frontends.header_forwarding import HeaderForwarding, header_forwarding
from cantata.runtime.frontends.http.compression import accepted_encoding, compressed, decompressed
from cantata.runtime.frontends.http.connection import Exchange
from cantata.runtime.frontends.http.errors import (
    JSON_HEADERS,
    checked_version,
    error_body,
    json_size_error,
    status_of,
)
from cantata.runtime.frontends.http.infer_request import InferBody, decode_infer_request
from cantata.runtime.frontends.http.infer_response import encode_infer_response
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.restriction import Restrictions
from cantata.runtime.observe.trace import HTTP
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.shared_memory import RegionLease

if TYPE_CHECKING:
    from cantata.runtime.server import Server

_log = logging.getLogger("cantata.http")


class InferRoute:
    """All infer requests of one HTTP front-end. Its methods run on the loop's thread, but for `deliver`."""

    def __init__(self, server: Server, options: HttpOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._options = options
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._forwarding = header_forwarding(options.header_forward_pattern)
        self._restrictions = Restrictions(options.restricted_apis, options.api_keys)
        # Set, from any thread, when no further request may be submitted.
        self.is_stopping = False
        self._arrived: list[tuple[Exchange, str, int]] = []
        # What models in processes say to batches that were begun here.
        self._watch = FileWatch()
        loop.add_reader(self._watch.fileno(), self._go_on)
        # Answers from other threads, and whether the loop has been told of them; and those of models that run here.
        self._outbox: deque[tuple[Exchange, bytes]] = deque()
        self._loop_was_told = False
        self._runs_models = False
        self._gathering = Gathering()

    def accept(self, exchange: Exchange, model_name: str, model_version: int) -> None:
        """Take a request; it is submitted once everything that has arrived has been read."""
        if not self._arrived:
            self._loop.call_soon(self._submit_arrived)
        self._arrived.append((exchange, model_name, model_version))

    def deliver(self, exchange: Exchange, answer: bytes) -> None:
        """Send an answer; any thread may call."""
        is_here = threading.get_ident() == self._loop_thread
        if is_here and not self._runs_models:
            exchange.send(answer)
            return
        self._outbox.append((exchange, answer))
        if not is_here and not self._loop_was_told:
            self._loop_was_told = True
            try:
                self._loop.call_soon_threadsafe(self._send_delivered)
            except RuntimeError:
                # The loop has ended: the server was closed, and every connection with it.
                self._outbox.clear()

    def _send_delivered(self) -> None:
        # First: whoever appends from here on tells the loop again.
        self._loop_was_told = False
        outbox = self._outbox
        while outbox:
            exchange, answer = outbox.popleft()
            try:
                exchange.send(answer)
            except Exception:
                _log.exception("an answer could not be sent")

    def _submit_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        with self._server.workers.collecting(self._watch) as work:
            for exchange, model_name, model_version in arrived:
                if exchange.is_disconnected:
                    continue
                refusal = self._restrictions.refusal("inference", exchange.header_text)
                if refusal is None:
                    self._submit(exchange, model_name, model_version)
                else:
                    exchange.respond(*refusal.answer())
            self._run(work)

    def _go_on(self) -> None:
        """Go on with batches whose processes have said something."""
        workers = self._server.workers
        with workers.collecting(self._watch) as work:
            for rest in self._watch.take_ready():
                workers.dispatch(rest)
            self._run(work)

    def _run(self, work: Collector) -> None:
        self._runs_models = True
        try:
            work.run(self._send_now_and_then, self._send_delivered)
        finally:
            self._runs_models = False
            self._send_delivered()

    def close(self) -> None:
        """The loop has ended."""
        self._server.workers.take_over(self._watch)

    def _send_now_and_then(self) -> None:
        """For after each model that has run."""
        if self._outbox and self._gathering.is_over():
            self._send_delivered()

    def _submit(self, exchange: Exchange, model_name: str, model_version: int) -> None:
        received_ns = monotonic_ns()
        regions: RegionLease | None = None
        if exchange.refusal is not None:
            self._refuse(exchange, exchange.refusal, None)
            return
        try:
            if self.is_stopping:
                raise unavailable("Server not ready")
            model = self._server.model(model_name, checked_version(model_version))
            if model.is_decoupled:
                raise unsupported("HTTP end point doesn't support models with decoupled transaction policy")
            body = self._decode(exchange, model)
            regions = body.regions
            if self._forwarding is not None:
                self._forward_headers(exchange, body, self._forwarding)
            sender = _InferAnswer(self, exchange, model, body)
            request = InferenceRequest(model_name, body.inputs, sender, received_ns)
            request.model_version = model_version
            request.id = body.id
            request.requested_outputs = tuple(body.output_forms)
            request.correlation_id = body.correlation_id
            request.flags = body.flags
            request.priority = body.priority
            request.timeout_us = body.timeout_us
            request.parameters = body.parameters
            exchange.on_disconnect = request.cancellation.cancel
            request.lease = exchange.lease
            tracer = self._server.tracer
            if tracer.is_on or request.parameters is not None:
                tracer.begin(request, HTTP, exchange.headers)
            self._server.submit(request)
            # The request has it now.
            exchange.lease = None
        except InferenceError as error:
            self._refuse(exchange, error, regions)
        except Exception:
            _log.exception("an infer request of model '%s' failed", model_name)
            self._refuse(exchange, internal_error("Internal Server Error"), regions)

    def _refuse(self, exchange: Exchange, error: InferenceError, regions: RegionLease | None) -> None:
        if regions is not None:
            regions.release()
        exchange.send(_error_answer(exchange, error))

    def _decode(self, exchange: Exchange, model: ModelVersion) -> InferBody:
        limit = self._options.max_input_size
        header_length = encoding = None
        for name, value in exchange.headers:
            if name == b"inference-header-content-length":
                header_length = value
            elif name == b"content-encoding":
                encoding = value
        if exchange.has_oversized_body:
            raise json_size_error(exchange.body_size, limit)
        body = exchange.body
        if encoding is not None:
            body = decompressed(body, encoding, limit)
            if exchange.lease is not None and body is not exchange.body:
                exchange.lease.resize(len(exchange.body) + len(body))
        return decode_infer_request(body, header_length, model.spec, limit, self._server.shared_memory)

    def _forward_headers(self, exchange: Exchange, decoded: InferBody, forwarding: HeaderForwarding) -> None:
        headers = zip(exchange.sent_names, exchange.headers, strict=True)
        decoded.parameters = forwarding.added_to(
            decoded.parameters,
            ((name.decode("latin-1"), value.decode("latin-1")) for name, (_, value) in headers),
        )


class _InferAnswer:
    """The sender of one infer request. HTTP has room for one response: any other number is an error."""

    __slots__ = ("_body", "_count", "_exchange", "_model", "_response", "_route")

    def __init__(self, route: InferRoute, exchange: Exchange, model: ModelVersion, body: InferBody) -> None:
        self._route = route
        self._exchange = exchange
        self._model = model
        self._body = body
        self._response: InferenceResponse | None = None
        self._count = 0

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self._count += 1
            if self._response is None or response.error is not None:
                self._response = response
        if final:
            try:
                answer = self._answer()
            finally:
                if self._body.regions is not None:
                    self._body.regions.release()
            self._route.deliver(self._exchange, answer)

    def wait_until_ready(self) -> None:
        """One response is all there will be: the client is always ready for it."""

    def _answer(self) -> bytes:
        response, exchange = self._response, self._exchange
        if exchange.is_disconnected:
            return b""
        try:
            if response is not None and response.error is not None:
                return _error_answer(exchange, response.error)
            if response is None or self._count != 1:
                raise internal_error(f"expected a single response, got {self._count}")
            return self._encode(response)
        except InferenceError as error:
            return _error_answer(exchange, error)

    def _encode(self, response: InferenceResponse) -> bytes:
        body, exchange = self._body, self._exchange
        outputs = response.outputs
        for name, form in body.output_forms.items():
            if form.class_count and name in outputs:
                outputs = {**outputs, name: classified(outputs[name], form.class_count, self._model, name)}
        headers, parts = encode_infer_response(
            response, outputs, body.output_forms, body.default_form, body.regions
        )
        encoding = accepted_encoding(exchange.header(b"accept-encoding"))
        if encoding:
            parts = [compressed(parts, encoding)]
            headers += b"Content-Encoding: %s\r\n" % encoding
        size = sum(map(len, parts))
        # One bytes object, complete before this returns: what the outputs lie in may be the model's to use again.
        return b"".join((exchange.head(200, headers + b"Content-Length: %d\r\n" % size), *parts))


def _error_answer(exchange: Exchange, error: InferenceError) -> bytes:
    body = error_body(error.message)
    headers = JSON_HEADERS
    if error.message == "Unsupported compression type":
        headers += b"Accept-Encoding: gzip, deflate\r\n"
    if error.retry_after_s:
        headers += b"Retry-After: %d\r\n" % error.retry_after_s
    return exchange.head(status_of(error), headers + b"Content-Length: %d\r\n" % len(body)) + body
