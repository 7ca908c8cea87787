"""The `python` backend: models that are a TritonPythonModel class in a model.py.

Owns loading: the completion of the configuration, and where instances run. How the code is hosted is `hosting.py`.
"""

from __future__ import annotations

import json

from cantata.bls.abandoned import Reaper
from cantata.bls.hosting import HostedCode, import_code
from cantata.bls.instance import PythonInstance
from cantata.bls.worker.process_model import ProcessModel, ProcessStarter, complete_in_process
from cantata.bls.worker.settings import Isolation, ProcessSettings, model_isolation, process_settings
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.reading import model_config_to_json, read_model_config_json
from cantata.runtime.backends.backend import BackendSettings, InstancePlacement, ModelFiles, ServerServices
from cantata.runtime.errors import invalid_argument
from cantata.runtime.model_spec import ModelSpec


def create_backend(settings: BackendSettings, services: ServerServices) -> PythonBackend:
    """The backend of one server."""
    return PythonBackend(process_settings(settings.values), services)


class PythonBackend:
    """Loads Python models. See Backend."""

    def __init__(self, settings: ProcessSettings, services: ServerServices) -> None:
        self._settings = settings
        self._services = services
        self._reaper = Reaper()
        self._starter = ProcessStarter(settings, services)

    def default_instance_count(self, kind: str) -> int:
        return 1

    def default_kind(self) -> str:
        return "AUTO"

    def complete_config(self, files: ModelFiles, config: ModelConfig) -> ModelConfig:
        """What the model's `auto_complete_config` makes of `config`.

        The code is imported for this alone and forgotten: nothing that completion leaves behind is there at serving.
        """
        isolation = model_isolation(config, files.model_directory, self._settings)
        if isolation.isolation is Isolation.PROCESS:
            completed = complete_in_process(self._starter, files, config, isolation)
        else:
            completed = self._complete_here(files, config)
        return config if completed is None else _read_completed(files.name, completed)

    def load(self, files: ModelFiles, config: ModelConfig) -> PythonModel | ProcessModel:
        """Import the model's code; with process isolation, that is left to its processes."""
        isolation = model_isolation(config, files.model_directory, self._settings)
        if isolation.isolation is Isolation.PROCESS:
            return ProcessModel(self._starter, files, config, isolation)
        code = import_code(files, config.default_model_filename, self._services, self._reaper)
        self._reaper.start()
        return PythonModel(code, files, config)

    def hosts_alike(self, files: ModelFiles, one: ModelConfig, other: ModelConfig) -> bool:
        """See HostingBackend: one instance more may mean that they are processes."""
        directory, settings = files.model_directory, self._settings
        return model_isolation(one, directory, settings) == model_isolation(other, directory, settings)

    def close(self) -> None:
        self._reaper.close()
        self._starter.close()

    def _complete_here(self, files: ModelFiles, config: ModelConfig) -> str | None:
        code = import_code(files, config.default_model_filename, self._services, self._reaper)
        try:
            completed = code.complete(model_config_to_json(config))
        finally:
            code.close()
        return None if completed is None else json.dumps(completed)


class PythonModel:
    """A model version whose code is imported; each instance is an object of its class. See LoadedModel."""

    def __init__(self, code: HostedCode, files: ModelFiles, config: ModelConfig) -> None:
        self._code = code
        self._spec = ModelSpec(config, files.version)
        self._config_text = json.dumps(model_config_to_json(config))

    def create_instance(self, placement: InstancePlacement) -> PythonInstance:
        """Make the model's object and run its `initialize`."""
        return self._code.create_instance(placement, self._spec, self._config_text)

    def reconfigure(self, config: ModelConfig) -> None:
        """See ReconfigurableModel."""
        self._config_text = json.dumps(model_config_to_json(config))

    def close(self) -> None:
        self._code.close()


def _read_completed(name: str, completed: str) -> ModelConfig:
    parsed = read_model_config_json(completed)
    if parsed.config is None or parsed.problems:
        problems = "; ".join(map(str, parsed.problems))
        raise invalid_argument(
            f"auto_complete_config of model '{name}' gave a wrong configuration: {problems}"
        )
    return parsed.config
