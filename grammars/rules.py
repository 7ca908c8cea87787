"""The rules that a model's configuration obeys, and the values that Triton fills in before it checks them.

Every breach is found, each with Triton's text and our position and hint. How an ensemble's steps fit together is for
`dag`, and what depends on the devices of the machine for the runtime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import chain
from typing import Final

from cantata.grammars.findings import Finding
from cantata.grammars.model_config import (
    InstanceKind,
    ModelConfig,
    ModelDynamicBatching,
    ModelOptimizationPolicy,
    ModelQueuePolicy,
    ModelSequenceBatching,
    ModelVersionPolicy,
    PinnedMemoryBuffer,
    TimeoutAction,
    VersionPolicyLatest,
)
from cantata.grammars.problems import Path, Positions, Problem, suggest
from cantata.grammars.rules_sequence import check_sequence_batching
from cantata.grammars.rules_tensors import check_tensors, is_tensorrt

ENSEMBLE_PLATFORM: Final = "ensemble"
_DEFAULT_SEQUENCE_IDLE_US: Final = 1_000_000

# The platforms that Triton knows, and the backend that serves each.
_BACKENDS: Final = {
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "libtorch": "pytorch",
    "torch_aoti": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}


def normalize_model_config(config: ModelConfig) -> ModelConfig:
    """The configuration with the defaults that depend on other fields. Instance groups are left to the runtime."""
    changes: dict[str, object] = {}
    policy = config.version_policy
    if policy is None or (policy.latest is None and policy.all is None and policy.specific is None):
        changes["version_policy"] = ModelVersionPolicy(latest=VersionPolicyLatest(num_versions=1))
    preferred = (config.max_batch_size,) if config.max_batch_size > 0 else ()
    batching = config.dynamic_batching
    if batching is not None and not batching.preferred_batch_size:
        changes["dynamic_batching"] = batching.model_copy(update={"preferred_batch_size": preferred})
    if config.sequence_batching is not None:
        changes["sequence_batching"] = _normalize_sequence(config.sequence_batching, preferred)
    if config.ensemble_scheduling is None and config.platform != ENSEMBLE_PLATFORM:
        changes["optimization"] = _normalize_optimization(config.optimization or ModelOptimizationPolicy())
    return config.model_copy(update=changes)


def _normalize_sequence(batching: ModelSequenceBatching, preferred: tuple[int, ...]) -> ModelSequenceBatching:
    changes: dict[str, object] = {}
    if not batching.max_sequence_idle_microseconds:
        changes["max_sequence_idle_microseconds"] = _DEFAULT_SEQUENCE_IDLE_US
    if batching.oldest is not None and not batching.oldest.preferred_batch_size:
        changes["oldest"] = batching.oldest.model_copy(update={"preferred_batch_size": preferred})
    return batching.model_copy(update=changes)


def _normalize_optimization(optimization: ModelOptimizationPolicy) -> ModelOptimizationPolicy:
    names = ("input_pinned_memory", "output_pinned_memory")
    missing = [name for name in names if getattr(optimization, name) is None]
    return optimization.model_copy(update={name: PinnedMemoryBuffer(enable=True) for name in missing})


def validate_model_config(
    config: ModelConfig, positions: Positions, *, check_io: bool = True
) -> list[Problem]:
    """Every breach of the rules. `check_io` is False as long as the model itself may still complete its tensors."""
    findings = chain(
        _identity(config),
        _batch_size(config),
        _dynamic_batching(config),
        check_sequence_batching(config),
        _response_cache(config),
        _instance_groups(config),
        _metrics(config),
        check_tensors(config) if check_io else (),
    )
    return [
        dataclasses.replace(positions.problem(path, message, hint), model=config.name)
        for path, message, hint in findings
    ]


def _identity(config: ModelConfig) -> Iterator[Finding]:
    name, platform, backend = config.name, config.platform, config.backend
    if not name:
        yield Finding(("name",), "model configuration must specify 'name'")
    if platform == ENSEMBLE_PLATFORM:
        if backend:
            message = f"Ensemble model '{name}' must have platform type 'ensemble' and empty backend type"
            yield Finding(("backend",), message)
        if config.ensemble_scheduling is None:
            message = f"ensemble scheduling must be set for ensemble {name} whose platform is ensemble"
            yield Finding(("platform",), message, "add ensemble_scheduling { step [ ... ] }")
    elif not backend and config.ensemble_scheduling is None:
        hint = suggest(platform, (ENSEMBLE_PLATFORM, *_BACKENDS)) if platform else "set backend"
        yield Finding(("platform",), f"unexpected platform type '{platform}' for {name}", hint)
    elif platform and backend and not _is_pair(platform, backend):
        served = _BACKENDS.get(platform)
        hint = (
            f"platform {platform!r} is served by backend {served!r}" if served else "leave the platform out"
        )
        message = f"unexpected 'platform' and 'backend' pair, got:{platform}, {backend}"
        yield Finding(("platform",), message, hint)


def _is_pair(platform: str, backend: str) -> bool:
    """Whether the two name the same backend, or neither is one that Triton knows."""
    known = backend if backend in _BACKENDS.values() else None
    return _BACKENDS.get(platform) == known


def _batch_size(config: ModelConfig) -> Iterator[Finding]:
    if config.max_batch_size < 0:
        message = f"'max_batch_size' must be non-negative value for {config.name}"
        yield Finding(("max_batch_size",), message, "0 is no batching")


def _dynamic_batching(config: ModelConfig) -> Iterator[Finding]:
    batching = config.dynamic_batching
    if batching is None:
        return
    root: Path = ("dynamic_batching",)
    for index, size in enumerate(batching.preferred_batch_size):
        path = (*root, "preferred_batch_size", index)
        if size <= 0:
            yield Finding(path, f"dynamic batching preferred size must be positive for {config.name}")
        elif size > config.max_batch_size:
            message = f"dynamic batching preferred size must be <= max batch size for {config.name}"
            yield Finding(path, message, f"max_batch_size is {config.max_batch_size}")
    yield from _priorities(batching, root, config.name)
    if batching.preserve_ordering:
        yield from _preserved_order(batching, root, config.name)


def _priorities(batching: ModelDynamicBatching, root: Path, model: str) -> Iterator[Finding]:
    levels = batching.priority_levels
    if not levels:
        return
    if not 1 <= batching.default_priority_level <= levels:
        message = f"default priority level must be in range [1, {levels}] for {model}"
        yield Finding((*root, "default_priority_level"), message)
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            message = f"priority queue policy must have priority level in range [1, {levels}] for {model}"
            yield Finding((*root, "priority_queue_policy", str(level)), message)


def _preserved_order(batching: ModelDynamicBatching, root: Path, model: str) -> Iterator[Finding]:
    if batching.priority_levels > 1:
        message = f"Only one priority level is allowed when 'preserve_ordering' is true for {model}"
        yield Finding((*root, "priority_levels"), message)
    policies: list[tuple[Path, ModelQueuePolicy]] = [
        ((*root, "priority_queue_policy", str(level)), policy)
        for level, policy in batching.priority_queue_policy.items()
    ]
    if batching.default_queue_policy is not None:
        policies.insert(0, ((*root, "default_queue_policy"), batching.default_queue_policy))
    for path, policy in policies:
        if policy.timeout_action is TimeoutAction.DELAY and policy.default_timeout_microseconds:
            message = "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for"
            yield Finding((*path, "timeout_action"), f"{message} {model}")


def _response_cache(config: ModelConfig) -> Iterator[Finding]:
    if config.response_cache is None or not config.response_cache.enable:
        return
    refusal = f"Response Cache does not currently support model {config.name} with"
    advice = "Please disable the response cache."
    if config.sequence_batching is not None:
        yield Finding(("response_cache", "enable"), f"{refusal} sequence batching scheduler. {advice}")
    if config.model_transaction_policy is not None and config.model_transaction_policy.decoupled:
        yield Finding(("response_cache", "enable"), f"{refusal} 'decoupled' transaction policy. {advice}")


def _instance_groups(config: ModelConfig) -> Iterator[Finding]:
    for index, group in enumerate(config.instance_group):
        path: Path = ("instance_group", index)
        name = f"instance group {group.name or f'{config.name}_{index}'} of model {config.name}"
        if group.gpus and group.kind in (InstanceKind.KIND_CPU, InstanceKind.KIND_MODEL):
            message = f"{name} has kind {group.kind.name} but specifies one or more GPUs"
            yield Finding((*path, "gpus"), message, "leave gpus out, or set kind: KIND_GPU")
        if group.profile and not is_tensorrt(config):
            platform = config.platform or config.backend
            message = "specifies profile field which is only supported for TensorRT models"
            yield Finding((*path, "profile"), f"{name} and platform {platform} {message}")


def _metrics(config: ModelConfig) -> Iterator[Finding]:
    if config.model_metrics is None:
        return
    for index, control in enumerate(config.model_metrics.metric_control):
        path: Path = ("model_metrics", "metric_control", index)
        if control.metric_identifier is None:
            yield Finding(path, "metric control must specify 'metric_identifier'")
        elif not control.metric_identifier.family:
            message = "metric identifier must specify non-empty 'family'"
            yield Finding((*path, "metric_identifier"), message)
        if control.histogram_options is None:
            yield Finding(path, "metric control must specify 'histogram_options'")
        elif not control.histogram_options.buckets:
            message = "histogram options must specify non-empty 'buckets'"
            yield Finding((*path, "histogram_options"), message)
