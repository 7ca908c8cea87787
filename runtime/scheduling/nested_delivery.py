"""Answers that are there at once, sent without piling up on the stack.

An answer may lead to the next request, and that to an answer that is there at once: a long ensemble of cached steps.
From some depth on the thread sends them one after the other, once it has come back.
"""

from __future__ import annotations

import threading
from typing import Final

from cantata.runtime.execution.worker_pool import Dispatcher
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse

_MOST_NESTED: Final = 8


class _Nesting(threading.local):
    depth = 0


_nesting = _Nesting()


class _Delivery:
    """An answer that is sent later (Work)."""

    is_quick = True
    is_quick_alone = False
    may_wait = False

    def __init__(self, request: InferenceRequest, response: InferenceResponse) -> None:
        self._request = request
        self._response = response

    def run(self) -> None:
        self._request.respond(self._response, True)


def deliver(request: InferenceRequest, response: InferenceResponse, workers: Dispatcher) -> None:
    """Send a final response from here or, where too many have led to each other, through `workers`."""
    if _nesting.depth >= _MOST_NESTED:
        workers.dispatch(_Delivery(request, response))
        return
    _nesting.depth += 1
    try:
        request.respond(response, True)
    finally:
        _nesting.depth -= 1
