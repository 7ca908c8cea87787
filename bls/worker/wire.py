"""Requests, responses and tensors as the plain tuples of messages, and back.

Small tensors lie in the message, large ones in the arena: one copy by the sender, none by the receiver. Knows
nothing of processes, or of who answers whom.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import numpy as np

from cantata.bls.worker.arena import ArenaReader, ArenaWriter
from cantata.runtime.datatypes import NUMPY_DTYPES, DataType
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.execution import Execution
from cantata.runtime.request import Cancellation, InferenceRequest, ResponseSender
from cantata.runtime.response import InferenceResponse, ParameterValue
from cantata.runtime.tensor import Tensor, tensor_of_raw

WireTensor: TypeAlias = tuple[str, int, tuple[int, ...], Any]
WireResponse: TypeAlias = tuple[Any, ...]
WireRequest: TypeAlias = tuple[Any, ...]
# Whether a request runs again, and the states of its sequence.
WireSequel: TypeAlias = tuple[int, list[WireTensor] | None]
WireError: TypeAlias = tuple[str, str]
# What waits for a call: a batch by its number (True), or whatever waits for the request of that key (False).
WireWait: TypeAlias = tuple[bool, int]

# Up to here copying a tensor into the message and out of it costs less than finding room in the arena.
_MOST_INLINE_BYTES: Final = 16_384

_DATATYPES: Final = {int(datatype): (datatype, NUMPY_DTYPES[datatype]) for datatype in DataType}
_PLAIN: Final = (str, int, float, bool)


def encode_tensors(tensors: Mapping[str, Tensor], arena: ArenaWriter) -> list[WireTensor]:
    """Raises ArenaFullError."""
    encoded: list[WireTensor] = []
    for name, tensor in tensors.items():
        array = tensor.array
        payload: Any
        if tensor.datatype is DataType.BYTES:
            raw = tensor.raw_bytes()
            payload = raw if len(raw) <= _MOST_INLINE_BYTES else arena.store_bytes(raw)
        elif array.nbytes <= _MOST_INLINE_BYTES:
            payload = array.tobytes()
        else:
            payload = arena.store(array)
        encoded.append((name, int(tensor.datatype), array.shape, payload))
    return encoded


def decode_tensors(encoded: list[WireTensor], arena: ArenaReader) -> dict[str, Tensor]:
    """Raises ValueError for what is no list of tensors."""
    tensors: dict[str, Tensor] = {}
    for name, number, shape, payload in encoded:
        datatype, dtype = _DATATYPES[number]
        if datatype is DataType.BYTES:
            raw = payload if type(payload) is bytes else arena.bytes_of(payload)
            tensors[name] = tensor_of_raw(datatype, shape, raw)
        elif type(payload) is bytes:
            array: np.ndarray[Any, Any] = np.frombuffer(payload, dtype)
            tensors[name] = Tensor(datatype, array if array.shape == shape else array.reshape(shape))
        else:
            tensors[name] = Tensor(datatype, arena.array(payload, dtype, shape))
    return tensors


def encode_request(key: int, request: InferenceRequest, arena: ArenaWriter) -> WireRequest:
    """`key` is what messages about the request call it. Raises ArenaFullError."""
    parameters = request.parameters
    return (
        key,
        request.model_name,
        request.model_version,
        request.id,
        request.correlation_id,
        request.flags,
        request.priority,
        request.timeout_us,
        request.deadline_ns,
        request.requested_outputs,
        None if parameters is None else plain_parameters(parameters),
        request.batch_size,
        request.received_ns,
        _trace_of(request),
        bool(request.waiting),
        encode_tensors(request.inputs, arena),
    )


def decode_request(
    encoded: WireRequest, sender: ResponseSender, cancellation: Cancellation, arena: ArenaReader
) -> InferenceRequest:
    """Raises ValueError for what is no request."""
    (
        key,
        model_name,
        model_version,
        request_id,
        correlation_id,
        flags,
        priority,
        timeout_us,
        deadline_ns,
        requested_outputs,
        parameters,
        batch_size,
        received_ns,
        trace,
        _is_waited_for,
        inputs,
    ) = encoded
    request = InferenceRequest(model_name, decode_tensors(inputs, arena), sender, received_ns, cancellation)
    request.model_version = model_version
    request.id = request_id
    request.requested_outputs = requested_outputs
    request.correlation_id = correlation_id
    request.flags = flags
    request.priority = priority
    request.timeout_us = timeout_us
    request.deadline_ns = deadline_ns
    request.parameters = parameters
    request.batch_size = batch_size
    if type(trace) is str:
        request.trace = RemoteTrace(key, trace)
    return request


class RemoteTrace:
    """The trace of a request of the server's, in a model's process: it leads to the traces of calls. See Trace."""

    __slots__ = ("_carrier", "key")

    def __init__(self, key: int, carrier: str) -> None:
        # Of the request that the server traces.
        self.key = key
        self._carrier = carrier

    def child(self, *, step: int | None = None) -> RemoteTrace:
        """The server makes it: it is told of whose trace a call is part."""
        return self

    def answered(self, request: InferenceRequest, response: InferenceResponse | None, final: bool) -> None:
        """The server sees it."""

    def ended(self, request: InferenceRequest) -> None:
        """The server sees it."""

    def carrier(self) -> str:
        """See Trace."""
        return self._carrier


def _trace_of(request: InferenceRequest) -> int | str | None:
    """What a traced request's process hands on or, in a process, whose trace a call is part of."""
    trace = request.trace
    if trace is None:
        return None
    return trace.key if isinstance(trace, RemoteTrace) else trace.carrier()


def traced_key(encoded: WireRequest) -> int | None:
    """The key of the request whose trace a call from a process is part of; None where it is of none."""
    trace = encoded[-3]
    return trace if type(trace) is int else None


def is_waited_for(encoded: WireRequest) -> bool:
    """Whether an execution somewhere waits for the answer to a request."""
    return bool(encoded[-2])


def encode_response(response: InferenceResponse, arena: ArenaWriter) -> WireResponse:
    """A response whose tensors find no room becomes the error that says so."""
    error = response.error
    if error is not None:
        return (None, None, encode_error(error))
    parameters = response.parameters
    try:
        outputs = encode_tensors(response.outputs, arena)
    except InferenceError as failure:
        return (None, None, encode_error(failure))
    return (outputs, None if parameters is None else plain_parameters(parameters), None)


def decode_response(
    encoded: WireResponse, model_name: str, model_version: int, request_id: str, arena: ArenaReader
) -> InferenceResponse:
    """Raises ValueError for what is no response."""
    outputs, parameters, error = encoded
    if error is not None:
        return InferenceResponse(model_name, model_version, request_id, {}, None, decode_error(error))
    return InferenceResponse(
        model_name, model_version, request_id, decode_tensors(outputs, arena), parameters
    )


class Again(enum.IntEnum):
    """Whether a request runs again before it is answered; CARRIED with the response sender that it has."""

    NO = 0
    YES = 1
    CARRIED = 2


def encode_sequels(execution: Execution, arena: ArenaWriter) -> list[WireSequel] | None:
    """What the next requests of sequences build on; raises ArenaFullError."""
    rescheduled = execution.rescheduled_requests()
    if not rescheduled and not execution.spec.state_outputs:
        return None
    sequels: list[WireSequel] = []
    for request in execution.requests:
        again = Again.NO
        if request in rescheduled:
            again = Again.YES if request.carried is None else Again.CARRIED
        states = encode_tensors(request.states, arena) if request.states else None
        sequels.append((int(again), states))
    return sequels


def encode_error(error: InferenceError) -> WireError:
    return (error.code.name, error.message)


def decode_error(encoded: WireError) -> InferenceError:
    name, message = encoded
    return InferenceError(StatusCode[name], message)


def plain_parameters(parameters: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
    """Without subclasses of the plain types, such as numpy's strings and enumerations, which no message holds."""
    return {str(key): _plain(value) for key, value in parameters.items()}


def _plain(value: ParameterValue) -> ParameterValue:
    if type(value) in _PLAIN:
        return value
    for plain_type in _PLAIN:
        if isinstance(value, plain_type):
            return plain_type(value)
    return str(value)
