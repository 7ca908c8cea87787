"""A call of one request and one answer: the inference call, and the one for everything that is answered at once.

Owns when a call is answered, and by what. Knows no message but as bytes and errors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from cantata.runtime.admission import ByteBudget, ByteLease
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, internal_error, unsupported
from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.call import Call
from cantata.runtime.frontends.grpc.call_loop import CallLoop
from cantata.runtime.frontends.grpc.classes import RequestedClasses, requested_classes
from cantata.runtime.frontends.grpc.infer_message import decode_infer_message
from cantata.runtime.frontends.grpc.infer_request import (
    UnknownDatatypeError,
    build_request,
    parse_model_version,
)
from cantata.runtime.frontends.grpc.infer_response import check_size, encode_infer_response
from cantata.runtime.frontends.grpc.inference import InferenceService, retry_trailers
from cantata.runtime.frontends.grpc.request_errors import as_inference_error
from cantata.runtime.frontends.status_codes import GRPC_CODES
from cantata.runtime.observe.trace import GRPC
from cantata.runtime.request import Cancellation
from cantata.runtime.response import InferenceResponse
from cantata.runtime.shared_memory import RegionLease

_NO_MESSAGE: Final = "the call carried no request"

# Calls that each have a thread while they are answered: a client that gives up frees the call, not the thread.
_MOST_SLOW_CALLS: Final = 256

# Answers a serialised request with a serialised response, or raises InferenceError.
Handler = Callable[[bytes], bytes]


class UnaryCall:
    """A call that `handler` answers: on the loop's thread if it is quick, else on a thread of its own."""

    is_behind = False

    __slots__ = ("_call", "_handler", "_has_message", "_is_quick", "_loop")

    def __init__(self, loop: CallLoop, handler: Handler, is_quick: bool, call: Call) -> None:
        self._loop = loop
        self._call = call
        self._handler = handler
        self._is_quick = is_quick
        self._has_message = False

    def on_size(self, size: int) -> None:
        """Messages of all sizes are welcome."""

    def on_message(self, message: bytes | memoryview) -> None:
        if self._has_message:
            return
        self._has_message = True
        if self._is_quick:
            self._answer(bytes(message))
        elif self._loop.slow_calls >= _MOST_SLOW_CALLS:
            self._call.fail(
                codes.RESOURCE_EXHAUSTED, f"{_MOST_SLOW_CALLS} such calls are being answered already"
            )
        else:
            self._loop.slow_calls += 1
            threading.Thread(
                target=self._answer_slowly, args=(bytes(message),), name="cantata-grpc-call", daemon=True
            ).start()

    def on_half_close(self) -> None:
        if not self._has_message:
            self._call.fail(codes.INTERNAL, _NO_MESSAGE)

    def on_writable(self) -> None:
        """There is but one message."""

    def on_closed(self, was_cancelled: bool) -> None:
        """The handler is left to end; nobody hears it."""

    def _answer_slowly(self, message: bytes) -> None:
        try:
            self._answer(message)
        finally:
            self._loop.run_here(self._loop.slow_call_ended)

    def _answer(self, message: bytes) -> None:
        call = self._call
        try:
            answer = self._handler(message)
        except Exception as error:
            refusal = as_inference_error(error)
            self._loop.run_here(partial(call.fail, GRPC_CODES[refusal.code], refusal.message))
        else:
            self._loop.run_here(partial(call.answer, answer))


class InferCall:
    """A ModelInfer call, and the sender of its one response."""

    is_behind = False

    __slots__ = (
        "_call",
        "_cancellation",
        "_classes",
        "_earlier",
        "_has_message",
        "_lease",
        "_regions",
        "_service",
    )

    def __init__(self, service: InferenceService, call: Call) -> None:
        self._service = service
        self._call = call
        self._has_message = False
        self._cancellation: Cancellation | None = None
        self._classes: RequestedClasses | None = None
        self._regions: RegionLease | None = None
        # Responses that were not final; there should be none.
        self._earlier: list[InferenceResponse] | None = None
        # What it holds of the server's budget of bytes, if there is one.
        self._lease: ByteLease | None = None
        if service.compresses:
            service.compress(call)

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

    def on_size(self, size: int) -> None:
        budget = self._service.byte_budget
        if budget is None or self._has_message:
            return
        try:
            self._hold(budget, size)
        except InferenceError as error:
            self._fail(error)

    def on_message(self, message: bytes | memoryview) -> None:
        if self._has_message:
            return
        self._has_message = True
        received_ns = monotonic_ns()
        budget = self._service.byte_budget
        try:
            if self._lease is not None:
                # It may have come compressed.
                self._lease.resize(len(message))
            elif budget is not None:
                self._hold(budget, len(message))
            self._submit(message, received_ns)
        except Exception as error:
            self._fail(as_inference_error(error))
        else:
            self._service.loop.request_round()

    def on_half_close(self) -> None:
        if not self._has_message:
            self._fail(internal_error(_NO_MESSAGE))

    def on_writable(self) -> None:
        """There is but one message."""

    def on_closed(self, was_cancelled: bool) -> None:
        if self._lease is not None and not self._has_message:
            self._lease.release()
        if was_cancelled and self._cancellation is not None:
            self._cancellation.cancel()

    def _hold(self, budget: ByteBudget, size: int) -> None:
        """Take what the message needs; raises InferenceError where that is not to be had."""
        self._lease = ByteLease(size)
        self._lease.hold(budget)

    def _submit(self, message: bytes | memoryview, received_ns: int) -> None:
        service = self._service
        service.check_accepting()
        decoded = decode_infer_message(message)
        version = parse_model_version(decoded.model_version)
        model = service.server.model(decoded.model_name, version)
        if model.is_decoupled:
            raise unsupported("ModelInfer RPC doesn't support models with decoupled transaction policy")
        if decoded.outputs:
            self._classes = requested_classes(decoded, model)
        try:
            request = build_request(
                decoded,
                version,
                self,
                received_ns,
                self._call.deadline_ns,
                None,
                service.server.shared_memory,
            )
        except UnknownDatatypeError as error:
            raise error.for_model(model.spec) from None
        finally:
            self._regions = decoded.regions
        self._cancellation = request.cancellation
        metadata = self._call.metadata
        if service.forwarding is not None:
            service.forward_headers(request, metadata)
        tracer = service.server.tracer
        if tracer.is_on or request.parameters is not None:
            tracer.begin(request, GRPC, metadata)
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
            check_size(message)
        except Exception as error:
            self._fail(as_inference_error(error))
            return
        if self._regions is not None:
            self._regions.release()
        loop = self._service.loop
        if loop.is_current_thread():
            self._call.answer(message)
        else:
            loop.run_here(partial(self._call.answer, message))

    def _fail(self, error: InferenceError) -> None:
        if self._regions is not None:
            self._regions.release()
        if self._lease is not None:
            self._lease.release()
        trailers = retry_trailers(error.retry_after_s)
        self._service.loop.run_here(partial(self._call.fail, GRPC_CODES[error.code], error.message, trailers))
