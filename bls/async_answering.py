"""How an `async def` model answers: every request is a task of its own, and as many run as have come.

A request that is cancelled cancels its task. A model that yields waits for a reader that is far behind.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final

from cantata.bls.answers import Answers
from cantata.bls.current_model import Activity, current_activity
from cantata.bls.declaration import Declaration
from cantata.bls.requests import InferenceRequest
from cantata.bls.response_sender import TRITONSERVER_RESPONSE_COMPLETE_FINAL, InferenceResponseSender
from cantata.bls.responses import InferenceResponse
from cantata.bls.scope import Request, Scope, current_scope
from cantata.bls.server_caller import ServerCaller
from cantata.bls.stacking import Stack
from cantata.bls.submission import fans_out
from cantata.runtime.request import InferenceRequest as RuntimeRequest

# How many answers a model yields before it looks whether its reader keeps up: asking takes another thread.
_ANSWERS_BETWEEN_WAITS: Final = 64
_CALLER: Final = ServerCaller()


class AsyncAnswering:
    """`execute` for an async function or async generator function."""

    def __init__(self, declaration: Declaration, answers: Answers, function: Callable[..., Any]) -> None:
        self._answers = answers
        self._function = function
        self._is_decoupled = declaration.is_decoupled
        self._stacks = declaration.max_batch_size > 0

    async def execute(self, requests: list[InferenceRequest]) -> list[InferenceResponse] | None:
        """See TritonPythonModel.execute."""
        if self._is_decoupled:
            await asyncio.gather(*(self._stream(request) for request in requests))
            return None
        if len(requests) == 1:
            return [await self._answer(requests[0])]
        if self._stacks and Stack.fits(requests):
            return await self._answer_stack(requests)
        await asyncio.gather(*(self._answer_apart(request) for request in requests))
        return None

    async def _answer(self, request: InferenceRequest) -> InferenceResponse:
        with _answering(request):
            try:
                return self._answers.response_of(await self._function(**self._answers.inputs_of(request)))
            except BaseException as error:
                return self._answers.failure_of(request, error)

    async def _answer_apart(self, request: InferenceRequest) -> None:
        """Answer one of several requests without waiting for the others."""
        answer = await self._answer(request)
        request.get_response_sender().send(answer, TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _answer_stack(self, requests: Sequence[InferenceRequest]) -> list[InferenceResponse]:
        stack = Stack(requests, self._answers)
        current_scope.set(Scope(Request(InferenceRequest()), _CALLER))
        fans_out.set(False)
        try:
            return stack.responses_of(await self._function(**stack.inputs))
        except BaseException as error:
            return stack.failures_of(error)

    async def _stream(self, request: InferenceRequest) -> None:
        sender = request.get_response_sender()
        with _answering(request):
            try:
                await self._send_all(request, sender, self._function(**self._answers.inputs_of(request)))
            except BaseException as error:
                sender.send(self._answers.failure_of(request, error), TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                sender.send(flags=TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _send_all(
        self, request: InferenceRequest, sender: InferenceResponseSender, yielded: AsyncGenerator[Any, None]
    ) -> None:
        received = request._received
        assert received is not None
        until_wait = _ANSWERS_BETWEEN_WAITS
        async with aclosing(yielded):
            async for outputs in yielded:
                sender.send(self._answers.response_of(outputs))
                until_wait -= 1
                if not until_wait:
                    until_wait = _ANSWERS_BETWEEN_WAITS
                    await _reader_of(received)


@contextmanager
def _answering(request: InferenceRequest) -> Iterator[None]:
    """Around the code that answers one request, in its task: what it inherits, and its cancellation."""
    received = request._received
    assert received is not None
    activity = current_activity.get()
    if activity is not None and len(activity.requests) != 1:
        current_activity.set(Activity(activity.model, True, (received,), activity.notes, activity.execution))
    current_scope.set(Scope(Request(request), _CALLER))
    # Else inherited from the model that called, where that fans out.
    fans_out.set(False)
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    received.cancellation.add_listener(task, lambda: _cancel(loop, task))
    try:
        yield
    finally:
        received.cancellation.remove_listener(task)


async def _reader_of(request: RuntimeRequest) -> None:
    """Wait until whoever reads the answers has caught up.

    In a thread of its own, not in a pool: nothing that waits for a pool's threads must wait for readers.
    """
    loop = asyncio.get_running_loop()
    caught_up = asyncio.Event()

    def wait() -> None:
        request.sender.wait_until_ready()
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(caught_up.set)

    threading.Thread(target=wait, name="cantata-slow-reader", daemon=True).start()
    await caught_up.wait()


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    # The loop may have been closed with its model.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(task.cancel)
