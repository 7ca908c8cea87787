"""Requests that a model waits for and only the model itself could answer: refused, since they would wait for ever.

Pure: knows which queued requests keep which of a model's own instances busy, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from cantata.runtime.errors import InferenceError, unavailable
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.batcher import Batch


class CircularWaits:
    """The instances of one model that wait for requests which are queued for this very model.

    Invariant: `queued` has each such request with the instances that wait for it, and `_waiting` counts, for each
    such instance, the requests that it waits for.
    """

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        # Empty for all models but those that wait for themselves.
        self.queued: dict[InferenceRequest, list[object]] = {}
        self._waiting: Counter[object] = Counter()

    def refusal(self, request: InferenceRequest, instances: Collection[object]) -> InferenceError | None:
        """Why `request` must not be queued, where every instance would wait; None where it may."""
        own = _waiting_for(request, instances)
        if not own or len(self._waiting.keys() | set(own)) < len(instances):
            return None
        return unavailable(
            f"model '{self._model_name}' is called by a request that keeps its own instances busy, and none is "
            "left to answer: give it more instances, or make its `execute` a coroutine"
        )

    def note(self, request: InferenceRequest, instances: Collection[object]) -> None:
        """`request` has been queued."""
        own = _waiting_for(request, instances)
        if own:
            self.queued[request] = own
            self._waiting.update(own)

    def forget(self, batch: Batch) -> None:
        """The requests of `batch` are queued no longer."""
        if not self.queued:
            return
        for request in (*batch.requests, *batch.dropped):
            self._waiting.subtract(self.queued.pop(request, ()))
        self._waiting += Counter()


def _waiting_for(request: InferenceRequest, instances: Collection[object]) -> list[object]:
    return [execution.instance for execution in request.waiting if execution.instance in instances]
