"""ModelStreamInfer: many requests on one call, each answered by any number of messages (reference, section 4).

Owns which message goes out for what a request was answered, errors included, and when the call ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cantata.runtime.admission import ByteLease
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError
from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.call import Call, CallReader
from cantata.runtime.frontends.grpc.classes import RequestedClasses, requested_classes
from cantata.runtime.frontends.grpc.infer_message import InferMessage, decode_infer_message
from cantata.runtime.frontends.grpc.infer_request import (
    UnknownDatatypeError,
    build_request,
    parse_model_version,
    wants_empty_final,
)
from cantata.runtime.frontends.grpc.infer_response import (
    check_size,
    encode_empty_final,
    encode_stream_error,
    encode_stream_failure,
    encode_stream_response,
)
from cantata.runtime.frontends.grpc.inference import SHUTTING_DOWN, InferenceService
from cantata.runtime.frontends.grpc.message_stream import MessageStream
from cantata.runtime.frontends.grpc.request_errors import as_inference_error
from cantata.runtime.frontends.grpc.response_order import Place, ResponseOrder
from cantata.runtime.frontends.grpc.wire import MalformedMessageError
from cantata.runtime.frontends.status_codes import GRPC_CODES
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.trace import GRPC
from cantata.runtime.request import Cancellation, InferenceRequest, LinkedCancellation
from cantata.runtime.response import InferenceResponse
from cantata.runtime.shared_memory import RegionLease

# With this metadata a client asks that the first error end the call with its status.
_ERROR_ENDS_CALL: Final = "triton_grpc_error"


class InferStream:
    """One ModelStreamInfer call. What is below `_stream` changes under the stream's lock only."""

    def __init__(self, service: InferenceService, call: Call) -> None:
        self._service = service
        self._deadline_ns = call.deadline_ns
        self._metadata = call.metadata
        self._error_ends_call = any(
            key == _ERROR_ENDS_CALL and value == "true" for key, value in self._metadata
        )
        # Shared by all requests of the stream: those without a timeout are only ever cancelled together.
        self._cancellation = Cancellation()
        if service.compresses:
            service.compress(call)
        self._stream = MessageStream(service.loop, call, self)
        self._order = ResponseOrder()
        self._in_flight = 0
        self._is_half_closed = False
        self._is_stopping = False
        service.streams.add(self)

    @property
    def reader(self) -> CallReader:
        """What the call is to be read by."""
        return self._stream

    def stop(self) -> None:
        """End the call, when the requests in flight are answered, because the server stops; on the loop's thread."""
        with self._stream.lock:
            self._is_stopping = True
        self._finish_if_done()

    def on_message(self, message: bytes | memoryview) -> None:
        received_ns = monotonic_ns()
        try:
            decoded = decode_infer_message(message)
        except MalformedMessageError as error:
            self.end(as_inference_error(error))
            return
        request = _StreamedRequest(self, decoded)
        lease: ByteLease | None = None
        try:
            if self._service.byte_budget is not None:
                lease = ByteLease(len(message))
                lease.hold(self._service.byte_budget)
            version = parse_model_version(decoded.model_version)
            model = self._service.server.model(decoded.model_name, version)
            self._enter(request, model.is_decoupled)
            self._service.check_accepting()
            request.wants_empty_final = model.is_decoupled and wants_empty_final(decoded)
            request.classes = requested_classes(decoded, model)
            made = self._build(decoded, version, model.spec, request, received_ns)
            self._service.forward_headers(made, self._metadata)
            tracer = self._service.server.tracer
            if tracer.is_on or made.parameters is not None:
                tracer.begin(made, GRPC, self._metadata)
            made.lease = lease
            self._service.server.submit(made)
        except Exception as error:
            if lease is not None:
                lease.release()
            self._refuse(request, as_inference_error(error))
        else:
            self._service.loop.request_round()

    def _build(
        self,
        decoded: InferMessage,
        version: int,
        spec: ModelSpec,
        sender: _StreamedRequest,
        received_ns: int,
    ) -> InferenceRequest:
        memory = self._service.server.shared_memory
        try:
            made = build_request(
                decoded, version, sender, received_ns, self._deadline_ns, self._cancellation, memory
            )
        except UnknownDatatypeError as error:
            raise error.for_model(spec) from None
        finally:
            sender.regions = decoded.regions
        if made.timeout_us:
            # The end of its time is not the end of the others'.
            made.cancellation = sender.cancellation = LinkedCancellation(self._cancellation)
        return made

    def on_half_close(self) -> None:
        with self._stream.lock:
            self._is_half_closed = True
        self._finish_if_done()

    def on_closed(self, was_cancelled: bool) -> None:
        self._service.streams.discard(self)
        if was_cancelled:
            self._cancellation.cancel()

    def deliver(self, request: _StreamedRequest, message: bytes | None, final: bool) -> None:
        """Write a message of `request`, or with None nothing, when its turn has come; any thread."""

        def in_order() -> Sequence[bytes]:
            if final:
                self._in_flight -= 1
            if request.place is not None:
                return self._order.add(request.place, message, final)
            return () if message is None else (message,)

        self._stream.send_from(in_order)
        if final:
            self._finish_if_done()

    def fail(self, request: _StreamedRequest, error: InferenceError, message: bytes, final: bool) -> None:
        """Write an error as a message or, where the client asked for it, as the end of the call; any thread."""
        if self._error_ends_call:
            self.end(error)
        else:
            self.deliver(request, message, final)

    def end(self, error: InferenceError) -> None:
        """End the call with an error; nobody waits for its other requests any more."""
        self._stream.finish(GRPC_CODES[error.code], error.message)
        self._cancellation.cancel()

    def wait_until_ready(self, request: _StreamedRequest) -> None:
        """Block while the client reads more slowly than it is sent to, and `request` has more for it."""
        own = request.cancellation
        self._stream.wait_until_ready(lambda: request.is_over or (own is not None and own.is_cancelled))

    def _enter(self, request: _StreamedRequest, is_decoupled: bool) -> None:
        with self._stream.lock:
            request.has_entered = True
            self._in_flight += 1
            if not is_decoupled:
                request.place = self._order.enter()

    def _refuse(self, request: _StreamedRequest, error: InferenceError) -> None:
        """Answer a request that was not accepted."""
        request.release_regions()
        if request.cancellation is not None:
            request.cancellation.unlink()
        if not request.has_entered:
            self._enter(request, is_decoupled=False)
        self.fail(request, error, encode_stream_error(error.message, request.id), final=True)

    def _finish_if_done(self) -> None:
        with self._stream.lock:
            is_idle = self._in_flight == 0
            is_half_closed, is_stopping = self._is_half_closed, self._is_stopping
        if is_idle and is_half_closed:
            self._stream.finish()
        elif is_idle and is_stopping:
            self._stream.finish(codes.UNAVAILABLE, SHUTTING_DOWN)


class _StreamedRequest:
    """The sender of one request of a stream. `model_version` is the request's text, not the version that serves."""

    __slots__ = (
        "_model_name",
        "_model_version",
        "_stream",
        "cancellation",
        "classes",
        "has_entered",
        "id",
        "is_over",
        "place",
        "regions",
        "wants_empty_final",
    )

    def __init__(self, stream: InferStream, message: InferMessage) -> None:
        self._stream = stream
        self._model_name = message.model_name
        self._model_version = message.model_version
        self.id = message.id
        # Its place among the requests that are answered in order, None for a decoupled model's.
        self.place: Place | None = None
        self.has_entered = False
        # Answered finally: whoever still waits to send more for it need not.
        self.is_over = False
        self.wants_empty_final = False
        self.classes: RequestedClasses | None = None
        self.regions: RegionLease | None = None
        # Its own, where it has one.
        self.cancellation: LinkedCancellation | None = None

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        if final:
            self.is_over = True
            if self.cancellation is not None:
                self.cancellation.unlink()
        if response is None:
            self.release_regions()
            message = None
            if self.wants_empty_final:
                message = encode_empty_final(self._model_name, self._model_version, self.id)
            self._stream.deliver(self, message, final)
        elif response.error is not None:
            self._fail(response.error, final)
        else:
            try:
                if self.classes is not None:
                    response = self.classes.applied_to(response)
                message = encode_stream_response(response, final, self.regions)
                check_size(message)
            except Exception as error:
                self._fail(as_inference_error(error), final)
            else:
                if final:
                    self.release_regions()
                self._stream.deliver(self, message, final)

    def wait_until_ready(self) -> None:
        self._stream.wait_until_ready(self)

    def release_regions(self) -> None:
        """The request uses no shared memory any more."""
        if self.regions is not None:
            self.regions.release()

    def _fail(self, error: InferenceError, final: bool) -> None:
        if final:
            self.release_regions()
        message = encode_stream_failure(error.message, self._model_name, self._model_version, self.id, final)
        self._stream.fail(self, error, message, final)
