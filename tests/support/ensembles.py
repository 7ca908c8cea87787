"""Builders of ensemble configurations and of the models they are composed of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cantata.grammars.model_config import (
    DataType,
    EnsembleStep,
    ModelConfig,
    ModelEnsembling,
    ModelInput,
    ModelOutput,
    ModelTransactionPolicy,
)

FP32: DataType = DataType.TYPE_FP32

# A tensor's dims, or its type and dims.
TensorSpec = Sequence[int] | tuple[DataType, Sequence[int]]


def composing_model(
    name: str = "model",
    inputs: Mapping[str, TensorSpec] | Sequence[str] = ("IN",),
    outputs: Mapping[str, TensorSpec] | Sequence[str] = ("OUT",),
    *,
    max_batch_size: int = 0,
    decoupled: bool = False,
    optional: Sequence[str] = (),
) -> ModelConfig:
    """A model with these tensors; names alone are FP32 of dims [4]."""
    return ModelConfig(
        name=name,
        backend="python",
        max_batch_size=max_batch_size,
        input=tuple(
            ModelInput(name=tensor, data_type=kind, dims=dims, optional=tensor in optional)
            for tensor, (kind, dims) in _specs(inputs).items()
        ),
        output=tuple(
            ModelOutput(name=tensor, data_type=kind, dims=dims)
            for tensor, (kind, dims) in _specs(outputs).items()
        ),
        model_transaction_policy=ModelTransactionPolicy(decoupled=True) if decoupled else None,
    )


def step(
    model_name: str, input_map: Mapping[str, str], output_map: Mapping[str, str], *, model_version: int = -1
) -> EnsembleStep:
    """One step of an ensemble."""
    return EnsembleStep(
        model_name=model_name,
        model_version=model_version,
        input_map=dict(input_map),
        output_map=dict(output_map),
    )


def ensemble(
    inputs: Mapping[str, TensorSpec] | Sequence[str],
    outputs: Mapping[str, TensorSpec] | Sequence[str],
    steps: Sequence[EnsembleStep],
    *,
    name: str = "pipeline",
    max_batch_size: int = 0,
    optional: Sequence[str] = (),
    max_inflight_requests: int = 0,
) -> ModelConfig:
    """An ensemble of these steps."""
    return ModelConfig(
        name=name,
        platform="ensemble",
        max_batch_size=max_batch_size,
        input=tuple(
            ModelInput(name=tensor, data_type=kind, dims=dims, optional=tensor in optional)
            for tensor, (kind, dims) in _specs(inputs).items()
        ),
        output=tuple(
            ModelOutput(name=tensor, data_type=kind, dims=dims)
            for tensor, (kind, dims) in _specs(outputs).items()
        ),
        ensemble_scheduling=ModelEnsembling(step=tuple(steps), max_inflight_requests=max_inflight_requests),
    )


def models_of(config: ModelConfig, decoupled: Sequence[int] = ()) -> list[ModelConfig]:
    """For each step a model with just the tensors that the step maps; the indices in `decoupled` are so."""
    scheduling = config.ensemble_scheduling
    assert scheduling is not None
    return [
        composing_model(
            entry.model_name, tuple(entry.input_map), tuple(entry.output_map), decoupled=index in decoupled
        )
        for index, entry in enumerate(scheduling.step)
    ]


def _specs(tensors: Mapping[str, TensorSpec] | Sequence[str]) -> dict[str, tuple[DataType, tuple[int, ...]]]:
    if not isinstance(tensors, Mapping):
        return dict.fromkeys(tensors, (FP32, (4,)))
    return {tensor: _spec(spec) for tensor, spec in tensors.items()}


def _spec(spec: TensorSpec) -> tuple[DataType, tuple[int, ...]]:
    match spec:
        case (DataType() as kind, [*dims]):
            return kind, tuple(dims)
        case dims:
            return FP32, tuple(int(size) for size in dims)
