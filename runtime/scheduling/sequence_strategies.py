"""The sequence batcher that a configuration asks for: its table, and the kind of lane that its strategy means."""

from __future__ import annotations

from collections import defaultdict

from cantata.grammars.model_config import (
    ModelSequenceBatching,
    SequenceStrategyDirect,
    SequenceStrategyOldest,
)
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.dynamic_batcher import DynamicBatcher
from cantata.runtime.scheduling.response_order import OrderedSender, ResponseOrder
from cantata.runtime.scheduling.sequence_batcher import SequenceBatcher
from cantata.runtime.scheduling.sequence_lanes import DirectLane, Lane, OldestLane, Prepare
from cantata.runtime.scheduling.sequence_table import Sequence, SequenceTable


def sequence_batcher(batching: ModelSequenceBatching, spec: ModelSpec, prepare: Prepare) -> SequenceBatcher:
    """A batcher without lanes; `batching` is normalised, so it says how long a sequence may be idle."""
    oldest, direct = batching.oldest, batching.direct or SequenceStrategyDirect()
    if oldest is not None and oldest.preserve_ordering:
        prepare = _in_order(prepare)

    def make_lane(index: int, table: SequenceTable) -> Lane:
        if oldest is not None:
            return _oldest_lane(index, table, spec, prepare, oldest)
        return DirectLane(
            index,
            table,
            spec,
            prepare,
            max_queue_delay_us=direct.max_queue_delay_microseconds,
            minimum_slot_utilization=direct.minimum_slot_utilization,
        )

    is_iterative = batching.iterative_sequence
    max_idle_ns = batching.max_sequence_idle_microseconds * 1000
    table = SequenceTable(spec.model_name, max_idle_ns, is_iterative=is_iterative)
    return SequenceBatcher(table, make_lane, is_iterative=is_iterative)


def _in_order(prepare: Prepare) -> Prepare:
    """`prepare`, and the answers leave an instance in the order in which its requests had their turn."""
    orders: defaultdict[int, ResponseOrder] = defaultdict(ResponseOrder)

    def prepare_in_order(request: InferenceRequest, sequence: Sequence) -> None:
        prepare(request, sequence)
        # A request that comes again keeps its place.
        if not isinstance(request.sender, OrderedSender):
            request.sender = orders[sequence.lane].next_sender(request.sender)

    return prepare_in_order


def _oldest_lane(
    index: int, table: SequenceTable, spec: ModelSpec, prepare: Prepare, oldest: SequenceStrategyOldest
) -> OldestLane:
    batcher = DynamicBatcher(spec, oldest.preferred_batch_size, oldest.max_queue_delay_microseconds)
    slot_count = oldest.max_candidate_sequences if oldest.max_candidate_sequences > 0 else 0
    max_batch_size = max(spec.max_batch_size, 1)
    return OldestLane(index, table, prepare, batcher, slot_count or max_batch_size, max_batch_size)
