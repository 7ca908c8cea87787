"""Builders for the sequence batcher's tests: configurations, requests of sequences, and a batcher driven by hand."""

from __future__ import annotations

from cantata.grammars.model_config import (
    ModelConfig,
    ModelSequenceBatching,
    SequenceStrategyDirect,
    SequenceStrategyOldest,
)
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START, InferenceRequest
from cantata.runtime.scheduling.sequence_batcher import SequenceBatcher
from cantata.runtime.scheduling.sequence_lanes import Turns
from cantata.runtime.scheduling.sequence_strategies import sequence_batcher
from cantata.runtime.scheduling.sequence_table import DropReason, Sequence
from tests.support.requests import identity_config, make_request

IDLE_NS = 1_000_000


def direct(*, delay_us: int = 0, utilization: float = 0.0, **fields: object) -> ModelSequenceBatching:
    strategy = SequenceStrategyDirect(
        max_queue_delay_microseconds=delay_us, minimum_slot_utilization=utilization
    )
    return _batching(fields, direct=strategy)


def oldest(
    *, candidates: int = 0, preferred: tuple[int, ...] = (), delay_us: int = 0, **fields: object
) -> ModelSequenceBatching:
    strategy = SequenceStrategyOldest(
        max_candidate_sequences=candidates,
        preferred_batch_size=preferred,
        max_queue_delay_microseconds=delay_us,
    )
    return _batching(fields, oldest=strategy)


def _batching(fields: dict[str, object], **strategy: object) -> ModelSequenceBatching:
    settings = {"max_sequence_idle_microseconds": IDLE_NS // 1000, **fields, **strategy}
    return ModelSequenceBatching.model_validate(settings)


def sequence_config(
    batching: ModelSequenceBatching, *, max_batch_size: int = 4, dims: tuple[int, ...] = (1,)
) -> ModelConfig:
    config = identity_config("model", max_batch_size=max_batch_size, dims=dims)
    return config.model_copy(update={"sequence_batching": batching})


def sequence_request(
    correlation_id: int | str,
    *,
    start: bool = False,
    end: bool = False,
    id: str = "",
    now_ns: int = 0,
    timeout_us: int = 0,
    size: int = 1,
) -> InferenceRequest:
    request = make_request(1, size, id=id, queued_ns=now_ns)
    request.correlation_id = correlation_id
    request.flags = SEQUENCE_START * start | SEQUENCE_END * end
    request.timeout_us = timeout_us
    return request


class BatcherBench:
    """A sequence batcher, and who may use it: time, instances and answers are the test's."""

    def __init__(
        self,
        batching: ModelSequenceBatching,
        *,
        instances: int = 1,
        max_batch_size: int = 4,
        dims: tuple[int, ...] = (1,),
    ) -> None:
        spec = ModelSpec(sequence_config(batching, max_batch_size=max_batch_size, dims=dims), 1)
        self.batcher: SequenceBatcher = sequence_batcher(batching, spec, self._prepare)
        self.prepared: list[InferenceRequest] = []
        self.now_ns = 0
        for _ in range(instances):
            self.batcher.add_lane(0)

    def add(self, correlation_id: int | str, id: str = "", **fields: object) -> InferenceRequest:
        request = sequence_request(correlation_id, id=id, now_ns=self.now_ns, **fields)  # type: ignore[arg-type]
        self.batcher.add(request, self.now_ns)
        return request

    def take(self, lane: int = 0) -> Turns:
        """The batch that is ready in a lane; none when the lane is not to be asked yet."""
        ready_ns = self.batcher.ready_at(lane, self.now_ns)
        if not 0 <= ready_ns <= self.now_ns:
            return []
        return self.batcher.take(lane, self.now_ns)

    def finish(self, turns: Turns, lane: int = 0, again: tuple[InferenceRequest, ...] = ()) -> None:
        self.batcher.finished(lane, turns, again, self.now_ns)

    def run(self, lane: int = 0) -> list[str | None]:
        """Take a batch and end it: the ids of its requests, None for a row that stands for nobody."""
        turns = self.take(lane)
        self.finish(turns, lane)
        return ids_of(turns)

    def dropped(self) -> list[tuple[str, DropReason]]:
        return [(request.id, reason) for request, reason in self.batcher.take_dropped()]

    def _prepare(self, request: InferenceRequest, sequence: Sequence) -> None:
        self.prepared.append(request)


def ids_of(turns: Turns) -> list[str | None]:
    return [None if turn is None else turn.request.id for turn in turns]
