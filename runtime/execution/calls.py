"""A request made from inside the process by a caller that waits: embedded `infer`, a blocking BLS call.

Owns the waiting. The caller's thread runs the model itself where the instance is idle, so that a call of a quick
model crosses no thread.
"""

from __future__ import annotations

import threading
from typing import Protocol

from cantata.runtime.execution.worker_pool import WorkerPool, about_to_wait
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse


class WaitingSender:
    """The sender of a request whose caller waits for all its responses. One caller, one request."""

    __slots__ = ("_done", "is_done", "responses")

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.is_done = False
        # Held until the final response by a caller that has to wait: most find it there.
        self._done: threading.Lock | None = None

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self.responses.append(response)
        if final:
            # Either this thread sees the lock, or the caller sees that it need not wait.
            self.is_done = True
            done = self._done
            if done is not None:
                done.release()

    def wait_until_ready(self) -> None:
        """The caller collects everything: it is always ready for more."""

    def wait(self) -> list[InferenceResponse]:
        """The responses, once the final one has come."""
        if not self.is_done:
            done = threading.Lock()
            done.acquire()
            self._done = done
            about_to_wait()
            if not self.is_done:
                done.acquire()
        return self.responses


class Entrance(Protocol):
    """A way into a server."""

    @property
    def workers(self) -> WorkerPool:
        """The threads that run models; a blocking call runs idle instances on its own thread through it."""

    def submit(self, request: InferenceRequest) -> None:
        """Accept a request for any model; raises InferenceError when it is refused at once."""

    def run_now(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        """Run a request on this thread where it need not wait; False, and nothing has happened to it, elsewhere.

        `only_if_quick` is for threads that must not be held up. Raises InferenceError when it is refused.
        """


def call_and_wait(
    entrance: Entrance, request: InferenceRequest, sender: WaitingSender
) -> list[InferenceResponse]:
    """Have a request answered whose sender is `sender`, and return its responses when it has ended.

    Raises InferenceError when the request is refused at once. Errors that come later are responses.
    """
    if entrance.run_now(request):
        return sender.wait()
    return submit_and_wait(entrance, request, sender)


def submit_and_wait(
    entrance: Entrance, request: InferenceRequest, sender: WaitingSender
) -> list[InferenceResponse]:
    """As `call_and_wait`, for a request that has to wait."""
    with entrance.workers.collecting() as work:
        entrance.submit(request)
        work.run_until(lambda: sender.is_done)
    return sender.wait()
