"""Which sequences are live, which has a slot and which waits for one (reference, section 6.4).

Pure: no threads, clocks or tensor contents; `now_ns` is an argument. What runs next from the slots is the lanes'
business (`sequence_lanes.py`).
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections import OrderedDict, deque
from typing import NamedTuple

from cantata.runtime.errors import invalid_argument
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START, InferenceRequest
from cantata.runtime.scheduling.batcher import NEVER
from cantata.runtime.tensor import Tensor

# A sequence's lane while it waits for a slot.
BACKLOG = -1

# A clock this late says that the process has stood still: what came meanwhile may not have been read yet.
_STALL_NS = 20_000_000
_LONGEST_GRACE_NS = 1_000_000_000


def grace_ns(late_ns: int) -> int:
    """How much longer clients get whose time is up, if that is noticed so late; 0 for none.

    As long as the process has stood still, within bounds: what they sent in time is read before they are given up.
    """
    return min(late_ns, _LONGEST_GRACE_NS) if late_ns > _STALL_NS else 0


class DropReason(enum.Enum):
    """Why a request leaves without having run."""

    CANCELLED = enum.auto()
    # The request's own deadline has passed.
    DEADLINE = enum.auto()
    # The sequence waited for a slot longer than one of its requests allows.
    BACKLOG_TIMEOUT = enum.auto()
    # The instance, and what it knew of the sequence, is gone.
    INSTANCE_LOST = enum.auto()


class Dropped(NamedTuple):
    """A request that is owed an answer though it will not run."""

    request: InferenceRequest
    reason: DropReason


class Sequence:
    """Requests with one correlation id, from the one that starts it to the one that ends it.

    `lane` and `slot` say where it runs: both are fixed from the moment it has them. `has_turn` says that a request of
    it has had its turn and is not over, `is_closed` that no further request will come: it ended, or was ended.
    `states` and `id_tensor` are not looked at here: they are what the model's next execution is given, and live
    exactly as long as the sequence.
    """

    __slots__ = (
        "correlation_id",
        "expires_ns",
        "has_turn",
        "id_tensor",
        "is_closed",
        "lane",
        "last_ns",
        "slot",
        "states",
        "waiting",
    )

    def __init__(self, correlation_id: int | str) -> None:
        self.correlation_id = correlation_id
        self.waiting: deque[InferenceRequest] = deque()
        self.lane = BACKLOG
        self.slot = 0
        self.is_closed = False
        self.has_turn = False
        # When it got its slot, or a request of it was over; for idleness.
        self.last_ns = 0
        # When it has waited too long for a slot; 0 for never.
        self.expires_ns = 0
        self.states: dict[str, Tensor] | None = None
        self.id_tensor: Tensor | None = None


class SequenceTable:
    """Admission, slots, backlog and idleness of all sequences of one model version.

    Invariants, for `check_invariants`:
    - a sequence in `_live` is not closed, and is in `_checks` once if it has a slot, in the backlog if not;
    - while a sequence is in the backlog no slot is free;
    - nothing in `_checks` is there later than its sequence may be found idle.
    """

    def __init__(self, model_name: str, max_idle_ns: int, *, is_iterative: bool) -> None:
        """`max_idle_ns` bounds the time between two requests of a sequence; iterative sequences end by themselves."""
        self._model_name = model_name
        self._max_idle_ns = max_idle_ns
        self._is_iterative = is_iterative
        self._live: dict[int | str, Sequence] = {}
        # (when to see whether it is idle, order, sequence): of those that have slots, and of some that are closed.
        self._checks: list[tuple[int, int, Sequence]] = []
        # When idleness was last looked for; the next time is so much later at least, for many sequences at once.
        self._checked_ns = 0
        self._least_pause_ns = max_idle_ns // 32
        self._backlog: OrderedDict[Sequence, None] = OrderedDict()
        # (expires_ns, order, sequence); entries are out of date when the sequence has left the backlog since.
        self._expiries: list[tuple[int, int, Sequence]] = []
        self._order = itertools.count()
        # (slot, lane): the lowest slot of all lanes is given away first.
        self._free: list[tuple[int, int]] = []
        # The lanes that get no further sequence.
        self._closed_lanes: set[int] = set()
        self._next_id = 1
        # What left without running, until the driver takes it.
        self.dropped: list[Dropped] = []
        # How many requests have been admitted, and have neither been issued to run nor dropped.
        self.waiting_count = 0

    def is_live(self, correlation_id: int | str) -> bool:
        """Whether requests of that sequence need no START."""
        return correlation_id in self._live

    def lane_of(self, correlation_id: int | str) -> int | None:
        """Where that sequence runs, or BACKLOG; None where it is not live."""
        sequence = self._live.get(correlation_id)
        return None if sequence is None else sequence.lane

    def add_slots(self, lane: int, count: int, now_ns: int) -> list[Sequence]:
        """Take a new lane's slots; returns the sequences from the backlog that have got one of them."""
        for slot in range(count):
            heapq.heappush(self._free, (slot, lane))
        placed: list[Sequence] = []
        while self._backlog and self._free:
            sequence, _ = self._backlog.popitem(last=False)
            slot, lane = heapq.heappop(self._free)
            placed.append(self._placed(sequence, lane, slot, now_ns))
        return placed

    def close_lane(self, lane: int) -> None:
        """Give no slot of that lane away any more."""
        self._closed_lanes.add(lane)
        self._free = [free for free in self._free if free[1] != lane]
        heapq.heapify(self._free)

    def admit(self, request: InferenceRequest, now_ns: int) -> tuple[Sequence, bool]:
        """Put a request at the end of its sequence; returns that, and whether it has just got its slot.

        Raises InferenceError when it belongs to none.
        """
        sequence = self._live_sequence_of(request)
        is_placed = False
        if sequence is None:
            sequence = Sequence(request.correlation_id)
            self._live[sequence.correlation_id] = sequence
            if self._free:
                slot, lane = heapq.heappop(self._free)
                self._placed(sequence, lane, slot, now_ns)
                is_placed = True
            else:
                self._backlog[sequence] = None
        self.append(sequence, request, now_ns)
        if request.flags & SEQUENCE_END and not self._is_iterative:
            self.close(sequence)
        return sequence, is_placed

    def append(self, sequence: Sequence, request: InferenceRequest, now_ns: int) -> None:
        """Queue one more request of a live sequence, or the next iteration of one."""
        sequence.waiting.append(request)
        request.sequence = sequence
        self.waiting_count += 1
        if sequence.lane == BACKLOG:
            self._note_expiry(sequence, request, now_ns)

    def ran(self, sequence: Sequence, now_ns: int) -> None:
        """The request of a sequence that had its turn is over: it is idle from now on, unless more wait."""
        sequence.has_turn = False
        sequence.last_ns = now_ns

    def close(self, sequence: Sequence) -> None:
        """Let no more requests into a sequence; those that wait still run."""
        sequence.is_closed = True
        if self._live.get(sequence.correlation_id) is sequence:
            del self._live[sequence.correlation_id]

    def drop(self, sequence: Sequence, reason: DropReason, others: DropReason) -> None:
        """End a sequence and drop all that wait in it: the first for `reason`, the `others` because of that."""
        self.close(sequence)
        for request in sequence.waiting:
            self.dropped.append(Dropped(request, reason))
            reason = others
        self.waiting_count -= len(sequence.waiting)
        sequence.waiting.clear()

    def drop_if_abandoned(self, sequence: Sequence, now_ns: int) -> bool:
        """Drop a sequence whose next request nobody waits for: what follows would run in a wrong state."""
        request = sequence.waiting[0]
        if request.cancellation.is_cancelled:
            self.drop(sequence, DropReason.CANCELLED, DropReason.CANCELLED)
            return True
        if 0 < request.deadline_ns <= now_ns:
            self.drop(sequence, DropReason.DEADLINE, DropReason.CANCELLED)
            return True
        return False

    def sequence_of(self, request: InferenceRequest) -> Sequence:
        """The sequence of a request that has been admitted."""
        sequence = request.sequence
        assert isinstance(sequence, Sequence)
        return sequence

    def cancelled(self, sequence: Sequence) -> None:
        """Drop a sequence whose next request is cancelled, if it waits for a slot."""
        if sequence not in self._backlog:
            return
        del self._backlog[sequence]
        self.drop(sequence, DropReason.CANCELLED, DropReason.CANCELLED)

    def next_for_slot(self, lane: int, slot: int, now_ns: int) -> Sequence | None:
        """A slot is free: the sequence that gets it, or None, and it stays free."""
        if lane in self._closed_lanes:
            return None
        while self._backlog:
            sequence, _ = self._backlog.popitem(last=False)
            if not self.drop_if_abandoned(sequence, now_ns):
                return self._placed(sequence, lane, slot, now_ns)
        heapq.heappush(self._free, (slot, lane))
        return None

    def expire(self, now_ns: int) -> list[Sequence]:
        """Drop what has waited too long for a slot, and close what is idle; returns the sequences that were idle."""
        expiries = self._expiries
        while expiries and expiries[0][0] <= now_ns:
            expires_ns, _, sequence = heapq.heappop(expiries)
            if sequence in self._backlog and sequence.expires_ns == expires_ns:
                del self._backlog[sequence]
                self.drop(sequence, DropReason.BACKLOG_TIMEOUT, DropReason.BACKLOG_TIMEOUT)
        idle: list[Sequence] = []
        self._checked_ns = now_ns
        while self._checks and self._checks[0][0] <= now_ns:
            sequence = heapq.heappop(self._checks)[2]
            if sequence.is_closed:
                continue
            # While something waits or runs, it waits for us, and not for its client.
            active_ns = now_ns if sequence.has_turn or sequence.waiting else sequence.last_ns
            if active_ns + self._max_idle_ns > now_ns:
                self._check_at(active_ns + self._max_idle_ns, sequence)
            else:
                self.close(sequence)
                idle.append(sequence)
        return idle

    def expires_at(self) -> int:
        """When `expire` has something to do, at the earliest; NEVER if nothing can expire."""
        times = [entry[0] for entry in self._expiries[:1]]
        while self._checks and self._checks[0][2].is_closed:
            heapq.heappop(self._checks)
        times += [max(entry[0], self._checked_ns + self._least_pause_ns) for entry in self._checks[:1]]
        return min(times, default=NEVER)

    def drain_backlog(self) -> list[InferenceRequest]:
        """The requests of all sequences without a slot, removed; no sequence is live afterwards."""
        waiting = [request for sequence in self._backlog for request in sequence.waiting]
        self.waiting_count -= len(waiting)
        self._backlog.clear()
        self._checks.clear()
        self._live.clear()
        self._expiries.clear()
        return waiting

    def check_invariants(self, slotted: list[Sequence], lane_slots: int) -> None:
        """Raise AssertionError when the state is not what the class promises; for tests.

        `slotted` are the sequences that the lanes hold; `lane_slots` is how many slots these have in all.
        """
        assert len(self._free) + len(slotted) == lane_slots
        assert not (self._free and self._backlog)
        for correlation_id, sequence in self._live.items():
            assert sequence.correlation_id == correlation_id
            assert not sequence.is_closed
            assert (sequence in self._backlog) is (sequence.lane == BACKLOG)
            checks = [check_ns for check_ns, _, checked in self._checks if checked is sequence]
            assert len(checks) == (sequence.lane != BACKLOG and not self._is_iterative)
        waiting = sum(len(sequence.waiting) for sequence in (*slotted, *self._backlog))
        assert self.waiting_count == waiting

    def _live_sequence_of(self, request: InferenceRequest) -> Sequence | None:
        """The live sequence of a request, or None when it starts one."""
        correlation_id = request.correlation_id
        if not correlation_id:
            if not self._is_iterative:
                raise invalid_argument(
                    f"inference request to model '{self._model_name}' must specify a non-zero or non-empty "
                    "correlation ID"
                )
            correlation_id = request.correlation_id = self._new_id()
            request.flags |= SEQUENCE_START
        sequence = self._live.get(correlation_id)
        if sequence is None and not request.flags & SEQUENCE_START:
            raise invalid_argument(
                f"inference request for sequence {correlation_id} to model '{self._model_name}' must specify the "
                "START flag on the first request of the sequence"
            )
        return sequence

    def _new_id(self) -> int:
        while self._next_id in self._live:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    def _placed(self, sequence: Sequence, lane: int, slot: int, now_ns: int) -> Sequence:
        sequence.lane, sequence.slot = lane, slot
        if not sequence.is_closed and not self._is_iterative:
            sequence.last_ns = now_ns
            self._check_at(now_ns + self._max_idle_ns, sequence)
        return sequence

    def _check_at(self, time_ns: int, sequence: Sequence) -> None:
        heapq.heappush(self._checks, (time_ns, next(self._order), sequence))
        # Those of closed sequences must not outnumber the others by more than these.
        if len(self._checks) > 2 * len(self._live) + 64:
            self._checks = [entry for entry in self._checks if not entry[2].is_closed]
            heapq.heapify(self._checks)

    def _note_expiry(self, sequence: Sequence, request: InferenceRequest, now_ns: int) -> None:
        if not request.timeout_us:
            return
        expires_ns = now_ns + request.timeout_us * 1000
        if sequence.expires_ns and sequence.expires_ns <= expires_ns:
            return
        sequence.expires_ns = expires_ns
        heapq.heappush(self._expiries, (expires_ns, next(self._order), sequence))
        # Entries go out of date; they must not outnumber those that count by more than these.
        if len(self._expiries) > 2 * len(self._backlog) + 64:
            self._expiries = [
                entry
                for entry in self._expiries
                if entry[2] in self._backlog and entry[2].expires_ns == entry[0]
            ]
            heapq.heapify(self._expiries)
