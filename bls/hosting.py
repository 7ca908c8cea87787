"""A model's code in the process that runs it: imported, asked to complete its configuration, made into instances.

Knows nothing of typed configurations, so that a model's own process needs only what a model needs. How an instance
runs is `instance.py`.
"""

from __future__ import annotations

from typing import Any

from cantata.bls.abandoned import Reaper
from cantata.bls.current_model import HostedModel, forget_model, host_model, running_hook_of
from cantata.bls.failures import describe_failure
from cantata.bls.instance import PythonInstance
from cantata.bls.loader import ModelCode, open_model_code
from cantata.bls.logger import model_log
from cantata.bls.model_config import ModelConfig
from cantata.bls.outputs import OutputTable
from cantata.runtime.backends.backend import InstancePlacement, ModelFiles, ServerServices
from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.model_spec import ModelSpec


class HostedCode:
    """A model version whose code is imported; `import_code` makes it."""

    def __init__(self, code: ModelCode, model: HostedModel, files: ModelFiles) -> None:
        self._code = code
        self._model = model
        self._files = files

    def complete(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """What the model's `auto_complete_config` makes of `config`, Triton's JSON form; None where it has none."""
        complete = getattr(self._code.model_class, "auto_complete_config", None)
        if complete is None:
            return None
        name = self._model.name
        self._model.is_completing = True
        with running_hook_of(self._model):
            try:
                completed = complete(ModelConfig(config))
            except BaseException as error:
                raise internal_error(
                    f"auto_complete_config of model '{name}' failed: {describe_failure(error)}"
                ) from error
        if not isinstance(completed, ModelConfig):
            raise internal_error(
                f"auto_complete_config function in model '{name}' must return a valid pb.ModelConfig object."
            )
        return completed.as_dict()

    def create_instance(
        self, placement: InstancePlacement, spec: ModelSpec, config_text: str
    ) -> PythonInstance:
        """Make the model's object and run its `initialize`; `config_text` is the configuration as JSON."""
        model = self._model
        with running_hook_of(model):
            try:
                model_object = self._code.model_class()
                initialize = getattr(model_object, "initialize", None)
                if initialize is not None:
                    initialize(self._arguments(placement, config_text))
            except BaseException as error:
                model_log(model.name).error(
                    "initialize of instance '%s' failed", placement.name, exc_info=error
                )
                raise internal_error(
                    f"model '{model.name}' could not be initialized: {describe_failure(error)}"
                ) from error
        instance = PythonInstance(model, placement.name, model_object, OutputTable(spec), spec.is_decoupled)
        instance.start()
        return instance

    def close(self) -> None:
        """Forget the code, and end the metrics that it holds."""
        forget_model(self._model)
        for number in tuple(self._model.metric_numbers):
            self._model.services.custom_metrics.close(number)
        self._code.unload()

    def _arguments(self, placement: InstancePlacement, config_text: str) -> dict[str, str]:
        return {
            "model_config": config_text,
            "model_instance_kind": placement.kind,
            "model_instance_name": placement.name,
            "model_instance_device_id": str(placement.device_id),
            "model_repository": str(self._files.model_directory),
            "model_version": str(self._files.version),
            "model_name": self._files.name,
        }


def import_code(
    files: ModelFiles,
    filename: str,
    services: ServerServices,
    reaper: Reaper,
    *,
    leaves_refusals: bool = False,
) -> HostedCode:
    """Import a model's file; raises InferenceError with the place and the reason where that fails.

    `leaves_refusals` says that `services` refuses calls of models that answer otherwise than the caller expects.
    """
    code = open_model_code(files.name, files.model_directory, files.version_directory, filename)
    model = HostedModel(
        files.name,
        files.version,
        files.version_directory,
        code.package,
        services,
        reaper,
        leaves_refusals=leaves_refusals,
    )
    hosted = HostedCode(code, model, files)
    host_model(model)
    try:
        with running_hook_of(model):
            code.load(files.name)
    except InferenceError:
        hosted.close()
        raise
    return hosted
