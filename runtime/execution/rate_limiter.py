"""Which instances may run now, when models share limited resources (reference, section 6.6).

Pure: no threads, locks or clocks. The driver (`limited_dispatch.py`) holds the lock under which this is called.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from cantata.runtime.errors import invalid_argument

# The device of a resource that all devices share, and that of a count given for every device.
GLOBAL: Final = -1
EVERY_DEVICE: Final = -2


class RateLimitMode(enum.Enum):
    """`--rate-limit`: whether instances wait for resources."""

    OFF = "off"
    EXECUTION_COUNT = "execution_count"


# A resource: its name, and its device or GLOBAL.
ResourceKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ResourceCount:
    """What the command line says there is of a resource; `device` may be EVERY_DEVICE."""

    name: str
    count: int
    device: int = EVERY_DEVICE


def parse_resource_count(text: str) -> ResourceCount:
    """`<name>:<count>` or `<name>:<count>:<device>`; raises ValueError for anything else."""
    name, *numbers = text.split(":")
    if not name or len(numbers) not in (1, 2) or not all(number.isdecimal() for number in numbers):
        raise ValueError(
            "--rate-limit-resource option format is '<resource_name>:<count>:<device>' or "
            f"'<resource_name>:<count>'. Got {text}"
        )
    return ResourceCount(name, *map(int, numbers))


@dataclass(frozen=True, slots=True)
class InstanceLimit:
    """What an instance needs to run, and how it stands with others: twice the `priority` is half the chances."""

    needs: Mapping[ResourceKey, int]
    priority: int = 1


Work = TypeVar("Work")


class _Member:
    __slots__ = ("execution_count", "limit")

    def __init__(self, limit: InstanceLimit, execution_count: int) -> None:
        self.limit = limit
        self.execution_count = execution_count

    @property
    def rank(self) -> int:
        return self.execution_count * self.limit.priority


class RateLimiter(Generic[Work]):
    """Gives resources to work that waits for them, each piece belonging to an instance.

    There is of each resource what was said of it or, where nothing was said of any, as much as the instance that needs
    most. The instance with the lowest product of executions and priority goes first, and while it does not fit nobody
    else does.

    Invariants, for `check_invariants`:
    - of no resource more is in use than there is, but for what was in use when its count fell;
    - if anything waits, the first of it does not fit.
    """

    def __init__(self, counts: Iterable[ResourceCount] = ()) -> None:
        # By resource and device; empty where nothing was said.
        self._explicit: dict[str, dict[int, int]] = {}
        for count in counts:
            self._explicit.setdefault(count.name, {})[count.device] = count.count
        self._members: dict[object, _Member] = {}
        self._available: dict[ResourceKey, int] = {}
        self._in_use: Counter[ResourceKey] = Counter()
        # (rank, order, instance, work); an instance that has been removed may still be here.
        self._waiting: list[tuple[int, int, object, Work]] = []
        self._order = itertools.count()

    def add(self, members: Sequence[tuple[object, InstanceLimit]]) -> None:
        """Take a model's instances; raises InferenceError, and takes none, when they could never run.

        They begin where the one stands that has had the fewest chances: being new is no advantage.
        """
        self._check([limit for _, limit in members])
        start = min((member.rank for member in self._members.values()), default=0)
        for instance, limit in members:
            self._members[instance] = _Member(limit, start // limit.priority)
        self._count_available()

    def remove(self, instances: Iterable[object]) -> list[Work]:
        """Forget instances that run no more; returns what may run now."""
        for instance in instances:
            self._members.pop(instance, None)
        self._count_available()
        return self._start_what_fits()

    def stage(self, instance: object, work: Work) -> list[Work]:
        """An instance has work to do; returns what may run now."""
        heapq.heappush(self._waiting, (self._members[instance].rank, next(self._order), instance, work))
        return self._start_what_fits()

    def finish(self, limit: InstanceLimit) -> list[Work]:
        """Work of an instance with that limit has ended; returns what may run now."""
        self._in_use.subtract(limit.needs)
        return self._start_what_fits()

    def limit_of(self, instance: object) -> InstanceLimit:
        """What an instance needs."""
        return self._members[instance].limit

    def check_invariants(self) -> None:
        """Raise AssertionError when the state is not what the class promises; for tests."""
        assert all(0 <= used <= self._available.get(key, used) for key, used in self._in_use.items())
        if self._waiting:
            assert not self._fits(self._members[self._waiting[0][2]].limit)

    def _start_what_fits(self) -> list[Work]:
        started: list[Work] = []
        while self._waiting:
            _, _, instance, work = self._waiting[0]
            member = self._members.get(instance)
            if member is not None:
                if not self._fits(member.limit):
                    break
                self._in_use.update(member.limit.needs)
                member.execution_count += 1
                started.append(work)
            heapq.heappop(self._waiting)
        return started

    def _fits(self, limit: InstanceLimit) -> bool:
        return all(
            self._in_use[key] + count <= self._available.get(key, 0) for key, count in limit.needs.items()
        )

    def _check(self, limits: Sequence[InstanceLimit]) -> None:
        known = [member.limit for member in self._members.values()]
        for key, needed in sorted(_most_needed(limits).items()):
            there_is = self._explicit_count(key)
            if there_is is not None and there_is < needed:
                raise invalid_argument(
                    f'Resource count for "{key[0]}" is limited to {there_is} which will prevent scheduling of one or '
                    f"more model instances, the minimum required count is {needed}"
                )
        keys = {key for limit in (*known, *limits) for key in limit.needs}
        for name, device in sorted(keys):
            if device == GLOBAL and any(other == name and where != GLOBAL for other, where in keys):
                raise invalid_argument(
                    f'Resource "{name}" is present as both global and device-specific resource in the model '
                    "configuration."
                )

    def _count_available(self) -> None:
        most = _most_needed(member.limit for member in self._members.values())
        self._available = {}
        for key, needed in most.items():
            there_is = self._explicit_count(key)
            self._available[key] = needed if there_is is None else there_is

    def _explicit_count(self, key: ResourceKey) -> int | None:
        """What was said of a resource: nothing of one while others were named means that there is none."""
        if not self._explicit:
            return None
        name, device = key
        counts = self._explicit.get(name, {})
        if device == GLOBAL:
            return max(counts.values(), default=0)
        return max(counts.get(device, 0), counts.get(EVERY_DEVICE, 0))


def _most_needed(limits: Iterable[InstanceLimit]) -> dict[ResourceKey, int]:
    most: dict[ResourceKey, int] = {}
    for limit in limits:
        for key, count in limit.needs.items():
            most[key] = max(count, most.get(key, 0))
    return most
