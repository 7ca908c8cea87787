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

    Invariant: `_waiting` counts, for each such instance, the queued requests that it waits for.
    """

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._waiting: Counter[object] = Counter()

    def refusal(self, request: InferenceRequest, instances: Collection[object]) -> InferenceError | None:
        """Note that `request` is to be queued; or why it must not be, when every instance would wait."""
        own = [execution.instance for execution in request.waiting if execution.instance in instances]
        if not own:
            return None
        if len(self._waiting.keys() | set(own)) >= len(instances):
            return unavailable(
                f"model '{self._model_name}' is called by a request that keeps its own instances busy, and none is "
                "left to answer: give it more instances, or make its `execute` a coroutine"
            )
        self._waiting.update(own)
        return None

    def forget(self, batch: Batch) -> None:
        """The requests of `batch` are queued no longer."""
        if not self._waiting:
            return
        for request in (*batch.requests, *batch.dropped):
            for execution in request.waiting:
                if execution.instance in self._waiting:
                    self._waiting[execution.instance] -= 1
        self._waiting += Counter()
