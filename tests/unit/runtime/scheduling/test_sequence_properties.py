"""Whatever many sequences do at once, each is run as if it were alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from cantata.grammars.model_config import ModelSequenceBatching
from cantata.runtime.errors import InferenceError
from cantata.runtime.request import SEQUENCE_START, InferenceRequest
from cantata.runtime.scheduling.sequence_lanes import Turns
from cantata.runtime.scheduling.sequence_table import Sequence
from tests.support.sequences import IDLE_NS, BatcherBench, direct, oldest


@dataclass
class Life:
    """One sequence by the naive model: what was accepted for it, and what became of that."""

    accepted: list[InferenceRequest] = field(default_factory=list)
    run: list[InferenceRequest] = field(default_factory=list)
    places: set[tuple[int, int]] = field(default_factory=set)
    is_open: bool = True


@dataclass
class Model:
    """Drives a batcher by events, and holds every outcome against what a sequence is promised."""

    bench: BatcherBench
    lanes: int
    is_direct: bool
    lives: list[Life] = field(default_factory=list)
    current: dict[int, Life] = field(default_factory=dict)
    owner: dict[InferenceRequest, Life] = field(default_factory=dict)
    sequences: dict[int, Life] = field(default_factory=dict)
    kept: list[Sequence] = field(default_factory=list)
    running: dict[int, list[Turns]] = field(default_factory=dict)
    dropped: set[InferenceRequest] = field(default_factory=set)

    def add(self, number: int, count: int, starts: str, end: bool, timeout_us: int) -> None:
        """`count` requests of one sequence; the first starts it if need be, or always, or not even then."""
        for index in range(count):
            is_live = self.bench.batcher.is_live(number)
            start = starts == "always" or (starts == "if need be" and not is_live)
            self._add(number, is_live, start, end and index == count - 1, timeout_us)

    def _add(self, number: int, is_live: bool, start: bool, end: bool, timeout_us: int) -> None:
        try:
            request = self.bench.add(number, start=start, end=end, timeout_us=timeout_us)
        except InferenceError:
            assert not start
            assert not is_live
            return
        assert start or is_live
        if not is_live:
            self.current[number] = Life()
            self.lives.append(self.current[number])
        life = self.current[number]
        life.accepted.append(request)
        self.owner[request] = life
        self._note_dropped()

    def take(self, lane: int) -> None:
        if self.is_direct and self.running.get(lane):
            return
        turns = self.bench.take(lane)
        self._note_dropped()
        if not turns:
            return
        in_flight = {
            id(turn.sequence) for batch in self.running.get(lane, []) for turn in batch if turn is not None
        }
        for row, turn in enumerate(turns):
            if turn is None:
                assert self.is_direct
                continue
            life = self.owner[turn.request]
            assert id(turn.sequence) not in in_flight, "two requests of a sequence run at once"
            self.kept.append(turn.sequence)
            assert self.sequences.setdefault(id(turn.sequence), life) is life
            assert not turn.request.cancellation.is_cancelled
            life.run.append(turn.request)
            life.places.add((lane, row if self.is_direct else turn.sequence.slot))
        assert len({id(turn.sequence) for turn in turns if turn}) == len([turn for turn in turns if turn])
        assert len(turns) <= 3
        self.running.setdefault(lane, []).append(turns)

    def finish(self, lane: int) -> None:
        batches = self.running.get(lane)
        if batches:
            self.bench.finish(batches.pop(0), lane)
            self._note_dropped()

    def cancel(self, index: int, is_told: bool) -> None:
        """Nobody waits for a request any more; the batcher may be told of that, or see it when its turn comes."""
        waiting = [
            request
            for request in self.owner
            if request not in self.dropped and request not in self.owner[request].run
        ]
        if waiting:
            request = waiting[index % len(waiting)]
            request.cancellation.cancel()
            if is_told:
                self.bench.batcher.cancelled(request, self.bench.now_ns)
                self._note_dropped()

    def wait(self, duration_ns: int) -> None:
        self.bench.now_ns += duration_ns
        self.bench.batcher.expire(self.bench.now_ns)
        self._note_dropped()

    def settle(self) -> None:
        """Let everything end, in the end by idleness."""
        for _ in range(400):
            for lane in range(self.lanes):
                self.take(lane)
                self.finish(lane)
            self.wait(IDLE_NS // 4)
        assert len(self.bench.batcher) == 0

    def check(self) -> None:
        self.bench.batcher.check_invariants()
        for life in self.lives:
            dropped = [request for request in life.accepted if request in self.dropped]
            assert life.run + dropped == life.accepted, "in order, each once, and what is dropped is the rest"
            assert len(life.places) <= 1, "a sequence stays where it is"
            assert not life.run or life.run[0].flags & SEQUENCE_START

    def _note_dropped(self) -> None:
        for request, _ in self.bench.batcher.take_dropped():
            assert request not in self.dropped
            self.dropped.add(request)


EVENTS = st.one_of(
    st.tuples(
        st.just("add"),
        st.integers(1, 6),
        st.integers(1, 3),
        st.sampled_from(["if need be", "if need be", "if need be", "always", "never"]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([0, 0, 0, 300]),
    ),
    st.tuples(st.just("take"), st.integers(0, 1)),
    st.tuples(st.just("finish"), st.integers(0, 1)),
    st.tuples(st.just("cancel"), st.integers(0, 20), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1_000, IDLE_NS // 3, IDLE_NS])),
)
BATCHINGS = st.sampled_from(
    [
        direct(),
        direct(delay_us=100, utilization=0.7),
        oldest(),
        oldest(candidates=2),
        oldest(candidates=5, preferred=(2,), delay_us=100),
    ]
)


@given(BATCHINGS, st.integers(1, 2), st.lists(EVENTS, min_size=10, max_size=60))
@settings(deadline=None)
def test_every_sequence_runs_in_order_in_one_place_and_once(
    batching: ModelSequenceBatching, lanes: int, events: list[tuple[str, int]]
) -> None:
    bench = BatcherBench(batching, instances=lanes, max_batch_size=3)
    model = Model(bench, lanes, is_direct=batching.direct is not None)
    for name, *arguments in events:
        if name in ("take", "finish"):
            arguments = [arguments[0] % lanes]
        getattr(model, name)(*arguments)
        bench.batcher.check_invariants()
    model.settle()
    model.check()
