"""The sequence batcher: all sequences of a model version over all its instances, as one state machine.

Pure, as `sequence_table.py` says: it joins the table, which knows whose turn it is to have a slot, to the lanes, one
for each instance, which know what runs next there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.sequence_lanes import Lane, Turns
from cantata.runtime.scheduling.sequence_table import BACKLOG, Dropped, Sequence, SequenceTable

# Makes the lane of one more instance, of the table that is the batcher's.
MakeLane = Callable[[int, SequenceTable], Lane]


class SequenceBatcher:
    """Requests go in one by one, and come out as batches for a given lane.

    Invariants, for `check_invariants`, beside those of the table and of the lanes:
    - a sequence with a slot is held by the lane that it names, and by no other;
    - every request that went in is waiting, in a batcher, part of a batch that is not finished, in `dropped`, or out.
    """

    def __init__(self, table: SequenceTable, make_lane: MakeLane, *, is_iterative: bool) -> None:
        self._table = table
        self._make_lane = make_lane
        self._is_iterative = is_iterative
        self._lanes: list[Lane] = []
        # Those that get no further sequence.
        self._closed: set[int] = set()

    def __len__(self) -> int:
        """How many requests wait, be it for a slot, for their turn, or for the instance."""
        return self._table.waiting_count + sum(lane.queued() for lane in self._lanes)

    def add_lane(self, now_ns: int) -> int:
        """One more instance; returns its lane's index."""
        index = len(self._lanes)
        lane = self._make_lane(index, self._table)
        self._lanes.append(lane)
        for sequence in self._table.add_slots(index, lane.slot_count, now_ns):
            lane.place(sequence, now_ns)
        return index

    def close_lane(self, lane: int) -> None:
        """Let no further sequence into a lane; those that are there go on."""
        self._table.close_lane(lane)
        self._closed.add(lane)

    def is_drained(self, lane: int) -> bool:
        """Whether nothing is left to run in a lane, but for what runs now."""
        return not self._lanes[lane].queued() and not self._lanes[lane].sequences()

    def is_live(self, correlation_id: int | str) -> bool:
        """Whether requests of that sequence need no START."""
        return self._table.is_live(correlation_id)

    def lane_of(self, correlation_id: int | str) -> int | None:
        """The lane of that sequence, or BACKLOG; None where it is not live."""
        return self._table.lane_of(correlation_id)

    def is_exclusive(self, lane: int) -> bool:
        """Whether that lane may not be asked for a batch before its last one is finished."""
        return self._lanes[lane].is_exclusive

    def add(self, request: InferenceRequest, now_ns: int) -> int:
        """Queue a validated request; returns the lane to ask for a batch, or BACKLOG.

        Raises InferenceError when the request belongs to no sequence.
        """
        sequence, is_placed = self._table.admit(request, now_ns)
        index = sequence.lane
        if index != BACKLOG:
            lane = self._lanes[index]
            if is_placed:
                lane.place(sequence, now_ns)
            else:
                lane.arrived(sequence, now_ns)
        return index

    def ready_at(self, lane: int, now_ns: int) -> int:
        """When that lane's instance, if it is idle, should take a batch; NEVER if nothing is queued there."""
        return self._lanes[lane].ready_at(now_ns)

    def take(self, lane: int, now_ns: int) -> Turns:
        """The batch to run now in that lane's instance; empty when all that was ready has been dropped."""
        return self._lanes[lane].take(now_ns)

    def finished(
        self, lane: int, turns: Turns, rescheduled: Collection[InferenceRequest], now_ns: int
    ) -> None:
        """A batch is over; those of its requests that are `rescheduled` come again as their sequences' next."""
        if not self._is_iterative:
            self._lanes[lane].finished(turns, now_ns)
            return
        again: list[Sequence] = []
        ended: list[Sequence] = []
        for turn in turns:
            if turn is None:
                continue
            request, sequence = turn
            if request in rescheduled:
                request.flags = 0
                self._table.append(sequence, request, now_ns)
                again.append(sequence)
            else:
                self._table.close(sequence)
                ended.append(sequence)
        self._lanes[lane].finished(turns, now_ns)
        for sequence in again:
            self._lanes[lane].arrived(sequence, now_ns)
        for sequence in ended:
            self._lanes[lane].closed(sequence, now_ns)

    def instance_lost(self, lane: int, now_ns: int) -> None:
        """A lane's instance has failed as a whole: with it go the sequences that it has begun."""
        self._lanes[lane].abandon(now_ns)

    def cancelled(self, request: InferenceRequest, now_ns: int) -> None:
        """Nobody waits for `request` any more: if it is a sequence's next and has not begun, the sequence is dropped.

        Any lane may have become ready.
        """
        sequence = self._table.sequence_of(request)
        if sequence.lane != BACKLOG:
            self._lanes[sequence.lane].cancelled(request, sequence, now_ns)
        elif sequence.waiting and sequence.waiting[0] is request:
            self._table.cancelled(sequence)

    def expire(self, now_ns: int) -> None:
        """End the sequences that are idle, and drop those that have waited too long for a slot.

        Any lane may have become ready.
        """
        for sequence in self._table.expire(now_ns):
            self._lanes[sequence.lane].closed(sequence, now_ns)

    def expires_at(self) -> int:
        """When `expire` may have something to do; NEVER if nothing can expire."""
        return self._table.expires_at()

    def take_dropped(self) -> list[Dropped]:
        """The requests that have left without having run, since this was last asked."""
        dropped = self._table.dropped
        if dropped:
            self._table.dropped = []
        return dropped

    def drain(self) -> list[InferenceRequest]:
        """Everything queued, removed; for when the model can no longer run. No request may be added afterwards."""
        waiting = self._table.drain_backlog()
        for lane in self._lanes:
            waiting += lane.drain()
        return waiting

    def check_invariants(self) -> None:
        """Raise AssertionError when the state is not what the classes promise; for tests."""
        slotted = [sequence for lane in self._lanes for sequence in lane.sequences()]
        assert len(slotted) == len({id(sequence) for sequence in slotted})
        slots = sum(
            len(lane.sequences()) if index in self._closed else lane.slot_count
            for index, lane in enumerate(self._lanes)
        )
        self._table.check_invariants(slotted, slots)
        for lane in self._lanes:
            lane.check_invariants()
