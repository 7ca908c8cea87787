"""Equal requests that are on their way: one of them is run, and the others wait for its answer.

Owns the place of a running request's sender, and what waits for it. Who runs, and what the others get, is the caching
scheduler's to decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cantata.runtime.caching.response_cache import CachedResponse
from cantata.runtime.request import InferenceRequest, ResponseSender
from cantata.runtime.response import InferenceResponse


class Waiters:
    """The requests that wait for an equal one (RequestQueue). `requests` is guarded by the caching scheduler's lock."""

    __slots__ = ("_leave", "requests")

    def __init__(self, leave: Callable[[Waiters, InferenceRequest], None]) -> None:
        self._leave = leave
        # In the order in which they came.
        self.requests: dict[InferenceRequest, None] = {}

    def cancelled(self, request: InferenceRequest) -> None:
        self._leave(self, request)


class FlightOwner(Protocol):
    """Who started a flight."""

    def landed(self, flight: Flight, response: InferenceResponse | None) -> None:
        """The leader's final answer is there; `response` is what came with it."""


class Flight:
    """One request that is looked up and run: the sender of its responses while it is.

    `kept` is its answer from the moment that others may have it. `waiters` is None while nobody waits. Both are guarded
    by the owner's lock.
    """

    __slots__ = (
        "_owner",
        "answer",
        "kept",
        "key",
        "lookup_ns",
        "request",
        "response_count",
        "sender",
        "waiters",
    )

    def __init__(self, owner: FlightOwner, key: bytes, request: InferenceRequest) -> None:
        self._owner = owner
        self.key = key
        self.request = request
        # The request's own, which this stands before while the request runs.
        self.sender: ResponseSender = request.sender
        self.lookup_ns = 0
        self.response_count = 0
        # The last response: the only one of a model that answers once.
        self.answer: InferenceResponse | None = None
        self.kept: CachedResponse | None = None
        self.waiters: Waiters | None = None

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self.response_count += 1
            self.answer = response
        if final:
            self._owner.landed(self, response)
        else:
            self.sender.send(response, False)

    def wait_until_ready(self) -> None:
        self.sender.wait_until_ready()
