"""A call of one request and one answer: the inference call, and the one for everything that is answered at once.

Owns when a call is answered and when its end is watched for. Knows no message but as bytes and errors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from cantata.runtime.admission import ByteBudget, ByteLease
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, internal_error, unsupported
from cantata.runtime.frontends.grpc import core_calls
from cantata.runtime.frontends.grpc.call_loop import CallLoop
from cantata.runtime.frontends.grpc.classes import RequestedClasses, requested_classes
from cantata.runtime.frontends.grpc.core_calls import Event
from cantata.runtime.frontends.grpc.infer_message import decode_infer_message
from cantata.runtime.frontends.grpc.infer_request import (
    UnknownDatatypeError,
    build_request,
    parse_model_version,
)
from cantata.runtime.frontends.grpc.infer_response import encode_infer_response
from cantata.runtime.frontends.grpc.inference import InferenceService
from cantata.runtime.frontends.grpc.options import MAX_MESSAGE_BYTES
from cantata.runtime.frontends.grpc.request_errors import as_inference_error, grpc_code_of
from cantata.runtime.observe.trace import GRPC
from cantata.runtime.request import Cancellation
from cantata.runtime.response import InferenceResponse
from cantata.runtime.shared_memory import RegionLease

_NO_MESSAGE: Final = "the call carried no request"

# Answers a serialised request with a serialised response, or raises InferenceError.
Handler = Callable[[bytes], bytes]


class UnaryCall:
    """A call that `handler` answers: on the loop's thread if it is quick, else on a thread of its own."""

    __slots__ = ("_call", "_handler", "_is_quick", "_loop")

    def __init__(self, loop: CallLoop, handler: Handler, is_quick: bool, event: Event) -> None:
        self._loop = loop
        self._call = event.call
        self._handler = handler
        self._is_quick = is_quick
        core_calls.receive_message(self._call, self._on_message)

    def _on_message(self, event: Event) -> None:
        if self._is_quick:
            self._answer(event)
        else:
            threading.Thread(
                target=self._answer, args=(event,), name="cantata-grpc-call", daemon=True
            ).start()

    def _answer(self, event: Event) -> None:
        ended = self._loop.call_ended
        try:
            message = self._loop.message_of(event)
            if message is None:
                raise internal_error(_NO_MESSAGE)
            answer = self._handler(message)
        except Exception as error:
            refusal = as_inference_error(error)
            core_calls.reply_status(
                self._call, grpc_code_of(refusal), refusal.message, ended, starts=True, closes=True
            )
        else:
            core_calls.reply(self._call, answer, ended, closes=True, compress=False)


class InferCall:
    """A ModelInfer call, and the sender of its one response.

    The end of a call must be asked for exactly once, and asking costs an event. So it is asked for with the answer,
    unless that is not there yet when the loop has run the work at hand. `_lock` guards `_is_watched` and
    `_is_answered`, which decide that.
    """

    __slots__ = (
        "_call",
        "_cancellation",
        "_classes",
        "_details",
        "_earlier",
        "_is_answered",
        "_is_watched",
        "_lease",
        "_lock",
        "_metadata",
        "_regions",
        "_service",
    )

    def __init__(self, service: InferenceService, event: Event) -> None:
        self._service = service
        self._call = event.call
        self._details = event.call_details
        self._metadata = event.invocation_metadata
        self._lock = threading.Lock()
        self._is_watched = False
        self._is_answered = False
        self._cancellation: Cancellation | None = None
        self._classes: RequestedClasses | None = None
        self._regions: RegionLease | None = None
        # Responses that were not final; there should be none.
        self._earlier: list[InferenceResponse] | None = None
        # What it holds of the server's budget of bytes, if there is one.
        self._lease: ByteLease | None = None
        if service.byte_budget is not None and not self._is_admitted(service.byte_budget):
            return
        core_calls.receive_message(self._call, self._on_message)

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        """Answer the call with its only response; any thread."""
        if final and response is not None and self._earlier is None:
            self._answer(response)
            return
        if self._earlier is None:
            self._earlier = []
        if response is not None:
            self._earlier.append(response)
        if final:
            if len(self._earlier) == 1:
                self._answer(self._earlier[0])
            else:
                self._fail(internal_error(f"expected a single response, got {len(self._earlier)}"))

    def wait_until_ready(self) -> None:
        """One response is always welcome."""

    def watch(self) -> None:
        """Learn when the client gives up, if the call is not answered yet."""
        with self._lock:
            if self._is_answered:
                return
            self._is_watched = True
        core_calls.watch_close(self._call, self._on_close)

    def _on_message(self, event: Event) -> None:
        received_ns = monotonic_ns()
        try:
            message = self._service.loop.message_of(event)
            if message is None:
                raise internal_error(_NO_MESSAGE)
            if self._lease is not None:
                self._service.received(len(message))
                self._lease.resize(len(message))
            self._submit(message, received_ns)
        except Exception as error:
            self._fail(as_inference_error(error))
        else:
            if not self._is_answered:
                self._service.loop.watch_later(self)

    def _is_admitted(self, budget: ByteBudget) -> bool:
        """Take what the message probably needs, or refuse the call before the message is read."""
        self._lease = ByteLease(self._service.expected_bytes)
        try:
            self._lease.hold(budget)
        except InferenceError as error:
            self._fail(error)
            return False
        return True

    def _submit(self, message: bytes, received_ns: int) -> None:
        service = self._service
        service.check_accepting()
        decoded = decode_infer_message(message)
        version = parse_model_version(decoded.model_version)
        model = service.server.model(decoded.model_name, version)
        if model.is_decoupled:
            raise unsupported("ModelInfer RPC doesn't support models with decoupled transaction policy")
        if decoded.outputs:
            self._classes = requested_classes(decoded, model)
        deadline_ns = core_calls.deadline_ns_of(self._details)
        try:
            request = build_request(
                decoded, version, self, received_ns, deadline_ns, None, service.server.shared_memory
            )
        except UnknownDatatypeError as error:
            raise error.for_model(model.spec) from None
        finally:
            self._regions = decoded.regions
        self._cancellation = request.cancellation
        if service.forwarding is not None:
            service.forward_headers(request, self._metadata)
        tracer = service.server.tracer
        if tracer.is_on or request.parameters is not None:
            tracer.begin(request, GRPC, self._metadata)
        request.lease = self._lease
        service.server.submit(request)

    def _answer(self, response: InferenceResponse) -> None:
        if response.error is not None:
            self._fail(response.error)
            return
        try:
            if self._classes is not None:
                response = self._classes.applied_to(response)
            message = encode_infer_response(response, self._regions)
        except Exception as error:
            self._fail(as_inference_error(error))
            return
        if len(message) > MAX_MESSAGE_BYTES:
            self._fail(internal_error(f"the response has {len(message)} bytes, more than gRPC can carry"))
            return
        if self._regions is not None:
            self._regions.release()
        service = self._service
        core_calls.reply(
            self._call,
            message,
            service.loop.call_ended,
            closes=self._take_close(),
            compress=service.compresses,
        )

    def _fail(self, error: InferenceError) -> None:
        if self._regions is not None:
            self._regions.release()
        if self._lease is not None:
            self._lease.release()
        core_calls.reply_status(
            self._call,
            grpc_code_of(error),
            error.message,
            self._service.loop.call_ended,
            starts=True,
            closes=self._take_close(),
            retry_after_s=error.retry_after_s,
        )

    def _take_close(self) -> bool:
        """Mark the call answered; True where the answer must ask for the call's end."""
        with self._lock:
            self._is_answered = True
            return not self._is_watched

    def _on_close(self, event: Event) -> None:
        if core_calls.was_cancelled(event) and self._cancellation is not None:
            self._cancellation.cancel()
