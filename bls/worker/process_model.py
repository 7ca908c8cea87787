"""Models whose instances run in processes: how each process is started and what it is told.

Owns what all instances of a model version share, which is no code: that is imported where it runs.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import site
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cantata
import cantata.bls
import cantata.dag
import cantata.grammars
import cantata.runtime
from cantata.bls.worker.direct_batches import DirectBatches
from cantata.bls.worker.environment import environment_variables, interpreter_of
from cantata.bls.worker.inherited import Command, SharedFiles
from cantata.bls.worker.launch import Launch
from cantata.bls.worker.process_instance import ProcessInstance
from cantata.bls.worker.process_watch import ProcessWatch
from cantata.bls.worker.settings import ModelIsolation, ProcessSettings
from cantata.bls.worker.worker_process import WorkerProcess
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.reading import model_config_to_json
from cantata.runtime.backends.backend import InstancePlacement, ModelFiles, ServerServices
from cantata.runtime.errors import InferenceError
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.snapshots import ProcessFigures
from cantata.runtime.scheduling.timer import Timer

_PACKAGES: Final = {
    package.__name__: str(Path(package.__path__[0]).resolve())
    for package in (cantata, cantata.grammars, cantata.dag, cantata.runtime, cantata.bls)
}
_BOOTSTRAP: Final = Path(_PACKAGES["cantata.bls"]) / "worker" / "bootstrap.py"


class ProcessStarter:
    """Starts processes for the models of one server; holds what they share: the watching thread and a timer."""

    def __init__(self, settings: ProcessSettings, services: ServerServices) -> None:
        self.timer = Timer()
        self._settings = settings
        self._services = services
        self._watch = ProcessWatch()
        # Those whose main thread executes something.
        self._busy: set[DirectBatches] = set()

    def start(
        self,
        files: ModelFiles,
        config: ModelConfig,
        isolation: ModelIsolation,
        placement: InstancePlacement,
        spec: ModelSpec | None,
        on_made: Callable[[WorkerProcess], None],
        on_end: Callable[[InferenceError], None],
    ) -> WorkerProcess:
        """Start a process and wait until it serves, or, without `spec`, has completed the configuration.

        `on_made` is told of it before it starts, and may kill it meanwhile. Raises InferenceError when it cannot.
        """
        interpreter = None
        if isolation.environment is not None:
            interpreter = interpreter_of(isolation.environment, files.name)
        shared = SharedFiles(self._settings.arena_bytes)
        try:
            launch_file = self._launch(files, config, placement, spec, shared, interpreter).as_file()
            process = WorkerProcess(
                placement.name,
                shared,
                self._services,
                self.timer,
                isolation.timeout_s,
                self._settings.start_timeout_s,
                on_end,
                self._busy,
            )
        except BaseException:
            shared.close_all()
            raise
        command = Command(
            [str(interpreter or sys.executable), str(_BOOTSTRAP), str(launch_file)],
            dict(os.environ) if interpreter is None else environment_variables(interpreter),
            launch_file,
        )
        on_made(process)
        process.start(self._watch, shared, command)
        return process

    def close(self) -> None:
        """End the threads; every instance must have been closed."""
        self.timer.close()
        self._watch.close()

    def _launch(
        self,
        files: ModelFiles,
        config: ModelConfig,
        placement: InstancePlacement,
        spec: ModelSpec | None,
        shared: SharedFiles,
        interpreter: Path | None,
    ) -> Launch:
        return Launch(
            server_pid=os.getpid(),
            model_name=files.name,
            model_version=files.version,
            model_directory=str(files.model_directory),
            version_directory=str(files.version_directory),
            filename=config.default_model_filename,
            config_text=json.dumps(model_config_to_json(config)),
            spec=b"" if spec is None else pickle.dumps(spec),
            instance_name=placement.name,
            instance_kind=placement.kind,
            device_id=placement.device_id,
            direct=shared.direct.fileno(),
            events=shared.events.fileno(),
            inputs=shared.inputs,
            outputs=shared.outputs,
            capacity=shared.capacity,
            packages=_PACKAGES,
            search_path=list(sys.path) if interpreter is None else None,
            fallback_path=site.getsitepackages(),
            root_log_level=logging.getLogger().getEffectiveLevel(),
            log_level=logging.getLogger("cantata").getEffectiveLevel(),
        )


class ProcessModel:
    """A model version whose instances run in processes of their own. See LoadedModel."""

    def __init__(
        self, starter: ProcessStarter, files: ModelFiles, config: ModelConfig, isolation: ModelIsolation
    ) -> None:
        self._starter = starter
        self._files = files
        self._config = config
        self._isolation = isolation
        self._spec = ModelSpec(config, files.version)
        self._instances: list[ProcessInstance] = []

    def create_instance(self, placement: InstancePlacement) -> ProcessInstance:
        """Start a process that makes the model's object and runs its `initialize`."""

        def start(
            on_made: Callable[[WorkerProcess], None], on_end: Callable[[InferenceError], None]
        ) -> WorkerProcess:
            return self._starter.start(
                self._files, self._config, self._isolation, placement, self._spec, on_made, on_end
            )

        instance = ProcessInstance(placement.name, start, self._starter.timer, self._isolation.timeout_s)
        instance.start()
        self._instances.append(instance)
        return instance

    def reconfigure(self, config: ModelConfig) -> None:
        """See ReconfigurableModel; what is started again is told the new configuration too."""
        self._config = config

    def process_figures(self) -> ProcessFigures:
        """The figures of all instances together."""
        figures = [instance.figures() for instance in self._instances]
        return ProcessFigures(
            sum(one.deaths for one in figures),
            sum(one.restarts for one in figures),
            sum(one.timeouts for one in figures),
        )

    def close(self) -> None:
        """Instances hold all there is, and are closed already."""


def complete_in_process(
    starter: ProcessStarter, files: ModelFiles, config: ModelConfig, isolation: ModelIsolation
) -> str | None:
    """What the model's `auto_complete_config` makes of `config`, as JSON, asked in a process that then ends.

    None where the model has none.
    """
    placement = InstancePlacement(f"{files.name} (auto_complete_config)", "CPU", 0)
    process = starter.start(files, config, isolation, placement, None, _nobody_asks, _nobody_asks)
    process.wait_until_gone()
    return process.completed


def _nobody_asks(_: object) -> None:
    """For a process that ends by itself."""
