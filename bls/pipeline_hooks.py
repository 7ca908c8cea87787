"""A declared model with the hooks of a TritonPythonModel, so that every instance that hosts one hosts the other.

Owns the completion of the configuration and the choice of how the model runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from cantata.bls.answers import Answers
from cantata.bls.async_answering import AsyncAnswering
from cantata.bls.declaration import Declaration, DeclaredModel, InstanceInfo, Model, find_declared
from cantata.bls.element_types import TensorType
from cantata.bls.model_config import ModelConfig
from cantata.bls.sync_answering import SyncAnswering


class HostedPipeline:
    """In the place of the class TritonPythonModel: completes the configuration, and makes the model's objects."""

    def __init__(self, declared: DeclaredModel[..., Any] | type[Model]) -> None:
        self.declared = declared

    def auto_complete_config(self, config: ModelConfig) -> ModelConfig:
        """Add what the model declares; what the configuration says must agree with it."""
        declaration = self.declared.declaration
        for name, tensor in declaration.inputs.items():
            properties = _properties(name, tensor)
            if name in declaration.optional_inputs:
                properties["optional"] = True
            config.add_input(properties)
        for name, tensor in declaration.outputs.items():
            config.add_output(_properties(name, tensor))
        config.set_max_batch_size(declaration.max_batch_size)
        if declaration.max_batch_size:
            config.set_dynamic_batching()
        if declaration.is_decoupled or config.as_dict().get("model_transaction_policy"):
            config.set_model_transaction_policy({"decoupled": declaration.is_decoupled})
        return config

    def __call__(self) -> PipelineHooks:
        return PipelineHooks(self.declared)


class PipelineHooks:
    """One object of a declared model. `execute` is a coroutine where the model's is one."""

    def __init__(self, declared: DeclaredModel[..., Any] | type[Model]) -> None:
        self._declaration: Declaration = declared.declaration
        self._model = declared() if isinstance(declared, type) else None
        function = declared.function if isinstance(declared, DeclaredModel) else self._model.execute  # type: ignore[union-attr]
        self._function: Callable[..., Any] = function
        self._answers = Answers(self._declaration, self._declaration.name)
        self.is_ready = getattr(self._model, "is_ready", None)
        answering = AsyncAnswering if self._declaration.is_async else SyncAnswering
        self.execute = answering(self._declaration, self._answers, function).execute

    def initialize(self, args: dict[str, str]) -> None:
        """See TritonPythonModel."""
        self._answers.model_name = args["model_name"]
        if self._model is not None:
            self._model.initialize(_instance_info(args))

    def finalize(self) -> None:
        """See TritonPythonModel."""
        if self._model is not None:
            self._model.finalize()


def hosted_pipeline(module: ModuleType) -> HostedPipeline | None:
    """What stands for TritonPythonModel in a module that declares a model; None in one that does not."""
    declared = find_declared(module)
    return None if declared is None else HostedPipeline(declared)


def _properties(name: str, tensor: TensorType) -> dict[str, Any]:
    return {"name": name, "data_type": tensor.datatype.config_name, "dims": list(tensor.dims)}


def _instance_info(args: dict[str, str]) -> InstanceInfo:
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return InstanceInfo(
        model=args["model_name"],
        version=int(args["model_version"]),
        directory=Path(args["model_repository"]) / args["model_version"],
        name=args["model_instance_name"],
        kind=args["model_instance_kind"],
        device_id=int(args["model_instance_device_id"]),
        parameters={key: value["string_value"] for key, value in parameters.items()},
    )
