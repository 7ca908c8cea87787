"""BLS: a model calls another, waiting in its thread or on its event loop.

Owns the way from a model's request to the server's and back. Tensors pass by reference, and no thread is crossed
where the called model is idle. Whatever is wrong with a call becomes a response with an error (reference, section
7.3).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cantata.bls.current_model import Activity
from cantata.bls.errors import TritonError, triton_error
from cantata.bls.response_iterator import ResponseFeed, ResponseIterator
from cantata.bls.responses import InferenceResponse, received_response
from cantata.bls.submission import submit_now, submit_waiting, submit_with_others, while_running
from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, StatusCode, invalid_argument
from cantata.runtime.execution.calls import WaitingSender, submit_and_wait
from cantata.runtime.execution.worker_pool import about_to_wait
from cantata.runtime.request import Cancellation, LinkedCancellation, ResponseSender
from cantata.runtime.request import InferenceRequest as RuntimeRequest
from cantata.runtime.response import InferenceResponse as RuntimeResponse

if TYPE_CHECKING:
    from cantata.bls.requests import InferenceRequest


def call(
    request: InferenceRequest, activity: Activity, decoupled: bool
) -> InferenceResponse | ResponseIterator:
    """Call the model and wait for its response, or have an iterator over its responses."""
    notes = activity.notes
    if notes is not None:
        notes.makes_blocking_calls = True
        if notes.requests_in_hand > 1:
            submit_waiting()
    else:
        activity.model.calls_from_threads = True
    if decoupled:
        return _open_iterator(request, activity)
    services = activity.model.services
    caller = _caller(request, activity)
    cancellation = None if caller is None else caller.cancellation
    # A timeout of its own must not end its caller.
    linked = LinkedCancellation(cancellation) if request._timeout else None
    sender = WaitingSender()
    try:
        runtime_request = _runtime_request(
            request, activity, caller, sender, cancellation if linked is None else linked
        )
        if services.run_now(runtime_request):
            responses = sender.wait()
        elif (refusal := _refusal(request, activity, decoupled)) is None:
            responses = submit_and_wait(services, runtime_request, sender)
        else:
            return _failed(refusal)
    except InferenceError as error:
        return _failed(_told_of(error, request, activity))
    finally:
        if linked is not None:
            linked.unlink()
    return received_response(responses[0]) if responses else InferenceResponse()


def call_async(
    request: InferenceRequest,
    activity: Activity,
    decoupled: bool,
    loop: asyncio.AbstractEventLoop,
    *,
    is_fanned_out: bool = False,
) -> asyncio.Future[InferenceResponse | ResponseIterator]:
    """Call the model; the future of its response, or of an iterator over its responses, on `loop`.

    The call is on its way when the loop's turn ends, if not before. Cancelling the future cancels it.
    """
    notes = activity.notes
    if notes is None:
        activity.model.calls_from_threads = True
    elif not notes.is_async:
        # The loop is one that a plain `execute` runs and waits for.
        notes.makes_blocking_calls = True
    future: asyncio.Future[InferenceResponse | ResponseIterator] = loop.create_future()
    if decoupled:
        future.set_result(_open_iterator(request, activity))
        return future
    caller = _caller(request, activity)
    cancellation = LinkedCancellation(None if caller is None else caller.cancellation)
    services = activity.model.services
    sender = _FutureSender(loop, future, cancellation)
    try:
        runtime_request = _runtime_request(request, activity, caller, sender, cancellation)
        goes_with_others = is_fanned_out or _goes_with_others(request, activity)
        # What a quick model answers here and now needs no queue.
        if goes_with_others or not services.run_now(runtime_request, only_if_quick=True):
            if (refusal := _refusal(request, activity, decoupled)) is not None:
                cancellation.unlink()
                future.set_result(_failed(refusal))
                return future
            submit = submit_with_others if goes_with_others else submit_now
            submit(services, runtime_request)
    except InferenceError as error:
        cancellation.unlink()
        future.set_result(_failed(_told_of(error, request, activity)))
        return future
    if not future.done():
        future.add_done_callback(sender.cancel_if_cancelled)
        # The loop may be one that a plain `execute` runs and waits for.
        about_to_wait()
    return future


def _goes_with_others(request: InferenceRequest, activity: Activity) -> bool:
    """Whether it is one of the calls that several requests make of a quick model, which takes them together."""
    notes = activity.notes
    return (
        notes is not None
        and notes.requests_in_hand > 1
        and activity.model.services.batches_here(request._model_name, request._model_version)
    )


class _FutureSender:
    """The sender of a call that is awaited: resolves its future, from whichever thread the response comes."""

    __slots__ = ("_cancellation", "_future", "_loop", "_response", "_thread_id")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[InferenceResponse | ResponseIterator],
        cancellation: LinkedCancellation,
    ) -> None:
        self._loop = loop
        self._future = future
        self._cancellation = cancellation
        self._thread_id = threading.get_ident()
        self._response: RuntimeResponse | None = None

    def send(self, response: RuntimeResponse | None, final: bool) -> None:
        if response is not None:
            self._response = response
        if not final:
            return
        self._cancellation.unlink()
        if threading.get_ident() == self._thread_id:
            self._resolve()
            return
        try:
            self._loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:
            # The loop was closed (an `asyncio.run` that did not wait): nobody is left to be told.
            self._response = None

    def wait_until_ready(self) -> None:
        """The one response is always expected."""

    def cancel_if_cancelled(self, future: asyncio.Future[InferenceResponse | ResponseIterator]) -> None:
        """The model has stopped waiting, by a timeout of its own for example."""
        if future.cancelled():
            self._cancellation.cancel()

    def _resolve(self) -> None:
        if self._future.done():
            return
        response = self._response
        self._future.set_result(InferenceResponse() if response is None else received_response(response))


def _open_iterator(request: InferenceRequest, activity: Activity) -> ResponseIterator:
    caller = _caller(request, activity)
    cancellation = LinkedCancellation(None if caller is None else caller.cancellation)
    feed = ResponseFeed(cancellation, cancellation.unlink)
    iterator = ResponseIterator(feed, activity.model.reaper)
    refusal = _refusal(request, activity, True)
    if refusal is None:
        try:
            activity.model.services.submit(_runtime_request(request, activity, caller, feed, cancellation))
        except InferenceError as error:
            refusal = while_running(request._model_name, error)
    if refusal is not None:
        feed.send(
            RuntimeResponse(
                request.model_name(), request.model_version(), request.request_id(), {}, None, refusal
            ),
            True,
        )
    return iterator


def refusal_of(
    services: ServerServices, model_name: str, model_version: int, decoupled: bool
) -> InferenceError | None:
    """Why a model cannot be called in this way; None where it can."""
    try:
        is_decoupled = services.is_decoupled(model_name, model_version)
    except InferenceError as error:
        text = f"Failed for execute the inference request. Model '{model_name}' is not ready."
        return InferenceError(error.code, text)
    if is_decoupled and not decoupled:
        return InferenceError(
            StatusCode.UNSUPPORTED,
            f"Model {model_name} is using the decoupled. The current BLS request call doesn't support models using "
            "the decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' "
            "calls for decoupled models.",
        )
    return None


def _refusal(request: InferenceRequest, activity: Activity, decoupled: bool) -> InferenceError | None:
    model = activity.model
    if model.leaves_refusals:
        return None
    return refusal_of(model.services, request._model_name, request._model_version, decoupled)


def _told_of(error: InferenceError, request: InferenceRequest, activity: Activity) -> InferenceError:
    """What the model that called is told of a refusal.

    That its callee cannot be called for one response says more than what is wrong with the call.
    """
    return _refusal(request, activity, False) or while_running(request._model_name, error)


def _caller(request: InferenceRequest, activity: Activity) -> RuntimeRequest | None:
    """The request that a call is made for: its trace's or, of a batch of one, that one. None where nothing tells."""
    trace = request._trace
    if trace is not None and trace._received is not None:
        return trace._received
    requests = activity.requests
    return requests[0] if len(requests) == 1 else None


def _runtime_request(
    request: InferenceRequest,
    activity: Activity,
    caller: RuntimeRequest | None,
    sender: ResponseSender,
    cancellation: Cancellation | None,
) -> RuntimeRequest:
    tensors = request.inputs()
    inputs = {tensor._name: tensor._value for tensor in tensors}
    if len(inputs) != len(tensors):
        names = [tensor._name for tensor in tensors]
        repeated = next(name for name in names if names.count(name) > 1)
        raise invalid_argument(f"input '{repeated}' already exists in request")
    now_ns = monotonic_ns()
    timeout_us, deadline_ns = request._timeout, 0
    if caller is not None:
        deadline_ns = caller.deadline_ns
        if caller.timeout_us:
            left_us = caller.timeout_left_us(now_ns)
            timeout_us = min(timeout_us, left_us) if timeout_us else left_us
    elif activity.requests:
        deadline_ns = _deadline_of_all(activity.requests)
    made = RuntimeRequest(request._model_name, inputs, sender, now_ns, cancellation)
    made.model_version = request._model_version
    made.id = request._id
    made.requested_outputs = request._requested_output_names
    made.correlation_id = request._correlation_id
    made.flags = request._flags
    made.priority = request._priority
    made.timeout_us = timeout_us
    made.deadline_ns = deadline_ns
    made.parameters = request._parameters
    made.waiting = activity.waiting()
    if caller is not None and caller.trace is not None:
        made.trace = caller.trace.child()
    return made


def _deadline_of_all(requests: Sequence[RuntimeRequest]) -> int:
    """When the last request of a batch is past its deadline; raises InferenceError where nobody waits any more."""
    if all(request.cancellation.is_cancelled for request in requests):
        raise InferenceError(StatusCode.CANCELLED, "")
    deadlines = [request.deadline_ns for request in requests]
    return max(deadlines) if all(deadlines) else 0


def _failed(error: InferenceError) -> InferenceResponse:
    failure: TritonError = triton_error(error)
    return InferenceResponse(error=failure)
