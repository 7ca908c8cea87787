"""The dynamic batcher: which queued requests become one batch, and when (reference, section 6.3).

Pure, as `batcher.py` says. It is asked by idle instances rather than pushing to them, so that a batch is formed as
late as possible and from everything that has arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.batch_strategy import BatchStrategy
from cantata.runtime.scheduling.batcher import NEVER, Batch, compared_shapes, is_abandoned
from cantata.runtime.scheduling.priority_queue import PriorityQueue


class DynamicBatcher:
    """A queue whose head is the batch that is forming.

    Invariants, for `check_invariants`:
    - the first `_formed` requests of the queue are the forming batch, and `_size` is the sum of their sizes;
    - `_size` is at most `max_batch_size`, unless the batch is one request;
    - all of the forming batch agree in the shapes that the model compares;
    - `_marked` <= `_formed`: the first `_marked` requests have a preferred size in all (0: no preferred size yet);
    - `_is_complete` says that the next request, if there is one, cannot join;
    - `_removed` requests are cancelled and still in the queue: nobody is owed an answer for them;
    - with `_is_stale` the order has changed, and none of this holds until the batch is formed anew.
    """

    def __init__(
        self,
        spec: ModelSpec,
        preferred_batch_sizes: Sequence[int],
        max_queue_delay_us: int,
        *,
        priorities: PriorityQueue | None = None,
        strategy: BatchStrategy | None = None,
    ) -> None:
        """`preferred_batch_sizes` empty means `max_batch_size` alone is preferred.

        `priorities` orders and limits the queue, and `strategy` has a say in what joins a batch, where there are any.
        """
        self._spec = spec
        self._max_batch_size = max(spec.max_batch_size, 1)
        self.forms_batches = self._max_batch_size > 1
        self._preferred = frozenset(preferred_batch_sizes) or frozenset({self._max_batch_size})
        self._max_preferred = max(self._preferred)
        self._delay_ns = max_queue_delay_us * 1000
        self._compares = bool(spec.compared_inputs) or spec.any_optional
        # The name of the one input whose shape is compared; empty where there are more, or optional ones.
        is_simple = len(spec.compared_inputs) == 1 and not spec.any_optional
        self._only_compared = spec.compared_inputs[0] if is_simple else ""
        self._strategy = strategy
        self._is_choosy = self._compares or strategy is not None
        self._priorities = priorities
        self.can_reorder = priorities is not None
        self.can_expire = priorities is not None and priorities.has_timeouts
        self.runs_lone_requests = priorities is None and strategy is None and not max_queue_delay_us
        self._queue: deque[InferenceRequest] | PriorityQueue = deque() if priorities is None else priorities
        self._removed: set[InferenceRequest] = set()
        self._is_stale = False
        # The level of the forming batch's last request.
        self._last_level = 0
        self._start_forming()

    def __len__(self) -> int:
        return len(self._queue) - len(self._removed)

    def add(self, request: InferenceRequest, now_ns: int) -> None:
        if self._priorities is not None:
            self._add_by_priority(self._priorities, request, now_ns)
            return
        self._queue.append(request)  # type: ignore[union-attr]
        if not self._is_complete:
            self._consider(request)

    def remove(self, request: InferenceRequest) -> None:
        if self._priorities is not None:
            self._is_stale |= self._priorities.remove(request) and request.priority <= self._last_level
            return
        self._removed.add(request)
        # Worth the while, as half of what is looked at goes.
        if 2 * len(self._removed) >= len(self._queue):
            self._queue = deque(queued for queued in self._queue if queued not in self._removed)
            self._removed.clear()
            self._form()

    def expires_at(self) -> int:
        return NEVER if self._priorities is None else self._priorities.expires_at()

    def expire(self, now_ns: int) -> list[InferenceRequest]:
        if self._priorities is None:
            return []
        rejected, has_changed = self._priorities.expire(now_ns)
        self._is_stale |= has_changed
        return rejected

    def ready_at(self, now_ns: int) -> int:
        if not self._queue:
            return NEVER
        if self._is_stale:
            self._form()
        if self._delay_ns == 0 or self._is_complete or self._marked or self._size >= self._max_preferred:
            return now_ns
        return self._oldest_ns + self._delay_ns

    def take(self, now_ns: int) -> Batch:
        dropped = self._drop_abandoned(now_ns)
        if not self._formed or (self._delay_ns and self.ready_at(now_ns) > now_ns):
            return Batch([], 0, dropped)
        delay_is_over = self._delay_ns > 0 and now_ns - self._oldest_ns >= self._delay_ns
        count = self._marked if self._marked and not delay_is_over else self._formed
        requests = [self._queue.popleft() for _ in range(count)]
        size = self._size if count == self._formed else sum(request.batch_size for request in requests)
        self._form()
        return Batch(requests, size, dropped)

    def drain(self) -> list[InferenceRequest]:
        waiting = [request for request in self._queue if request not in self._removed]
        self._queue.clear()
        self._removed.clear()
        self._start_forming()
        return waiting

    def check_invariants(self) -> None:
        """Raise AssertionError when the state is not what the class promises; for tests."""
        if self._is_stale:
            self._form()
        if self._priorities is not None:
            self._priorities.check_invariants()
        forming = list(islice(self._queue, self._formed))
        assert self._removed <= set(self._queue)
        assert self._oldest_ns == min((request.queued_ns for request in forming), default=0)
        assert self._size == sum(request.batch_size for request in forming)
        assert self._size <= self._max_batch_size or self._formed == 1
        assert 0 <= self._marked <= self._formed <= len(self._queue)
        assert self._formed == len(self._queue) or self._is_complete
        if self._compares:
            assert len({self._compared_shapes(request) for request in forming}) <= 1

    def _drop_abandoned(self, now_ns: int) -> list[InferenceRequest]:
        """Take abandoned requests out of the forming batch, and out of what then joins it."""
        dropped = [] if self._priorities is None else self.expire(now_ns)
        if self._is_stale:
            self._form()
        queue = self._queue
        while self._has_abandoned(now_ns):
            forming = list(islice(queue, self._formed))
            gone = [request for request in forming if is_abandoned(request, now_ns)]
            if isinstance(queue, PriorityQueue):
                for request in gone:
                    queue.remove(request)
                dropped += gone
            else:
                for _ in forming:
                    queue.popleft()
                queue.extendleft(request for request in reversed(forming) if request not in gone)
                dropped += [request for request in gone if request not in self._removed]
                self._removed.difference_update(gone)
            self._form()
        return dropped

    def _has_abandoned(self, now_ns: int) -> bool:
        # Written out: every request of every batch is looked at.
        for request in islice(self._queue, self._formed):
            if request.cancellation.is_cancelled or 0 < request.deadline_ns <= now_ns:
                return True
        return False

    def _add_by_priority(self, queue: PriorityQueue, request: InferenceRequest, now_ns: int) -> None:
        queue.add(request, now_ns)
        level = request.priority
        if (
            self._is_stale
            or level < self._last_level
            or (level == self._last_level and queue.has_delayed(level))
        ):
            self._is_stale = True
        elif not self._is_complete:
            self._consider(request)
            if not self._is_complete:
                self._last_level = level

    def _start_forming(self) -> None:
        self._formed = 0
        self._size = 0
        self._marked = 0
        self._is_complete = False
        self._is_stale = False
        self._oldest_ns = 0
        self._last_level = 0
        self._first: InferenceRequest | None = None
        self._shapes: object = None

    def _form(self) -> None:
        """Form a batch anew from the head of the queue; looks at no more than one batch's worth of requests."""
        self._start_forming()
        for request in self._queue:
            self._consider(request)
            if self._is_complete:
                return
            self._last_level = request.priority

    def _consider(self, request: InferenceRequest) -> None:
        size = self._size + request.batch_size
        if self._formed:
            if size > self._max_preferred and not self._marked:
                self._marked = self._formed
            if size > self._max_batch_size or (self._is_choosy and not self._may_join(request)):
                self._is_complete = True
                return
            if request.queued_ns < self._oldest_ns:
                self._oldest_ns = request.queued_ns
        else:
            self._first = request
            self._oldest_ns = request.queued_ns
            if self._strategy is not None:
                self._strategy.start(request)
        self._formed += 1
        self._size = size
        if size in self._preferred:
            self._marked = self._formed

    def _may_join(self, request: InferenceRequest) -> bool:
        """Whether the request agrees with the forming batch in its shapes, and the strategy with both."""
        if self._compares:
            if self._shapes is None:
                # Compared only now that there is something to compare with: most batches of an idle model are of one.
                self._shapes = self._compared_shapes(self._first)  # type: ignore[arg-type]
            if self._compared_shapes(request) != self._shapes:
                return False
        return self._strategy is None or self._strategy.admits(request)

    def _compared_shapes(self, request: InferenceRequest) -> object:
        if self._only_compared:
            return request.inputs[self._only_compared].array.shape[1:]
        return compared_shapes(self._spec, request)
