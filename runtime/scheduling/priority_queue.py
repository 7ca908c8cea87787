"""Queued requests by priority level, with each level's limits and timeouts (reference, section 6.3).

Pure, as `batcher.py` says. Knows nothing of batches: it holds requests in the order in which they may join one.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cantata.grammars.model_config import ModelDynamicBatching, ModelQueuePolicy, TimeoutAction
from cantata.runtime.errors import overloaded
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.batcher import NEVER

# Entries of deadlines that no longer count are put up with, to this number more than those that do.
_SPARE_DEADLINES = 64


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What one level asks of its requests. `timeout_ns` 0 is none, `max_size` 0 any number.

    A request past its timeout is dropped or, with `delays`, runs after all others of its level.
    """

    timeout_ns: int = 0
    allows_override: bool = False
    max_size: int = 0
    delays: bool = False

    def deadline_ns(self, request: InferenceRequest, now_ns: int) -> int:
        """When a request queued now has waited for too long; NEVER if it never has."""
        timeout_ns = self.timeout_ns
        if not timeout_ns:
            return NEVER
        if self.allows_override and 0 < request.timeout_us * 1000 < timeout_ns:
            timeout_ns = request.timeout_us * 1000
        return now_ns + timeout_ns


@dataclass(frozen=True, slots=True)
class QueuePolicies:
    """What a model asks of its requests, by level. `level_count` 0: all requests are of one level, 0."""

    level_count: int
    default_level: int
    default_policy: QueuePolicy
    policies: Mapping[int, QueuePolicy]

    def level_of(self, request: InferenceRequest) -> int:
        """The level that a request is of; the lower, the more urgent."""
        number = request.priority
        return number if 0 < number <= self.level_count else self.default_level

    def policy_of(self, level: int) -> QueuePolicy:
        """What a level asks of its requests."""
        return self.policies.get(level, self.default_policy)

    def rejects_at(self, request: InferenceRequest, now_ns: int) -> int:
        """When a request that begins to wait now has waited for too long to be answered; NEVER if it never has."""
        policy = self.policy_of(self.level_of(request))
        return NEVER if policy.delays else policy.deadline_ns(request, now_ns)


class _Level:
    __slots__ = ("delayed", "live", "number", "policy")

    def __init__(self, number: int, policy: QueuePolicy) -> None:
        self.number = number
        self.policy = policy
        self.live: OrderedDict[InferenceRequest, None] = OrderedDict()
        self.delayed: OrderedDict[InferenceRequest, None] = OrderedDict()


class PriorityQueue:
    """Requests in the order of their levels, 1 first; in a level first in, first out, those delayed last.

    A queued request's `priority` is its level. Invariants, for `check_invariants`:
    - `_occupied` names the levels that hold requests, ascending;
    - a request with a timeout is in `live` while that is ahead, and in `_deadlines` as long.
    """

    def __init__(
        self,
        level_count: int,
        default_level: int,
        default_policy: QueuePolicy,
        policies: Mapping[int, QueuePolicy],
    ) -> None:
        """`level_count` 0: all requests are of one level, 0."""
        default_level = default_level if level_count else 0
        self._policies = QueuePolicies(level_count, default_level, default_policy, policies)
        # Made when first used: there may be any number of levels.
        self._levels: dict[int, _Level] = {}
        self._occupied: list[int] = []
        self._count = 0
        # (deadline, order of arrival, request); of requests that have left, some are still here.
        self._deadlines: list[tuple[int, int, InferenceRequest]] = []
        self._order = itertools.count()

    @property
    def has_timeouts(self) -> bool:
        """Whether requests may wait for too long here."""
        policies = self._policies
        return any(policy.timeout_ns for policy in (policies.default_policy, *policies.policies.values()))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InferenceRequest]:
        for number in self._occupied:
            level = self._levels[number]
            yield from level.live
            yield from level.delayed

    def add(self, request: InferenceRequest, now_ns: int) -> None:
        """Queue a request; raises InferenceError (UNAVAILABLE) when its level is full."""
        level = self._level_of(request)
        policy = level.policy
        size = len(level.live) + len(level.delayed)
        if 0 < policy.max_size <= size:
            raise overloaded(f"{request.described_id()}Exceeds maximum queue size")
        request.priority = level.number
        level.live[request] = None
        self._count += 1
        if not size:
            insort(self._occupied, level.number)
        deadline_ns = policy.deadline_ns(request, now_ns)
        if deadline_ns != NEVER:
            if len(self._deadlines) > 2 * self._count + _SPARE_DEADLINES:
                self._forget_old_deadlines()
            heapq.heappush(self._deadlines, (deadline_ns, next(self._order), request))

    def popleft(self) -> InferenceRequest:
        """Take the first request."""
        level = self._levels[self._occupied[0]]
        request, _ = (level.live or level.delayed).popitem(last=False)
        self._left(level)
        return request

    def remove(self, request: InferenceRequest) -> bool:
        """Take a request out, wherever it is; False when it is not queued."""
        level = self._levels.get(request.priority)
        if level is None:
            return False
        if request in level.live:
            del level.live[request]
        elif request in level.delayed:
            del level.delayed[request]
        else:
            return False
        self._left(level)
        return True

    def expire(self, now_ns: int) -> tuple[list[InferenceRequest], bool]:
        """Take out the requests past their timeout, or delay them; also whether the order has changed."""
        rejected: list[InferenceRequest] = []
        has_changed = False
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            request = heapq.heappop(self._deadlines)[2]
            level = self._levels[request.priority]
            if request not in level.live:
                continue
            has_changed = True
            del level.live[request]
            if level.policy.delays:
                level.delayed[request] = None
            else:
                self._left(level)
                rejected.append(request)
        return rejected, has_changed

    def expires_at(self) -> int:
        """The next time at which `expire` has something to do; NEVER if there is none."""
        while self._deadlines:
            deadline_ns, _, request = self._deadlines[0]
            if request in self._levels[request.priority].live:
                return deadline_ns
            heapq.heappop(self._deadlines)
        return NEVER

    def has_delayed(self, number: int) -> bool:
        """Whether requests of a level are delayed: those that arrive now go before them."""
        return bool(self._levels[number].delayed)

    def clear(self) -> None:
        """Forget everything."""
        self._levels.clear()
        self._occupied.clear()
        self._deadlines.clear()
        self._count = 0

    def check_invariants(self) -> None:
        """Raise AssertionError when the state is not what the class promises; for tests."""
        levels = self._levels.values()
        held = [level.number for level in levels if level.live or level.delayed]
        assert self._occupied == sorted(held)
        assert self._count == sum(len(level.live) + len(level.delayed) for level in levels)
        awaited = {request for _, _, request in self._deadlines}
        for level in levels:
            assert not level.live.keys() & level.delayed.keys()
            assert all(request.priority == level.number for request in (*level.live, *level.delayed))
            if level.policy.timeout_ns:
                assert level.live.keys() <= awaited

    def _level_of(self, request: InferenceRequest) -> _Level:
        policies = self._policies
        number = policies.level_of(request)
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = _Level(number, policies.policy_of(number))
        return level

    def _left(self, level: _Level) -> None:
        """Note that a request has left a level."""
        self._count -= 1
        if not level.live and not level.delayed:
            del self._occupied[bisect_left(self._occupied, level.number)]

    def _forget_old_deadlines(self) -> None:
        self._deadlines = [
            entry for entry in self._deadlines if entry[2] in self._levels[entry[2].priority].live
        ]
        heapq.heapify(self._deadlines)


def queue_policies(batching: ModelDynamicBatching) -> QueuePolicies | None:
    """The policies that a configuration asks for; None where requests simply wait in line."""
    if not (batching.priority_levels or batching.priority_queue_policy or batching.default_queue_policy):
        return None
    policies = {level: _policy(policy) for level, policy in batching.priority_queue_policy.items()}
    default = _policy(batching.default_queue_policy or ModelQueuePolicy())
    if not batching.priority_levels and default == QueuePolicy():
        return None
    default_level = batching.default_priority_level if batching.priority_levels else 0
    return QueuePolicies(batching.priority_levels, default_level, default, policies)


def priority_queue(batching: ModelDynamicBatching) -> PriorityQueue | None:
    """The queue that a configuration asks for; None where requests simply wait in line."""
    asked = queue_policies(batching)
    if asked is None:
        return None
    return PriorityQueue(asked.level_count, asked.default_level, asked.default_policy, asked.policies)


def _policy(policy: ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_ns=policy.default_timeout_microseconds * 1000,
        allows_override=policy.allow_timeout_override,
        max_size=policy.max_queue_size,
        delays=policy.timeout_action is TimeoutAction.DELAY,
    )
