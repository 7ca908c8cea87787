"""One model instance's slots, and which of their requests run together: direct or oldest (reference, section 6.4).

Pure, as `sequence_table.py` says. A sequence is in the same slot of the same lane from when it gets one to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.batcher import NEVER, Batcher, compared_shapes
from cantata.runtime.scheduling.sequence_table import DropReason, Sequence, SequenceTable
from cantata.runtime.scheduling.settling import Settling

# Gives a request what its model gets beside its inputs, when its turn in its sequence has come.
Prepare = Callable[[InferenceRequest, Sequence], None]
# Makes the batcher that an oldest lane puts its requests through.
MakeBatcher = Callable[[], Batcher]


class Turn(NamedTuple):
    """A request of a batch and its sequence."""

    request: InferenceRequest
    sequence: Sequence


# A batch by position; None is a slot without a request that keeps the others in theirs.
Turns = list[Turn | None]


class Lane(Protocol):
    """The slots of one instance. Sequences that leave without having run all are left in `SequenceTable.dropped`."""

    # Whether the instance must not be given a batch before the last one is over.
    is_exclusive: bool
    slot_count: int

    def place(self, sequence: Sequence, now_ns: int) -> None:
        """A sequence has got the slot that it names."""

    def arrived(self, sequence: Sequence, now_ns: int) -> None:
        """A sequence in one of the slots has a request more."""

    def closed(self, sequence: Sequence, now_ns: int) -> None:
        """A sequence in one of the slots has been closed other than by a request."""

    def cancelled(self, request: InferenceRequest, sequence: Sequence, now_ns: int) -> None:
        """Nobody waits for `request` any more, and it has not begun: if it is a sequence's next, that is dropped."""

    def queued(self) -> int:
        """How many requests have had their turn and wait for the instance."""

    def ready_at(self, now_ns: int) -> int:
        """When the instance, if it is idle, should take a batch: `now_ns` or earlier if at once, or NEVER."""

    def take(self, now_ns: int) -> Turns:
        """The batch to run now; may be empty."""

    def finished(self, turns: Turns, now_ns: int) -> None:
        """A batch is over. What it has led to in its sequences is announced after this."""

    def abandon(self, now_ns: int) -> None:
        """Drop all sequences here; those that get their slots wait for the instance to come back."""

    def drain(self) -> list[InferenceRequest]:
        """All that waits here, removed."""

    def sequences(self) -> list[Sequence]:
        """Those that hold slots, in the order of these."""

    def check_invariants(self) -> None:
        """Raise AssertionError when the state is not what the class promises; for tests."""


class DirectLane:
    """Each sequence keeps its place in the batch, for models that keep state by that.

    Invariants, for `check_invariants`:
    - `_ready` counts the slots whose sequence has a request waiting;
    - `_oldest_ns` is not later than when the oldest of the next requests was queued;
    - no slot above `_top` is taken;
    - a closed sequence holds its slot only while requests of it wait.
    """

    is_exclusive = True

    def __init__(
        self,
        index: int,
        table: SequenceTable,
        spec: ModelSpec,
        prepare: Prepare,
        *,
        max_queue_delay_us: int,
        minimum_slot_utilization: float,
    ) -> None:
        self._index = index
        self._table = table
        self._spec = spec
        self._prepare = prepare
        self._delay_ns = max_queue_delay_us * 1000
        self._compares = bool(spec.compared_inputs) or spec.any_optional
        self.slot_count = max(spec.max_batch_size, 1)
        # The share of ready slots from which on it is not worth waiting for more.
        self._utilization = minimum_slot_utilization if self._delay_ns else 0.0
        self._slots: list[Sequence | None] = [None] * self.slot_count
        self._top = -1
        self._ready = 0
        self._oldest_ns = 0
        self._settling = Settling()
        self._taken_ns = 0

    def place(self, sequence: Sequence, now_ns: int) -> None:
        self._slots[sequence.slot] = sequence
        self._top = max(self._top, sequence.slot)
        if sequence.waiting:
            self._became_ready(sequence)

    def arrived(self, sequence: Sequence, now_ns: int) -> None:
        if len(sequence.waiting) == 1:
            self._became_ready(sequence)

    def closed(self, sequence: Sequence, now_ns: int) -> None:
        if not sequence.waiting and self._slots[sequence.slot] is sequence:
            self._release(sequence.slot, now_ns)

    def cancelled(self, request: InferenceRequest, sequence: Sequence, now_ns: int) -> None:
        if sequence.waiting and sequence.waiting[0] is request:
            self._drop_abandoned(now_ns)

    def queued(self) -> int:
        return 0

    def ready_at(self, now_ns: int) -> int:
        if not self._ready:
            return NEVER
        if self._ready / self.slot_count < self._utilization:
            return self._oldest_ns + self._delay_ns + 1
        return (self._settling.is_on and self._settling.waits_until(self._ready, now_ns)) or now_ns

    def take(self, now_ns: int) -> Turns:
        top = self._drop_abandoned(now_ns)
        if top < 0 or self.ready_at(now_ns) > now_ns:
            return []
        if self._settling.is_on:
            self._settling.end(self._ready)
        self._taken_ns = now_ns
        turns: Turns = []
        shapes: object = None
        for slot in range(top + 1):
            sequence = self._slots[slot]
            if sequence is None or not sequence.waiting:
                turns.append(None)
                continue
            request = sequence.waiting[0]
            self._prepare(request, sequence)
            if self._compares:
                own = compared_shapes(self._spec, request)
                if shapes is None:
                    shapes = own
                elif own != shapes:
                    turns.append(None)
                    continue
            turns.append(Turn(request, sequence))
            sequence.waiting.popleft()
            sequence.has_turn = True
        self._table.waiting_count -= len(turns) - turns.count(None)
        self._tidy(now_ns)
        return turns

    def finished(self, turns: Turns, now_ns: int) -> None:
        coming = 0
        for turn in turns:
            if turn is not None:
                sequence = turn.sequence
                self._table.ran(sequence, now_ns)
                coming += not (sequence.is_closed or sequence.waiting)
        if coming and self._ready:
            self._settling.begin(self._ready, coming, now_ns - self._taken_ns, now_ns, most=self.slot_count)

    def abandon(self, now_ns: int) -> None:
        for sequence in self.sequences():
            self._table.drop(sequence, DropReason.INSTANCE_LOST, DropReason.INSTANCE_LOST)
            self._release(sequence.slot, now_ns)
        self._tidy(now_ns)

    def drain(self) -> list[InferenceRequest]:
        waiting: list[InferenceRequest] = []
        for sequence in self._slots:
            if sequence is not None:
                waiting += sequence.waiting
                sequence.waiting.clear()
        self._table.waiting_count -= len(waiting)
        self._slots = [None] * self.slot_count
        self._top, self._ready = -1, 0
        return waiting

    def sequences(self) -> list[Sequence]:
        return [sequence for sequence in self._slots if sequence is not None]

    def check_invariants(self) -> None:
        ready = 0
        for slot, sequence in enumerate(self._slots):
            if sequence is None:
                continue
            assert (sequence.lane, sequence.slot) == (self._index, slot)
            assert slot <= self._top
            assert sequence.waiting or not sequence.is_closed
            if sequence.waiting:
                ready += 1
                assert self._oldest_ns <= sequence.waiting[0].queued_ns
        assert self._ready == ready

    def _became_ready(self, sequence: Sequence) -> None:
        queued_ns = sequence.waiting[0].queued_ns
        self._oldest_ns = min(self._oldest_ns, queued_ns) if self._ready else queued_ns
        self._ready += 1

    def _release(self, slot: int, now_ns: int) -> None:
        """Give a slot to the next sequence, if one waits."""
        self._slots[slot] = None
        following = self._table.next_for_slot(self._index, slot, now_ns)
        if following is not None:
            self.place(following, now_ns)
        elif slot == self._top:
            while self._top >= 0 and self._slots[self._top] is None:
                self._top -= 1

    def _drop_abandoned(self, now_ns: int) -> int:
        """Drop sequences whose next request nobody waits for; returns the highest slot with a request, or -1."""
        top = -1
        has_dropped = False
        for slot in range(self._top + 1):
            while (sequence := self._slots[slot]) is not None and sequence.waiting:
                if not self._table.drop_if_abandoned(sequence, now_ns):
                    top = slot
                    break
                has_dropped = True
                self._ready -= 1
                self._release(slot, now_ns)
        if has_dropped:
            # Whose age counts now.
            self._tidy(now_ns)
        return top

    def _tidy(self, now_ns: int) -> None:
        """After a batch was taken: count anew what is ready, and give away the slots of sequences that are over."""
        self._ready = 0
        for slot in range(self._top + 1):
            sequence = self._slots[slot]
            if sequence is None:
                continue
            if sequence.waiting:
                self._became_ready(sequence)
            elif sequence.is_closed:
                self._release(slot, now_ns)


class OldestLane:
    """One request of each sequence at a time goes to a batcher, which takes the oldest of them.

    Invariants, for `check_invariants`:
    - `_issued` holds the requests that are in the batcher or running; each is of another slot;
    - `_is_busy[slot]` says that a request from that slot is among them;
    - a sequence with requests waiting is in a busy slot, and so is one that is closed: it keeps its slot until its
      last request is over, so that the next sequence in it would not have to wait for that while others are free.
    """

    is_exclusive = False

    def __init__(
        self,
        index: int,
        table: SequenceTable,
        prepare: Prepare,
        batcher: Batcher,
        slot_count: int,
        max_batch_size: int,
    ) -> None:
        self._index = index
        self._table = table
        self._prepare = prepare
        self._batcher = batcher
        self._most = max_batch_size
        self.slot_count = slot_count
        self._slots: list[Sequence | None] = [None] * slot_count
        self._is_busy = bytearray(slot_count)
        self._issued: dict[InferenceRequest, Turn] = {}
        self._settling = Settling()
        self._taken_ns = 0

    def place(self, sequence: Sequence, now_ns: int) -> None:
        self._slots[sequence.slot] = sequence
        self._issue(sequence.slot, now_ns)

    def arrived(self, sequence: Sequence, now_ns: int) -> None:
        if not self._is_busy[sequence.slot]:
            self._issue(sequence.slot, now_ns)

    def closed(self, sequence: Sequence, now_ns: int) -> None:
        if not self._is_busy[sequence.slot]:
            self._go_on(sequence, now_ns)

    def cancelled(self, request: InferenceRequest, sequence: Sequence, now_ns: int) -> None:
        if request in self._issued:
            self._batcher.remove(request)
            self._drop_issued(request, DropReason.CANCELLED, DropReason.CANCELLED, now_ns)
        elif sequence.waiting and sequence.waiting[0] is request:
            self._table.drop(sequence, DropReason.CANCELLED, DropReason.CANCELLED)
            self.closed(sequence, now_ns)

    def queued(self) -> int:
        return len(self._batcher)

    def ready_at(self, now_ns: int) -> int:
        ready_ns = self._batcher.ready_at(now_ns)
        if self._settling.is_on and NEVER < ready_ns <= now_ns:
            return self._settling.waits_until(len(self._batcher), now_ns) or ready_ns
        return ready_ns

    def take(self, now_ns: int) -> Turns:
        if self._settling.is_on:
            self._settling.end(len(self._batcher))
        self._taken_ns = now_ns
        batch = self._batcher.take(now_ns)
        for request in batch.dropped:
            is_cancelled = request.cancellation.is_cancelled
            reason = DropReason.CANCELLED if is_cancelled else DropReason.DEADLINE
            self._drop_issued(request, reason, DropReason.CANCELLED, now_ns)
        return [self._issued[request] for request in batch.requests]

    def finished(self, turns: Turns, now_ns: int) -> None:
        coming = 0
        for turn in turns:
            if turn is None:
                continue
            request, sequence = turn
            del self._issued[request]
            self._is_busy[sequence.slot] = False
            self._table.ran(sequence, now_ns)
            if sequence.waiting or sequence.is_closed:
                self._go_on(sequence, now_ns)
            else:
                coming += 1
        ready = len(self._batcher)
        if coming and 0 < ready == len(self._issued):
            self._settling.begin(ready, coming, now_ns - self._taken_ns, now_ns, most=self._most)

    def abandon(self, now_ns: int) -> None:
        lost = self.sequences()
        for request in self._batcher.drain():
            self._drop_issued(request, DropReason.INSTANCE_LOST, DropReason.INSTANCE_LOST, now_ns)
        for sequence in lost:
            if self._slots[sequence.slot] is sequence:
                self._table.drop(sequence, DropReason.INSTANCE_LOST, DropReason.INSTANCE_LOST)
                self._release(sequence.slot, now_ns)
                self._issue(sequence.slot, now_ns)

    def drain(self) -> list[InferenceRequest]:
        waiting = self._batcher.drain()
        for request in waiting:
            del self._issued[request]
        for sequence in self.sequences():
            self._table.waiting_count -= len(sequence.waiting)
            waiting += sequence.waiting
            sequence.waiting.clear()
        self._slots = [None] * self.slot_count
        return waiting

    def sequences(self) -> list[Sequence]:
        return [sequence for sequence in self._slots if sequence is not None]

    def check_invariants(self) -> None:
        busy = [turn.sequence.slot for turn in self._issued.values()]
        assert len(busy) == len(set(busy))
        assert [slot for slot in range(self.slot_count) if self._is_busy[slot]] == sorted(busy)
        for slot, sequence in enumerate(self._slots):
            if sequence is None:
                continue
            assert (sequence.lane, sequence.slot) == (self._index, slot)
            assert self._is_busy[slot] or not (sequence.waiting or sequence.is_closed)

    def _go_on(self, sequence: Sequence, now_ns: int) -> None:
        """Nothing of a sequence runs: its next request is sent, or its slot given away if it is over."""
        slot = sequence.slot
        if sequence.is_closed and not sequence.waiting and self._slots[slot] is sequence:
            self._release(slot, now_ns)
        self._issue(slot, now_ns)

    def _issue(self, slot: int, now_ns: int) -> None:
        """Send the next request of a slot to the batcher, if there is one."""
        while not self._is_busy[slot]:
            sequence = self._slots[slot]
            if sequence is None or not sequence.waiting:
                return
            request = sequence.waiting[0]
            # Only asked where it may be so: this is done for every request.
            if (request.cancellation.is_cancelled or request.deadline_ns) and self._table.drop_if_abandoned(
                sequence, now_ns
            ):
                self._release(slot, now_ns)
                continue
            sequence.waiting.popleft()
            self._table.waiting_count -= 1
            self._prepare(request, sequence)
            self._issued[request] = Turn(request, sequence)
            self._is_busy[slot] = True
            sequence.has_turn = True
            self._batcher.add(request, now_ns)
            return

    def _release(self, slot: int, now_ns: int) -> None:
        """Give a slot to the next sequence, if one waits."""
        self._slots[slot] = self._table.next_for_slot(self._index, slot, now_ns)

    def _drop_issued(
        self, request: InferenceRequest, reason: DropReason, others: DropReason, now_ns: int
    ) -> None:
        """The batcher has lost a request, and so a sequence is broken: the rest of it goes as well."""
        sequence = self._issued.pop(request).sequence
        slot = sequence.slot
        self._is_busy[slot] = False
        sequence.waiting.appendleft(request)
        self._table.waiting_count += 1
        self._table.drop(sequence, reason, others)
        self._go_on(sequence, now_ns)
