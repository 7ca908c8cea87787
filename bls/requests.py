"""pb_utils.InferenceRequest: what a model is asked, and what it asks other models.

Owns the fields and their checks. How a request is sent to another model is `calls.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from operator import index
from typing import Final

from cantata.bls import calls
from cantata.bls.current_model import Activity, current_activity, find_activity
from cantata.bls.errors import TritonModelException
from cantata.bls.memory import PreferredMemory
from cantata.bls.parameters import RESERVED, checked_parameters
from cantata.bls.response_iterator import ResponseIterator
from cantata.bls.response_sender import InferenceResponseSender, OpenStreams
from cantata.bls.responses import InferenceResponse
from cantata.bls.tensor import Tensor, shared_tensor
from cantata.runtime.request import InferenceRequest as RuntimeRequest
from cantata.runtime.response import ParameterValue

TRITONSERVER_REQUEST_RELEASE_ALL: Final = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE: Final = 2
_FLAGS = 3
_CORRELATION_IDS: Final = (int, str)


class InferenceTrace:
    """The trace of a received request. A call that is given it is made for that request, and is part of its trace."""

    __slots__ = ("_received",)

    def __init__(self) -> None:
        self._received: RuntimeRequest | None = None

    @property
    def context(self) -> str | None:
        """The request's span, for other services that it leads to: a JSON object of the W3C headers.

        None for a request that is not traced with OpenTelemetry.
        """
        trace = None if self._received is None else self._received.trace
        return (trace.carrier() or None) if trace is not None else None

    def get_context(self) -> str | None:
        """The same as `context`."""
        return self.context


class InferenceRequest:
    """A request received by `execute`, or one made by a model to call another.

    A call inherits the deadline, the cancellation and the trace of the request in whose `execute` it is made, where
    the batch there has one request; with several, of the one whose `trace` it is given, or of none.
    """

    __slots__ = (
        "_activity",
        "_correlation_id",
        "_flags",
        "_id",
        "_inputs",
        "_model_name",
        "_model_version",
        "_open_streams",
        "_parameters",
        "_priority",
        "_received",
        "_release_flags",
        "_requested_output_names",
        "_sender",
        "_timeout",
        "_trace",
    )

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: dict[str, ParameterValue] | None = None,
        priority: int = 0,
    ) -> None:
        if not isinstance(correlation_id, _CORRELATION_IDS):
            raise TritonModelException("Correlation ID must be integer or string")
        for tensor in inputs:
            if not isinstance(tensor, Tensor):
                raise _no_tensor(tensor, request_id, model_name)
        for name in requested_output_names:
            if not name:
                raise TritonModelException(f"Requested output name {_empty_in(request_id, model_name)}")
        if timeout or priority or flags or model_version != -1:
            # What is no integer would fail in the called model's scheduler, and hurt others than the caller.
            timeout, priority, flags = index(timeout), index(priority), index(flags)
            model_version = index(model_version)
        self._id = request_id
        self._correlation_id = correlation_id
        self._inputs: list[Tensor] | None = list(inputs)
        self._requested_output_names: tuple[str, ...] = tuple(requested_output_names)
        self._model_name = model_name
        self._model_version = model_version
        self._flags = flags
        self._release_flags = TRITONSERVER_REQUEST_RELEASE_ALL
        self._timeout = timeout
        self._priority = priority
        self._trace = trace
        self._parameters: dict[str, ParameterValue] | None = (
            None if parameters is None else checked_parameters(parameters)
        )
        # Remembered here, because `exec` may be run by an executor's thread that shows no trace of the model.
        self._activity: Activity | None = current_activity.get()
        self._received: RuntimeRequest | None = None
        self._open_streams: OpenStreams | None = None
        self._sender: InferenceResponseSender | None = None

    def inputs(self) -> list[Tensor]:
        inputs = self._inputs
        if inputs is None:
            assert self._received is not None
            inputs = self._inputs = [
                shared_tensor(name, value) for name, value in self._received.inputs.items()
            ]
        return inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        if flags & ~_FLAGS:
            raise TritonModelException(f"unsupported request flags: {flags}")
        self._flags = flags

    def set_release_flags(self, flags: int) -> None:
        """What becomes of the request after `execute`: it is over, or runs again as its sequence's next iteration."""
        if flags not in (TRITONSERVER_REQUEST_RELEASE_ALL, TRITONSERVER_REQUEST_RELEASE_RESCHEDULE):
            raise TritonModelException(f"unsupported request release flags: {flags}")
        self._release_flags = flags

    def timeout(self) -> int:
        """In microseconds; 0 for none."""
        return self._timeout

    def priority(self) -> int:
        """0 for the called model's default."""
        return self._priority

    def model_name(self) -> str:
        return self._model_name

    def model_version(self) -> int:
        return self._model_version

    def parameters(self) -> str:
        """The request's own parameters as JSON, without those that are fields of the request."""
        if not self._parameters:
            return "{}"
        return json.dumps({key: value for key, value in self._parameters.items() if key not in RESERVED})

    def trace(self) -> InferenceTrace:
        trace = self._trace
        if trace is None:
            trace = self._trace = InferenceTrace()
            trace._received = self._received
        return trace

    def requested_output_names(self) -> list[str]:
        """Those asked for; of a received request that names none, all of the model's."""
        names = self._requested_output_names
        if not names and self._open_streams is not None:
            names = self._open_streams.outputs.names
        return list(names)

    def get_response_sender(self) -> InferenceResponseSender:
        """What answers this request, now or after `execute` has returned; the same object each time."""
        if self._sender is None:
            if self._open_streams is None or self._received is None:
                raise TritonModelException(
                    "Only a request that was received by execute has a response sender."
                )
            self._sender = self._open_streams.open(self._received)
        return self._sender

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._received is not None and self._received.cancellation.is_cancelled

    def exec(self, decoupled: bool = False) -> InferenceResponse | ResponseIterator:
        """Call the model and wait. Whatever is wrong with the call is a response with an error."""
        return calls.call(self, self._calling_activity(), decoupled)

    def async_exec(self, decoupled: bool = False) -> asyncio.Future[InferenceResponse | ResponseIterator]:
        """Call the model without waiting: the future of its response, on the running event loop."""
        loop = asyncio.get_running_loop()
        return calls.call_async(self, self._calling_activity(), decoupled, loop)

    def _calling_activity(self) -> Activity:
        activity = current_activity.get() or self._activity or find_activity()
        if activity is None or not activity.allows_calls:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        return activity


def _no_tensor(found: object, request_id: str, model_name: str) -> Exception:
    """The error of what is among a request's inputs and is no tensor."""
    if found is None:
        return TritonModelException(f"Input tensor {_empty_in(request_id, model_name)}")
    return TypeError(f"expected a Tensor in the request's inputs, found type '{type(found)}'")


def _empty_in(request_id: str, model_name: str) -> str:
    return f"for request with id '{request_id}' and model name '{model_name}' should not be empty."


def received_request(request: RuntimeRequest, open_streams: OpenStreams) -> InferenceRequest:
    """A request as `execute` gets it. Its tensors are made when they are asked for."""
    received = InferenceRequest.__new__(InferenceRequest)
    received._id = request.id
    received._correlation_id = request.correlation_id
    received._inputs = None
    received._requested_output_names = request.requested_outputs
    received._model_name = request.model_name
    received._model_version = request.model_version
    received._flags = request.flags
    received._release_flags = TRITONSERVER_REQUEST_RELEASE_ALL
    received._timeout = request.timeout_us
    received._priority = request.priority
    received._trace = None
    received._parameters = request.parameters
    received._activity = None
    received._received = request
    received._open_streams = open_streams
    received._sender = None
    return received


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """The input called `name`, or None."""
    received = inference_request._received
    if inference_request._inputs is None and received is not None:
        value = received.inputs.get(name)
        return None if value is None else shared_tensor(name, value)
    for tensor in inference_request.inputs():
        if tensor.name() == name:
            return tensor
    return None


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The output called `name`, or None."""
    for tensor in inference_response.output_tensors():
        if tensor.name() == name:
            return tensor
    return None
