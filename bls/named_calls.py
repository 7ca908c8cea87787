"""`bls.call` and `bls.stream`: another model, by name, with arrays in and arrays out.

Owns what a call inherits from the request being answered, its timeout, retries and fallback. Who carries it out is
the scope's caller.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy.typing as npt

from cantata.bls.call_errors import CallError, CallTimeout, Code
from cantata.bls.named_tensors import Tensors, given_tensor, tensors_of_responses
from cantata.bls.retry import Retry
from cantata.bls.scope import Call, Caller, Scope, Sequence, scope
from cantata.runtime.response import ParameterValue

Outputs: TypeAlias = Mapping[str, npt.ArrayLike]
# Another model's name, the answer itself, or a function of the error that gives the answer.
Fallback: TypeAlias = str | Outputs | Callable[[CallError], Outputs | Awaitable[Outputs]]


class _Inherited:
    """The default of what may also be None."""


_INHERITED: Final = _Inherited()
_NO_INPUTS: Final[Mapping[str, npt.ArrayLike]] = {}


async def call(
    model: str,
    inputs: Mapping[str, npt.ArrayLike] = _NO_INPUTS,
    /,
    *,
    outputs: tuple[str, ...] = (),
    version: int = -1,
    timeout: float | None = None,
    retry: Retry | None = None,
    fallback: Fallback | None = None,
    priority: int | None = None,
    parameters: Mapping[str, ParameterValue] | None = None,
    sequence: Sequence | _Inherited | None = _INHERITED,
    **named_inputs: npt.ArrayLike,
) -> Tensors:
    """Call a model and await its outputs, or those in `outputs`.

    Inputs are given by name; those whose names are no Python names, or are taken here, in a dictionary. The call
    inherits the id, priority, parameters, sequence, deadline and cancellation of the request being answered;
    `parameters` are added to the inherited ones. `timeout` is in seconds, for all attempts of `retry` together.
    `fallback` answers where the call fails. Raises CallError with the code of what went wrong.
    """
    here = scope()
    request = _call(here, model, inputs, named_inputs, outputs, version, priority, parameters, sequence)
    try:
        if timeout is None:
            return await _attempts(here.caller, request, retry)
        try:
            async with asyncio.timeout(timeout):
                return await _attempts(here.caller, request, retry)
        except TimeoutError:
            raise CallTimeout(model, timeout) from None
    except CallError as error:
        if fallback is None or error.code is Code.CANCELLED:
            raise
        return await _fall_back(here.caller, request, fallback, error)


def stream(
    model: str,
    inputs: Mapping[str, npt.ArrayLike] = _NO_INPUTS,
    /,
    *,
    outputs: tuple[str, ...] = (),
    version: int = -1,
    timeout: float | None = None,
    priority: int | None = None,
    parameters: Mapping[str, ParameterValue] | None = None,
    sequence: Sequence | _Inherited | None = _INHERITED,
    **named_inputs: npt.ArrayLike,
) -> AsyncIterator[Tensors]:
    """Call a model that answers any number of times, and iterate over its answers as they come: `async for`.

    As `call`, but `timeout` is for each answer. Leaving the loop cancels the call.
    """
    here = scope()
    request = _call(here, model, inputs, named_inputs, outputs, version, priority, parameters, sequence)
    answers = here.caller.stream(request)
    return answers if timeout is None else _timed(answers, model, timeout)


async def _attempts(caller: Caller, request: Call, retry: Retry | None) -> Tensors:
    if retry is None:
        return await caller.call(request)
    retry.called()
    attempt = 1
    while True:
        try:
            return await caller.call(request)
        except CallError as error:
            if not retry.allows(attempt, error.code):
                raise
        await asyncio.sleep(retry.pause(attempt))
        attempt += 1


async def _fall_back(caller: Caller, request: Call, fallback: Fallback, error: CallError) -> Tensors:
    if isinstance(fallback, str):
        return await caller.call(request.to(fallback))
    answer: Any = fallback(error) if callable(fallback) else fallback
    if inspect.isawaitable(answer):
        answer = await answer
    return answer if isinstance(answer, Tensors) else constant_tensors(answer)


def constant_tensors(outputs: Outputs) -> Tensors:
    """What a model would have given that answered with `outputs`."""
    return tensors_of_responses(given_tensor(name, value) for name, value in outputs.items())


async def _timed(answers: AsyncIterator[Tensors], model: str, timeout: float) -> AsyncIterator[Tensors]:
    while True:
        try:
            async with asyncio.timeout(timeout):
                answer = await anext(answers)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise CallTimeout(model, timeout) from None
        yield answer


def _call(
    here: Scope,
    model: str,
    inputs: Mapping[str, npt.ArrayLike],
    named_inputs: Mapping[str, npt.ArrayLike],
    outputs: tuple[str, ...],
    version: int,
    priority: int | None,
    parameters: Mapping[str, ParameterValue] | None,
    sequence: Sequence | _Inherited | None,
) -> Call:
    tensors = [given_tensor(name, value) for name, value in named_inputs.items()]
    if inputs:
        tensors += [given_tensor(name, value) for name, value in inputs.items()]
    inherited = here.request.inherited()
    return Call(
        model,
        tensors,
        version,
        outputs,
        inherited.id,
        inherited.priority if priority is None else priority,
        inherited.parameters if parameters is None else {**inherited.parameters, **parameters},
        inherited.sequence if isinstance(sequence, _Inherited) else sequence,
    )
