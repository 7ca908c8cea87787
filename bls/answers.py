"""A declared model's answers: arrays out of requests, responses out of what the model returns or raises.

Knows neither loops nor threads, so that everything that runs a model, in a server or a test, answers alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from cantata.bls.call_errors import Code, Error
from cantata.bls.declaration import Declaration
from cantata.bls.errors import TritonError, TritonErrorCode
from cantata.bls.failures import describe_failure
from cantata.bls.logger import model_log
from cantata.bls.named_tensors import Array, array_of, declared_tensor
from cantata.bls.requests import InferenceRequest
from cantata.bls.responses import InferenceResponse
from cantata.grammars.problems import suggest
from cantata.runtime.tensor import Tensor as TensorValue

# What trips those who write into the arrays that they are given.
_READ_ONLY_HINT: Final = "\nArrays that a model is given are shared with other models: change a copy of them."


class Answers:
    """Makes the answers of one model."""

    __slots__ = ("_declaration", "_leading", "model_name")

    def __init__(self, declaration: Declaration, model_name: str) -> None:
        self._declaration = declaration
        self.model_name = model_name
        self._leading = (-1,) if declaration.max_batch_size else ()

    def inputs_of(self, request: InferenceRequest) -> dict[str, Array]:
        """What the model is called with."""
        return {tensor.name(): array_of(tensor) for tensor in request.inputs()}

    def values_of(self, returned: Any) -> dict[str, TensorValue]:
        """What the model returned, as it declared it; raises Error where it is something else."""
        if not isinstance(returned, Mapping):
            raise self._mistake(f"a dictionary of the outputs is expected, not {type(returned).__name__}")
        values = {}
        for name, given in returned.items():
            declared = self._declaration.outputs.get(name)
            if declared is None:
                hint = suggest(str(name), self._declaration.outputs)
                raise self._mistake(f"there is no output '{name}'" + (f" ({hint})" if hint else ""))
            try:
                values[name] = declared.value_of(given, self._leading)
            except TypeError as error:
                raise self._mistake(f"output '{name}': {error}") from None
        return values

    def response_of(self, returned: Any) -> InferenceResponse:
        """The response that carries what the model returned; raises Error."""
        return response_with(self.values_of(returned))

    def failure_of(self, request: InferenceRequest, error: BaseException) -> InferenceResponse:
        """The response to a request whose model raised `error`; what is no `bls.Error` goes to the log as well."""
        said = _said(error)
        if said is not None:
            return _error_response(said.code, said.text)
        if isinstance(error, asyncio.CancelledError) and _is_cancelled_from_outside():
            return self._cancelled(request)
        model_log(self.model_name).error("model '%s' failed", self.model_name, exc_info=error)
        text = f"Failed to process the request(s) for model '{self.model_name}', message: {describe_failure(error)}"
        if isinstance(error, ValueError) and "read-only" in str(error):
            text += _READ_ONLY_HINT
        return _error_response(Code.INTERNAL, text)

    def _cancelled(self, request: InferenceRequest) -> InferenceResponse:
        if request.is_cancelled():
            return _error_response(Code.CANCELLED, "")
        return _error_response(
            Code.UNAVAILABLE, f"model '{self.model_name}' was unloaded before it had answered"
        )

    def _mistake(self, text: str) -> Error:
        return Error(Code.INTERNAL, f"model '{self.model_name}': {text}")


def response_with(values: Mapping[str, TensorValue]) -> InferenceResponse:
    """A response of these tensors."""
    return InferenceResponse([declared_tensor(name, value) for name, value in values.items()])


def _is_cancelled_from_outside() -> bool:
    """Whether it was this task that was cancelled, and not just something that the model awaited."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        # A plain function, on a thread without a loop.
        return False
    return task is not None and task.cancelling() > 0


def _said(error: BaseException) -> Error | None:
    """The bls.Error that was raised, also by one of several tasks of a group."""
    if isinstance(error, Error):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((said for inner in error.exceptions if (said := _said(inner)) is not None), None)
    return None


def _error_response(code: Code, text: str) -> InferenceResponse:
    return InferenceResponse(error=TritonError(text, TritonErrorCode[code.name]))
