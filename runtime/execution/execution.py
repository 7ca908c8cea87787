"""One batch on its way through a model instance: the requests in, the responses out, and the times between.

Shared by the driver that forms the batch and the backend that runs it. Knows nothing of tensors' contents.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.file_watch import FileWatch
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.statistics import ComputeTimes
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse

_NONE: frozenset[InferenceRequest] = frozenset()


class Execution:
    """A batch. `requests` is never changed once it runs; `responses` is parallel to it.

    The backend leaves in `responses[i]` the one, final response to `requests[i]`; or None when that request is
    answered through `requests[i].respond` instead, now or later, as decoupled models do. It marks the end of input
    preparation and the start of output handling with `inputs_ready` and `outputs_ready`; a backend that does not
    is taken to spend all its time computing.

    All times are on the monotonic clock, in nanoseconds.
    """

    __slots__ = (
        "_on_finish",
        "_rescheduled",
        "batch_size",
        "input_end_ns",
        "instance",
        "keeps_instance",
        "may_be_left",
        "output_start_ns",
        "requests",
        "responses",
        "resumed_ns",
        "spec",
        "start_ns",
        "waited_ns",
        "watch",
    )

    def __init__(
        self,
        spec: ModelSpec,
        requests: list[InferenceRequest],
        batch_size: int,
        start_ns: int,
        on_finish: Callable[[Execution], None],
        instance: object = None,
    ) -> None:
        self.spec = spec
        self.requests = requests
        self.batch_size = batch_size
        self.responses: list[InferenceResponse | None] = [None] * len(requests)
        self.start_ns = start_ns
        self.input_end_ns = start_ns
        self.output_start_ns = 0
        # The instance that this batch keeps busy; None when it does so no longer.
        self.instance = instance
        # Whether `execute` is called by a thread that serves others: a batch that is not over in an instant is to be
        # left to another. Set for instances that can do so.
        self.may_be_left = False
        # What to leave it to, where that thread has an event loop for it; else to a worker.
        self.watch: FileWatch | None = None
        # Set by the backend where it has left the batch so: the instance is busy with it until `finish`.
        self.keeps_instance = False
        # How much of `execute` was spent waiting for another process; and when that had answered, 0 where it has not.
        self.waited_ns = 0
        self.resumed_ns = 0
        self._on_finish = on_finish
        self._rescheduled: set[InferenceRequest] | None = None

    def reschedule(self, request: InferenceRequest) -> None:
        """A request of an iterative sequence is to run again before it is answered."""
        if self._rescheduled is None:
            self._rescheduled = set()
        self._rescheduled.add(request)

    def rescheduled_requests(self) -> Set[InferenceRequest]:
        """Those that are to run again: an answer, where there is one all the same, ends a request."""
        if self._rescheduled is None:
            return _NONE
        answered = {
            request
            for request, response in zip(self.requests, self.responses, strict=True)
            if response is not None or request.is_finished
        }
        return self._rescheduled - answered

    def times(self, end_ns: int) -> ComputeTimes:
        """How long the batch took in its three parts, if it ends at `end_ns`."""
        output_start_ns = self.output_start_ns or end_ns
        return ComputeTimes(
            self.input_end_ns - self.start_ns,
            output_start_ns - self.input_end_ns,
            end_ns - output_start_ns,
            self.batch_size,
        )

    def fail_unanswered(self, error: InferenceError) -> None:
        """Leave `error` where a request of the batch has no answer yet."""
        for index, request in enumerate(self.requests):
            if self.responses[index] is None and not request.is_finished:
                self.responses[index] = InferenceResponse(
                    request.model_name, self.spec.model_version, request.id, {}, error=error
                )

    def send_responses(self) -> None:
        """Answer the requests that have their final response."""
        responses = self.responses
        for index, request in enumerate(self.requests):
            response = responses[index]
            if response is not None:
                request.respond(response, True)

    def inputs_ready(self) -> None:
        """The batch's inputs are prepared; the model is about to compute."""
        self.input_end_ns = monotonic_ns()

    def outputs_ready(self) -> None:
        """The model has computed; its outputs are about to be handled."""
        self.output_start_ns = monotonic_ns()

    def finish(self) -> None:
        """End a batch that `BackendInstance.execute` left running: its responses are counted and sent."""
        self._on_finish(self)
