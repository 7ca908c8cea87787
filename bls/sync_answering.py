"""How a plain `def` model answers: on the instance's thread, one request, or one stack of them, after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

from cantata.bls.answers import Answers
from cantata.bls.declaration import Declaration
from cantata.bls.requests import InferenceRequest
from cantata.bls.response_sender import TRITONSERVER_RESPONSE_COMPLETE_FINAL
from cantata.bls.responses import InferenceResponse
from cantata.bls.scope import Request, Scope, current_scope
from cantata.bls.server_caller import ServerCaller
from cantata.bls.stacking import Stack

_CALLER: Final = ServerCaller()


class SyncAnswering:
    """`execute` for a function or generator function."""

    def __init__(self, declaration: Declaration, answers: Answers, function: Callable[..., Any]) -> None:
        self._answers = answers
        self._function = function
        self._is_decoupled = declaration.is_decoupled
        self._stacks = declaration.max_batch_size > 0

    def execute(self, requests: list[InferenceRequest]) -> list[InferenceResponse] | None:
        """See TritonPythonModel.execute."""
        if self._is_decoupled:
            for request in requests:
                self._stream(request)
            return None
        if self._stacks and len(requests) > 1 and Stack.fits(requests):
            return self._answer_stack(requests)
        return [self._answer(request) for request in requests]

    def _answer(self, request: InferenceRequest) -> InferenceResponse:
        token = current_scope.set(Scope(Request(request), _CALLER))
        try:
            return self._answers.response_of(self._function(**self._answers.inputs_of(request)))
        except BaseException as error:
            return self._answers.failure_of(request, error)
        finally:
            current_scope.reset(token)

    def _answer_stack(self, requests: list[InferenceRequest]) -> list[InferenceResponse]:
        stack = Stack(requests, self._answers)
        token = current_scope.set(Scope(Request(InferenceRequest()), _CALLER))
        try:
            return stack.responses_of(self._function(**stack.inputs))
        except BaseException as error:
            return stack.failures_of(error)
        finally:
            current_scope.reset(token)

    def _stream(self, request: InferenceRequest) -> None:
        sender = request.get_response_sender()
        token = current_scope.set(Scope(Request(request), _CALLER))
        try:
            with closing(self._function(**self._answers.inputs_of(request))) as yielded:
                for outputs in yielded:
                    sender.send(self._answers.response_of(outputs))
                    if sender.is_cancelled():
                        break
            sender.send(flags=TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except BaseException as error:
            sender.send(self._answers.failure_of(request, error), TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        finally:
            current_scope.reset(token)
