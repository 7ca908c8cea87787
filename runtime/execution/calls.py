"""A request made from inside the process by a caller that waits: embedded `infer`, a blocking BLS call.

Owns the waiting. The caller's thread runs the model itself where the instance is idle, so that a call of a quick
model crosses no thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cantata.runtime.execution.worker_pool import WorkerPool
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
            if not self.is_done:
                done.acquire()
        return self.responses


def submit_and_wait(
    submit: Callable[[InferenceRequest], None], workers: WorkerPool, request: InferenceRequest
) -> list[InferenceResponse]:
    """Submit a request whose sender is a WaitingSender, and return its responses when it has ended.

    Raises InferenceError when the request is refused at once. Errors that come later are responses.
    """
    sender = request.sender
    assert isinstance(sender, WaitingSender)
    with workers.collecting() as work:
        submit(request)
        work.run_until(lambda: sender.is_done)
    return sender.wait()
