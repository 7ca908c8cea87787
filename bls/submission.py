"""How calls reach the server: each at once, or several together, so that the called model can batch them.

Sent one by one, an idle model would take the first of many calls alone, and the others would wait for it. So those of
a fan-out go together, and those that a coroutine makes for several requests of a model that would answer each here and
now. A call on its own is answered soonest when it is sent at once: the model may then run before the caller has begun
to wait.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Final

from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.request import InferenceRequest

# Whether the running code is part of a fan-out. Tasks inherit it.
fans_out: Final[ContextVar[bool]] = ContextVar("cantata_fans_out", default=False)


def submit_now(services: ServerServices, request: InferenceRequest) -> None:
    """Send a request on its way; raises InferenceError when it is refused at once."""
    with services.workers.collecting() as work:
        services.submit(request)
        work.run()


def submit_with_others(services: ServerServices, request: InferenceRequest) -> None:
    """Send a request at the end of this turn of the running loop. A refusal is its answer."""
    loop = asyncio.get_running_loop()
    turn = _thread.turn
    if turn is None or turn.loop is not loop:
        turn = _thread.turn = _Turn(services, loop)
    turn.add(services, request)


def submit_waiting() -> None:
    """Send what waits for the end of this thread's turn: the thread is about to wait for a call that came later."""
    turn = _thread.turn
    if turn is not None:
        turn.submit()


def while_running(model_name: str, error: InferenceError) -> InferenceError:
    """A refusal as the model that called is told of it (reference, section 7.3)."""
    return error.within(f"Model {model_name} - Error when running inference: ")


class _Turn:
    """What was submitted on a thread's loop since it last ran. Used by that thread alone."""

    __slots__ = ("_requests", "_services", "loop")

    def __init__(self, services: ServerServices, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._services = services
        self._requests: list[InferenceRequest] = []

    def add(self, services: ServerServices, request: InferenceRequest) -> None:
        if not self._requests:
            self._services = services
            self.loop.call_soon(self.submit)
        self._requests.append(request)

    def submit(self) -> None:
        """Submit what there is."""
        requests, self._requests = self._requests, []
        services = self._services
        if not requests or (len(requests) == 1 and _has_run(services, requests[0])):
            return
        with services.workers.collecting() as work:
            for request in requests:
                try:
                    services.submit(request)
                except Exception as error:
                    _refuse(request, error)
            work.run()


def _has_run(services: ServerServices, request: InferenceRequest) -> bool:
    """Whether a request that came alone needs to be submitted no more: it was run here, or refused."""
    try:
        return services.run_now(request, only_if_quick=True)
    except Exception as error:
        _refuse(request, error)
        return True


def _refuse(request: InferenceRequest, error: Exception) -> None:
    """Answer a request that could not be submitted; one whose fields make no sense must not hold up the others."""
    if not isinstance(error, InferenceError):
        error = internal_error(f"{type(error).__name__}: {error}")
    request.fail(while_running(request.model_name, error))


class _ThreadState(threading.local):
    turn: _Turn | None = None


_thread: Final = _ThreadState()
