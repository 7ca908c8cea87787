"""The part of a model's configuration that says how its requests are scheduled: queues, batchers, ensembles.

Only names, types and defaults of Triton's model_config.proto; no rule. Import from `cantata.grammars.model_config`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from cantata.grammars.model_tensors import DataType
from cantata.grammars.schema import ConfigMessage, Float, Int32, Int64, UInt32, UInt64


class TimeoutAction(enum.IntEnum):
    """What becomes of a request that has waited for longer than its timeout."""

    REJECT = 0
    DELAY = 1


class ModelQueuePolicy(ConfigMessage):
    timeout_action: TimeoutAction = TimeoutAction.REJECT
    # 0: requests do not time out.
    default_timeout_microseconds: UInt64 = 0
    allow_timeout_override: bool = False
    # 0: the queue is not bounded.
    max_queue_size: UInt32 = 0


class ModelDynamicBatching(ConfigMessage):
    preferred_batch_size: tuple[Int32, ...] = ()
    max_queue_delay_microseconds: UInt64 = 0
    preserve_ordering: bool = False
    priority_levels: UInt64 = 0
    default_priority_level: UInt64 = 0
    default_queue_policy: ModelQueuePolicy | None = None
    priority_queue_policy: dict[UInt64, ModelQueuePolicy] = Field(default_factory=dict)


class ControlKind(enum.IntEnum):
    """What a control tensor tells the model about its sequence."""

    CONTROL_SEQUENCE_START = 0
    CONTROL_SEQUENCE_READY = 1
    CONTROL_SEQUENCE_END = 2
    CONTROL_SEQUENCE_CORRID = 3


class SequenceControl(ConfigMessage):
    """ModelSequenceBatching.Control."""

    kind: ControlKind = ControlKind.CONTROL_SEQUENCE_START
    int32_false_true: tuple[Int32, ...] = ()
    fp32_false_true: tuple[Float, ...] = ()
    bool_false_true: tuple[bool, ...] = ()
    # For the correlation ID alone.
    data_type: DataType = DataType.TYPE_INVALID


class SequenceControlInput(ConfigMessage):
    """ModelSequenceBatching.ControlInput."""

    name: str = ""
    control: tuple[SequenceControl, ...] = ()


class SequenceInitialState(ConfigMessage):
    """ModelSequenceBatching.InitialState."""

    oneofs: ClassVar[Mapping[str, tuple[str, ...]]] = {"state_data": ("zero_data", "data_file")}

    data_type: DataType = DataType.TYPE_INVALID
    dims: tuple[Int64, ...] = ()
    # Its presence counts, not its value.
    zero_data: bool | None = None
    data_file: str | None = None
    name: str = ""


class SequenceState(ConfigMessage):
    """ModelSequenceBatching.State."""

    input_name: str = ""
    output_name: str = ""
    data_type: DataType = DataType.TYPE_INVALID
    dims: tuple[Int64, ...] = ()
    initial_state: tuple[SequenceInitialState, ...] = ()
    use_same_buffer_for_input_output: bool = False
    use_growable_memory: bool = False


class SequenceStrategyDirect(ConfigMessage):
    """ModelSequenceBatching.StrategyDirect."""

    max_queue_delay_microseconds: UInt64 = 0
    minimum_slot_utilization: Float = 0.0


class SequenceStrategyOldest(ConfigMessage):
    """ModelSequenceBatching.StrategyOldest."""

    max_candidate_sequences: Int32 = 0
    preferred_batch_size: tuple[Int32, ...] = ()
    max_queue_delay_microseconds: UInt64 = 0
    preserve_ordering: bool = False


class ModelSequenceBatching(ConfigMessage):
    oneofs: ClassVar[Mapping[str, tuple[str, ...]]] = {"strategy_choice": ("direct", "oldest")}

    direct: SequenceStrategyDirect | None = None
    oldest: SequenceStrategyOldest | None = None
    # 0 becomes a second in a served configuration.
    max_sequence_idle_microseconds: UInt64 = 0
    control_input: tuple[SequenceControlInput, ...] = ()
    state: tuple[SequenceState, ...] = ()
    iterative_sequence: bool = False


class EnsembleStep(ConfigMessage):
    """ModelEnsembling.Step: one call of a model, and which ensemble tensors it reads and writes."""

    model_name: str = ""
    # -1 is the latest; a step that says nothing asks for version 0.
    model_version: Int64 = 0
    # From the model's inputs to ensemble tensors, and from its outputs likewise.
    input_map: dict[str, str] = Field(default_factory=dict)
    output_map: dict[str, str] = Field(default_factory=dict)
    model_namespace: str = ""


class ModelEnsembling(ConfigMessage):
    step: tuple[EnsembleStep, ...] = ()
    # 0: not bounded.
    max_inflight_requests: UInt32 = 0
