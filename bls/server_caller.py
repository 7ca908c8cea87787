"""Carries out the calls of `cantata.bls` through the server that hosts the calling model.

Owns the translation between calls and pb_utils requests. The way into the server is `calls.py`, as for pb_utils.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from cantata.bls import calls
from cantata.bls.call_errors import CallError
from cantata.bls.named_tensors import Tensors, tensors_of_responses
from cantata.bls.requests import InferenceRequest
from cantata.bls.response_iterator import ResponseIterator
from cantata.bls.responses import InferenceResponse
from cantata.bls.scope import Call
from cantata.bls.submission import fans_out
from cantata.runtime.errors import StatusCode

# Why a decoupled model cannot be called.
ANSWERS_OFTEN: Final = "it may answer any number of times: use bls.stream"


class ServerCaller:
    """See Caller. The calling model is found by its context."""

    async def call(self, call: Call) -> Tensors:
        request = request_of(call)
        loop = asyncio.get_running_loop()
        activity = request._calling_activity()
        response = await calls.call_async(request, activity, False, loop, is_fanned_out=fans_out.get())
        assert isinstance(response, InferenceResponse)
        try:
            return _tensors(call.model, response)
        except CallError as error:
            if error.code is StatusCode.UNSUPPORTED and activity.model.services.is_decoupled(
                call.model, call.version
            ):
                # What pb_utils says of it names arguments that there are none of here.
                raise CallError(error.code, ANSWERS_OFTEN, call.model) from None
            raise

    def stream(self, call: Call) -> AsyncIterator[Tensors]:
        request = request_of(call)
        responses = calls.call(request, request._calling_activity(), True)
        assert isinstance(responses, ResponseIterator)
        responses.read_once()
        return _Answers(call.model, responses)


class _Answers:
    """The answers of one streamed call; dropping the responses cancels it."""

    __slots__ = ("_model", "_responses")

    def __init__(self, model: str, responses: ResponseIterator) -> None:
        self._model = model
        self._responses = responses

    def __aiter__(self) -> AsyncIterator[Tensors]:
        return self

    async def __anext__(self) -> Tensors:
        return _tensors(self._model, await anext(self._responses))


def request_of(call: Call) -> InferenceRequest:
    """A call as pb_utils makes it."""
    sequence = call.sequence
    return InferenceRequest(
        request_id=call.id,
        correlation_id=0 if sequence is None else sequence.id,
        inputs=call.inputs,
        requested_output_names=call.outputs,
        model_name=call.model,
        model_version=call.version,
        flags=0 if sequence is None else sequence.flags,
        parameters=dict(call.parameters) if call.parameters else None,
        priority=call.priority,
    )


def _tensors(model: str, response: InferenceResponse) -> Tensors:
    error = response.error()
    if error is not None:
        raise CallError(StatusCode[error.code().name], error.message(), model)
    return tensors_of_responses(response.output_tensors())
