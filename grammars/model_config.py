"""A model's configuration as frozen values: Triton's messages, field names and defaults.

A field is a tuple where the message has a repeated one, a dict where it has a map, and `X | None` where presence
counts. Only names, types and defaults; the rules that a configuration must obey are in `rules`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from cantata.grammars.model_scheduling import (
    ControlKind,
    EnsembleStep,
    ModelDynamicBatching,
    ModelEnsembling,
    ModelQueuePolicy,
    ModelSequenceBatching,
    SequenceControl,
    SequenceControlInput,
    SequenceInitialState,
    SequenceState,
    SequenceStrategyDirect,
    SequenceStrategyOldest,
    TimeoutAction,
)
from cantata.grammars.model_tensors import (
    BatchInput,
    BatchInputKind,
    BatchOutput,
    BatchOutputKind,
    DataType,
    InputFormat,
    ModelInput,
    ModelOutput,
    ModelTensorReshape,
)
from cantata.grammars.schema import ConfigMessage, Double, Int32, Int64, UInt32

__all__ = [
    "Accelerator",
    "BatchInput",
    "BatchInputKind",
    "BatchOutput",
    "BatchOutputKind",
    "ControlKind",
    "CudaGraphLowerBound",
    "CudaGraphShape",
    "CudaGraphSpec",
    "DataType",
    "EnsembleStep",
    "ExecutionAccelerators",
    "HistogramOptions",
    "InputFormat",
    "InstanceKind",
    "MetricControl",
    "MetricIdentifier",
    "ModelConfig",
    "ModelDynamicBatching",
    "ModelEnsembling",
    "ModelInput",
    "ModelInstanceGroup",
    "ModelMetrics",
    "ModelOperations",
    "ModelOptimizationPolicy",
    "ModelOutput",
    "ModelParameter",
    "ModelPriority",
    "ModelQueuePolicy",
    "ModelRateLimiter",
    "ModelRepositoryAgents",
    "ModelResponseCache",
    "ModelSequenceBatching",
    "ModelTensorReshape",
    "ModelTransactionPolicy",
    "ModelVersionPolicy",
    "ModelWarmup",
    "ModelWarmupInput",
    "OptimizationCuda",
    "OptimizationGraph",
    "PinnedMemoryBuffer",
    "RateLimiterResource",
    "RepositoryAgent",
    "SecondaryDevice",
    "SecondaryDeviceKind",
    "SequenceControl",
    "SequenceControlInput",
    "SequenceInitialState",
    "SequenceState",
    "SequenceStrategyDirect",
    "SequenceStrategyOldest",
    "TimeoutAction",
    "VersionPolicyAll",
    "VersionPolicyLatest",
    "VersionPolicySpecific",
]


class VersionPolicyLatest(ConfigMessage):
    num_versions: UInt32 = 0


class VersionPolicyAll(ConfigMessage):
    pass


class VersionPolicySpecific(ConfigMessage):
    versions: tuple[Int64, ...] = ()


class ModelVersionPolicy(ConfigMessage):
    oneofs: ClassVar[Mapping[str, tuple[str, ...]]] = {"policy_choice": ("latest", "all", "specific")}

    latest: VersionPolicyLatest | None = None
    all: VersionPolicyAll | None = None
    specific: VersionPolicySpecific | None = None


class OptimizationGraph(ConfigMessage):
    """ModelOptimizationPolicy.Graph."""

    level: Int32 = 0


class ModelPriority(enum.IntEnum):
    """ModelOptimizationPolicy.ModelPriority."""

    PRIORITY_DEFAULT = 0
    PRIORITY_MAX = 1
    PRIORITY_MIN = 2


class CudaGraphShape(ConfigMessage):
    """ModelOptimizationPolicy.Cuda.GraphSpec.Shape."""

    dim: tuple[Int64, ...] = ()


class CudaGraphLowerBound(ConfigMessage):
    """ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound."""

    batch_size: Int32 = 0
    input: dict[str, CudaGraphShape] = Field(default_factory=dict)


class CudaGraphSpec(ConfigMessage):
    """ModelOptimizationPolicy.Cuda.GraphSpec."""

    batch_size: Int32 = 0
    input: dict[str, CudaGraphShape] = Field(default_factory=dict)
    graph_lower_bound: CudaGraphLowerBound | None = None


class OptimizationCuda(ConfigMessage):
    """ModelOptimizationPolicy.Cuda."""

    graphs: bool = False
    busy_wait_events: bool = False
    graph_spec: tuple[CudaGraphSpec, ...] = ()
    output_copy_stream: bool = False


class Accelerator(ConfigMessage):
    """ModelOptimizationPolicy.ExecutionAccelerators.Accelerator."""

    name: str = ""
    parameters: dict[str, str] = Field(default_factory=dict)


class ExecutionAccelerators(ConfigMessage):
    """ModelOptimizationPolicy.ExecutionAccelerators."""

    gpu_execution_accelerator: tuple[Accelerator, ...] = ()
    cpu_execution_accelerator: tuple[Accelerator, ...] = ()


class PinnedMemoryBuffer(ConfigMessage):
    """ModelOptimizationPolicy.PinnedMemoryBuffer."""

    enable: bool = False


class ModelOptimizationPolicy(ConfigMessage):
    graph: OptimizationGraph | None = None
    priority: ModelPriority = ModelPriority.PRIORITY_DEFAULT
    cuda: OptimizationCuda | None = None
    execution_accelerators: ExecutionAccelerators | None = None
    input_pinned_memory: PinnedMemoryBuffer | None = None
    output_pinned_memory: PinnedMemoryBuffer | None = None
    gather_kernel_buffer_threshold: UInt32 = 0
    eager_batching: bool = False


class RateLimiterResource(ConfigMessage):
    """ModelRateLimiter.Resource."""

    name: str = ""
    # `global` in the text, a word that Python keeps for itself.
    global_: bool = Field(default=False, alias="global")
    count: UInt32 = 0


class ModelRateLimiter(ConfigMessage):
    resources: tuple[RateLimiterResource, ...] = ()
    # 0 counts as 1; a bigger number is given fewer chances.
    priority: UInt32 = 0


class InstanceKind(enum.IntEnum):
    """ModelInstanceGroup.Kind: which devices the instances of a group run on."""

    KIND_AUTO = 0
    KIND_GPU = 1
    KIND_CPU = 2
    KIND_MODEL = 3


class SecondaryDeviceKind(enum.IntEnum):
    """ModelInstanceGroup.SecondaryDevice.SecondaryDeviceKind."""

    KIND_NVDLA = 0


class SecondaryDevice(ConfigMessage):
    """ModelInstanceGroup.SecondaryDevice."""

    kind: SecondaryDeviceKind = SecondaryDeviceKind.KIND_NVDLA
    device_id: Int64 = 0


class ModelInstanceGroup(ConfigMessage):
    name: str = ""
    kind: InstanceKind = InstanceKind.KIND_AUTO
    count: Int32 = 0
    rate_limiter: ModelRateLimiter | None = None
    gpus: tuple[Int32, ...] = ()
    secondary_devices: tuple[SecondaryDevice, ...] = ()
    profile: tuple[str, ...] = ()
    # Made, but given no requests.
    passive: bool = False
    host_policy: str = ""


class ModelParameter(ConfigMessage):
    string_value: str = ""


class ModelWarmupInput(ConfigMessage):
    """ModelWarmup.Input."""

    oneofs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input_data_type": ("zero_data", "random_data", "input_data_file")
    }

    data_type: DataType = DataType.TYPE_INVALID
    dims: tuple[Int64, ...] = ()
    zero_data: bool | None = None
    random_data: bool | None = None
    input_data_file: str | None = None


class ModelWarmup(ConfigMessage):
    name: str = ""
    batch_size: UInt32 = 0
    inputs: dict[str, ModelWarmupInput] = Field(default_factory=dict)
    count: UInt32 = 0


class ModelOperations(ConfigMessage):
    op_library_filename: tuple[str, ...] = ()


class ModelTransactionPolicy(ConfigMessage):
    decoupled: bool = False


class RepositoryAgent(ConfigMessage):
    """ModelRepositoryAgents.Agent."""

    name: str = ""
    parameters: dict[str, str] = Field(default_factory=dict)


class ModelRepositoryAgents(ConfigMessage):
    agents: tuple[RepositoryAgent, ...] = ()


class ModelResponseCache(ConfigMessage):
    enable: bool = False


class MetricIdentifier(ConfigMessage):
    """ModelMetrics.MetricControl.MetricIdentifier."""

    family: str = ""


class HistogramOptions(ConfigMessage):
    """ModelMetrics.MetricControl.HistogramOptions."""

    buckets: tuple[Double, ...] = ()


class MetricControl(ConfigMessage):
    """ModelMetrics.MetricControl."""

    oneofs: ClassVar[Mapping[str, tuple[str, ...]]] = {"metric_options": ("histogram_options",)}

    metric_identifier: MetricIdentifier | None = None
    histogram_options: HistogramOptions | None = None


class ModelMetrics(ConfigMessage):
    metric_control: tuple[MetricControl, ...] = ()


class ModelConfig(ConfigMessage):
    """Everything that a config.pbtxt can say of a model."""

    oneofs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scheduling_choice": ("dynamic_batching", "sequence_batching", "ensemble_scheduling")
    }

    name: str = ""
    platform: str = ""
    backend: str = ""
    runtime: str = ""
    version_policy: ModelVersionPolicy | None = None
    # 0: no batching. Above it, every tensor has a batch dimension that `dims` does not show.
    max_batch_size: Int32 = 0
    input: tuple[ModelInput, ...] = ()
    output: tuple[ModelOutput, ...] = ()
    batch_input: tuple[BatchInput, ...] = ()
    batch_output: tuple[BatchOutput, ...] = ()
    optimization: ModelOptimizationPolicy | None = None
    dynamic_batching: ModelDynamicBatching | None = None
    sequence_batching: ModelSequenceBatching | None = None
    ensemble_scheduling: ModelEnsembling | None = None
    instance_group: tuple[ModelInstanceGroup, ...] = ()
    default_model_filename: str = ""
    cc_model_filenames: dict[str, str] = Field(default_factory=dict)
    metric_tags: dict[str, str] = Field(default_factory=dict)
    parameters: dict[str, ModelParameter] = Field(default_factory=dict)
    model_warmup: tuple[ModelWarmup, ...] = ()
    model_operations: ModelOperations | None = None
    model_transaction_policy: ModelTransactionPolicy | None = None
    model_repository_agents: ModelRepositoryAgents | None = None
    response_cache: ModelResponseCache | None = None
    model_metrics: ModelMetrics | None = None
