"""The `python` backend: models that are a TritonPythonModel class in a model.py.

Owns loading: the code, the completion of the configuration by it, the instances. How an instance runs is
`instance.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cantata.bls.abandoned import Reaper
from cantata.bls.current_model import HostedModel, forget_model, host_model, running_hook_of
from cantata.bls.failures import describe_failure
from cantata.bls.instance import PythonInstance
from cantata.bls.loader import ModelCode, open_model_code
from cantata.bls.logger import model_log
from cantata.bls.model_config import ModelConfig as CompletedConfig
from cantata.bls.outputs import OutputTable
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.reading import model_config_to_json, read_model_config_json
from cantata.runtime.backends.backend import BackendSettings, InstancePlacement, ModelFiles, ServerServices
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument
from cantata.runtime.model_spec import ModelSpec


def create_backend(settings: BackendSettings, services: ServerServices) -> PythonBackend:
    """The backend of one server."""
    return PythonBackend(services)


class PythonBackend:
    """Loads Python models. See Backend."""

    def __init__(self, services: ServerServices) -> None:
        self._services = services
        self._reaper = Reaper()

    def default_instance_count(self, kind: str) -> int:
        return 1

    def default_kind(self) -> str:
        return "AUTO"

    def complete_config(self, files: ModelFiles, config: ModelConfig) -> ModelConfig:
        """What the model's `auto_complete_config` makes of `config`.

        The code is imported for this alone and forgotten: nothing that completion leaves behind is there at serving.
        """
        code, model = self._import(files, config)
        try:
            complete = getattr(code.model_class, "auto_complete_config", None)
            return config if complete is None else _completed(model, config, complete)
        finally:
            _forget(code, model)

    def load(self, files: ModelFiles, config: ModelConfig) -> PythonModel:
        """Import the model's code."""
        code, model = self._import(files, config)
        self._reaper.start()
        return PythonModel(code, model, files, config)

    def close(self) -> None:
        self._reaper.close()

    def _import(self, files: ModelFiles, config: ModelConfig) -> tuple[ModelCode, HostedModel]:
        code = open_model_code(
            files.name, files.model_directory, files.version_directory, config.default_model_filename
        )
        model = HostedModel(
            files.name, files.version, files.version_directory, code.package, self._services, self._reaper
        )
        host_model(model)
        try:
            with running_hook_of(model):
                code.load(files.name)
        except InferenceError:
            _forget(code, model)
            raise
        return code, model


class PythonModel:
    """A model version whose code is imported; each instance is an object of its class. See LoadedModel."""

    def __init__(self, code: ModelCode, model: HostedModel, files: ModelFiles, config: ModelConfig) -> None:
        self._code = code
        self._model = model
        self._files = files
        self._spec = ModelSpec(config, files.version)
        self._outputs = OutputTable(self._spec)
        self._config_text = json.dumps(model_config_to_json(config))

    def create_instance(self, placement: InstancePlacement) -> PythonInstance:
        """Make the model's object and run its `initialize`."""
        model = self._model
        with running_hook_of(model):
            try:
                model_object = self._code.model_class()
                initialize = getattr(model_object, "initialize", None)
                if initialize is not None:
                    initialize(self._arguments(placement))
            except BaseException as error:
                model_log(model.name).error(
                    "initialize of instance '%s' failed", placement.name, exc_info=error
                )
                raise internal_error(
                    f"model '{model.name}' could not be initialized: {describe_failure(error)}"
                ) from error
        instance = PythonInstance(model, placement.name, model_object, self._outputs, self._spec.is_decoupled)
        instance.start()
        return instance

    def close(self) -> None:
        _forget(self._code, self._model)

    def _arguments(self, placement: InstancePlacement) -> dict[str, str]:
        return {
            "model_config": self._config_text,
            "model_instance_kind": placement.kind,
            "model_instance_name": placement.name,
            "model_instance_device_id": str(placement.device_id),
            "model_repository": str(self._files.model_directory),
            "model_version": str(self._files.version),
            "model_name": self._files.name,
        }


def _forget(code: ModelCode, model: HostedModel) -> None:
    forget_model(model)
    code.unload()


def _completed(
    model: HostedModel, config: ModelConfig, complete: Callable[[CompletedConfig], Any]
) -> ModelConfig:
    with running_hook_of(model):
        try:
            completed = complete(CompletedConfig(model_config_to_json(config)))
        except BaseException as error:
            raise internal_error(
                f"auto_complete_config of model '{model.name}' failed: {describe_failure(error)}"
            ) from error
    if not isinstance(completed, CompletedConfig):
        raise internal_error(
            f"auto_complete_config function in model '{model.name}' must return a valid pb.ModelConfig object."
        )
    parsed = read_model_config_json(json.dumps(completed.as_dict()))
    if parsed.config is None or parsed.problems:
        problems = "; ".join(map(str, parsed.problems))
        raise invalid_argument(
            f"auto_complete_config of model '{model.name}' gave a wrong configuration: {problems}"
        )
    return parsed.config
