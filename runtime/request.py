"""One inference request inside the server, and what it carries along a pipeline.

Owns the request's fields, its cancellation, and the rule that it gets exactly one final response. Knows nothing
of wires, schedulers or backends: a response leaves through the request's sender, whoever that is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from cantata.runtime.errors import InferenceError, StatusCode, unavailable
from cantata.runtime.response import InferenceResponse, ParameterValue
from cantata.runtime.tensor import Tensor

if TYPE_CHECKING:
    from cantata.runtime.admission import ByteLease
    from cantata.runtime.execution.execution import Execution
    from cantata.runtime.observe.statistics import ComputeTimes
    from cantata.runtime.observe.trace import Trace

_log = logging.getLogger("cantata.request")

# Request flags (reference, section 7.2).
SEQUENCE_START: Final = 1
SEQUENCE_END: Final = 2

# What a request is answered that has waited, or gone on, for longer than it may.
EXPIRED: Final = "Request timeout expired"


class ResponseSender(Protocol):
    """Where a request's responses go: a front-end's call, the next step of an ensemble, a waiting caller."""

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        """Take one response; None with `final` says that there are no more.

        Called from any thread, one call at a time, outside every lock, and never again after `final`. It must not
        block; what a slow reader has not read yet is waited for in `wait_until_ready`.
        """

    def wait_until_ready(self) -> None:
        """Block while the reader is too far behind; return at once when the request is cancelled.

        Called by whoever produces many responses, from a thread that may wait.
        """


class Cancellation:
    """Whether a request's caller has gone away. One object is shared by a request and all that it causes.

    A caller that is cancelled stays so. Listeners run once each, on the thread that cancels (or at once, when
    added too late), and must be quick. Any thread may call.

    `expires_ns` is when it cancels itself, by a request's timeout; 0 for never. `has_expired` says that it has.
    """

    __slots__ = (
        "__weakref__",
        "_listeners",
        "_lock",
        "_queued",
        "expires_ns",
        "has_expired",
        "is_cancelled",
    )

    def __init__(self) -> None:
        self.is_cancelled = False
        self.has_expired = False
        self.expires_ns = 0
        self._lock = threading.Lock()
        # None until somebody listens: most requests are never cancelled and never listened to.
        self._listeners: dict[object, Callable[[], None]] | None = None
        # The first request that waits in a queue: most are the only one, and need no listener.
        self._queued: InferenceRequest | None = None

    def cancel(self) -> None:
        """Say that nobody waits for the answer any more."""
        with self._lock:
            if self.is_cancelled:
                return
            self.is_cancelled = True
            listeners, self._listeners = self._listeners, None
        queued, self._queued = self._queued, None
        if queued is not None:
            queued.leave_queue()
        for listener in (listeners or {}).values():
            listener()

    def expire(self) -> None:
        """Cancel because the time that the request may take is over."""
        with self._lock:
            if self.is_cancelled:
                return
            self.has_expired = True
        self.cancel()

    def add_listener(self, key: object, listener: Callable[[], None]) -> None:
        """Have `listener` called on cancellation, until `remove_listener(key)`."""
        with self._lock:
            if not self.is_cancelled:
                if self._listeners is None:
                    self._listeners = {}
                self._listeners[key] = listener
                return
        listener()

    def remove_listener(self, key: object) -> None:
        """Forget a listener; nothing happens when it is unknown or has run."""
        with self._lock:
            if self._listeners is not None:
                self._listeners.pop(key, None)

    def watch(self, request: InferenceRequest) -> None:
        """Have `request` leave its queue on cancellation; to be called once it is there, outside the queue's lock.

        Of two requests that share the cancellation and are queued at the same moment one may miss it.
        """
        # It may be there already: whoever had it queue for somebody else may say so late.
        if self._queued is None or self._queued is request:
            self._queued = request
        else:
            self.add_listener(request, request.leave_queue)
        # Either this thread sees that it is cancelled, or the one that cancels sees the request.
        if self.is_cancelled:
            request.leave_queue()
        # It may have been taken meanwhile by somebody who found nothing to forget.
        if request.queue is None:
            self.unwatch(request)

    def unwatch(self, request: InferenceRequest) -> None:
        """Forget a request that has left its queue."""
        if self._queued is request:
            self._queued = None
        if self._listeners is not None:
            self.remove_listener(request)


class LinkedCancellation(Cancellation):
    """One's own cancellation, which another's reaches but which does not reach the other."""

    __slots__ = ("outer",)

    def __init__(self, outer: Cancellation | None) -> None:
        super().__init__()
        self.outer = outer
        if outer is not None:
            outer.add_listener(self, self._follow)

    def unlink(self) -> None:
        """What it stands for is over."""
        if self.outer is not None:
            self.outer.remove_listener(self)

    def _follow(self) -> None:
        if self.outer is not None and self.outer.has_expired:
            self.expire()
        else:
            self.cancel()


class RequestQueue(Protocol):
    """Where a request waits."""

    def cancelled(self, request: InferenceRequest) -> None:
        """Nobody waits for the answer to `request` any more; called on the thread that cancels, perhaps too late."""


class RequestOwner(Protocol):
    """Who accepted a request and accounts for it: a scheduler."""

    def responded(self, request: InferenceRequest, response: InferenceResponse | None, final: bool) -> None:
        """A response is about to be sent; called on the sending thread, outside every lock."""


class InferenceRequest:
    """A request for one model. Made by a front-end, an ensemble step or a BLS call; answered through `respond`.

    `model_version` -1 means the highest that is ready. `requested_outputs` empty means all. `correlation_id` 0 or
    "" means none. `timeout_us` 0 means none. `deadline_ns` is on the monotonic clock; 0 means none. `batch_size`
    is set when the request is validated. The `*_ns` times are monotonic; `times` is how long the model took, set
    when its batch is over.

    Arguments given by keyword cost as much as all else about making one: the request path sets the attributes instead.
    """

    __slots__ = (
        "_finished",
        "batch_size",
        "batch_wait_ns",
        "cancellation",
        "carried",
        "correlation_id",
        "deadline_ns",
        "flags",
        "id",
        "inputs",
        "lease",
        "model_name",
        "model_version",
        "owner",
        "parameters",
        "priority",
        "queue",
        "queued_ns",
        "received_ns",
        "requested_outputs",
        "responded_ns",
        "response_count",
        "sender",
        "sequence",
        "started_ns",
        "states",
        "timeout_us",
        "times",
        "trace",
        "waiting",
    )

    # What its scheduler knows of the sequence that it is part of; set, and there at all, only where there is one.
    sequence: object

    def __init__(
        self,
        model_name: str,
        inputs: dict[str, Tensor],
        sender: ResponseSender,
        received_ns: int,
        cancellation: Cancellation | None = None,
        *,
        model_version: int = -1,
        id: str = "",
        requested_outputs: tuple[str, ...] = (),
        correlation_id: int | str = 0,
        flags: int = 0,
        priority: int = 0,
        timeout_us: int = 0,
        deadline_ns: int = 0,
        parameters: dict[str, ParameterValue] | None = None,
        waiting: tuple[Execution, ...] = (),
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = id
        self.inputs = inputs
        self.requested_outputs = requested_outputs
        self.correlation_id = correlation_id
        self.flags = flags
        self.priority = priority
        self.timeout_us = timeout_us
        self.deadline_ns = deadline_ns
        self.parameters = parameters
        self.cancellation = cancellation if cancellation is not None else Cancellation()
        self.sender = sender
        self.received_ns = received_ns
        # The executions that cannot end before this request is answered: those of the models that called for it.
        self.waiting = waiting
        self.queued_ns = 0
        self.batch_size = 0
        self.started_ns = 0
        # How long an instance that was free waited for its batch to fill.
        self.batch_wait_ns = 0
        self.times: ComputeTimes | None = None
        self.response_count = 0
        # When it was last answered by a model that answers by itself.
        self.responded_ns = 0
        # The states of its sequence by output name, which its model replaces; None where there are none.
        self.states: dict[str, Tensor] | None = None
        # What its model's instance keeps for the next iteration, while the request waits for that.
        self.carried: object = None
        # Set by the scheduler that accepts the request, and unset where it accounts for a whole batch at once.
        self.owner: RequestOwner | None = None
        # The queue that it waits in and leaves when it is cancelled; guarded by that queue's lock.
        self.queue: RequestQueue | None = None
        # What it holds of budgets of bytes, until it is answered finally; None where there are none.
        self.lease: ByteLease | None = None
        # Set by the front-end for a request that is traced, and for the steps and calls that it leads to.
        self.trace: Trace | None = None
        self._finished = False

    @property
    def ends_ns(self) -> int:
        """From when on nobody waits for the answer, by the deadline or the timeout; 0 where there is neither."""
        if not self.timeout_us:
            return self.deadline_ns
        ends_ns = self.received_ns + self.timeout_us * 1000
        return min(ends_ns, self.deadline_ns) if self.deadline_ns else ends_ns

    def timeout_left_us(self, now_ns: int) -> int:
        """What is left of its timeout, for the requests that it leads to: at least 1. 0 without a timeout."""
        if not self.timeout_us:
            return 0
        return max(1, self.timeout_us - (now_ns - self.received_ns) // 1000)

    @property
    def is_finished(self) -> bool:
        """Whether the final response has been sent."""
        return self._finished

    def respond(self, response: InferenceResponse | None, final: bool) -> None:
        """Send one response. After the final one this does nothing: no request is answered twice.

        Called by one thread at a time. A sender or a trace that fails is logged, and keeps nobody from being answered.
        """
        if self._finished:
            return
        self._finished = final
        if response is not None and response.error is not None and self.cancellation.has_expired:
            response = _expired(response)
        if self.owner is not None:
            self.owner.responded(self, response, final)
        self.response_count += 1
        trace = self.trace
        if trace is not None:
            try:
                trace.answered(self, response, final)
            except Exception:
                _log.exception("an answer of model '%s' could not be traced", self.model_name)
        try:
            self.sender.send(response, final)
        except Exception:
            _log.exception("a response of model '%s' could not be delivered", self.model_name)
        if final and self.lease is not None:
            self.lease.release()
        if trace is not None and final:
            try:
                trace.ended(self)
            except Exception:
                _log.exception("the end of a request of model '%s' could not be traced", self.model_name)

    def leave_queue(self) -> None:
        """Tell the queue that it waits in, if it still does, that it is cancelled."""
        queue = self.queue
        if queue is not None:
            queue.cancelled(self)

    def fail(self, error: InferenceError) -> None:
        """Answer finally with `error`."""
        self.respond(
            InferenceResponse(self.model_name, self.model_version, self.id, {}, error=error), final=True
        )

    def described_id(self) -> str:
        """`[request id: ID] `, as Triton begins many request errors."""
        return f"[request id: {self.id or '<id_unknown>'}] "


def _expired(response: InferenceResponse) -> InferenceResponse:
    """What a client is told whose request was cancelled because it took too long."""
    if response.error is None or response.error.code is not StatusCode.CANCELLED:
        return response
    name, version = response.model_name, response.model_version
    return InferenceResponse(name, version, response.id, {}, error=unavailable(EXPIRED))
