"""A model.py on disk and the backend that loads it: what the tests of the Python backend are arranged with."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from cantata.bls.instance import PythonInstance
from cantata.bls.python_backend import PythonBackend, PythonModel, create_backend
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.reading import read_model_config
from cantata.runtime.backends.backend import BackendSettings, InstancePlacement, ModelFiles
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.execution import Execution
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import tensor_of_array
from tests.support.fake_services import FakeServices

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }
"""
DECOUPLED = CONFIG + "model_transaction_policy { decoupled: true }\n"


class Client:
    """A ResponseSender that keeps what it is sent."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.finals = 0
        self._is_done = Event()

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self.responses.append(response)
        if final:
            self.finals += 1
            self._is_done.set()

    def wait_until_ready(self) -> None:
        pass

    def wait(self) -> list[InferenceResponse]:
        """The responses, once the final one has come."""
        assert self._is_done.wait(10), "no final response came"
        return self.responses

    @property
    def response(self) -> InferenceResponse:
        """The one response of a finished request."""
        [response] = self.wait()
        assert self.finals == 1
        return response

    @property
    def error(self) -> InferenceError:
        error = self.response.error
        assert error is not None
        return error

    def values(self, name: str = "OUT") -> list[list[Any]]:
        """One output of every response, as lists."""
        return [response.outputs[name].array.tolist() for response in self.wait()]


def request_with(
    array: Any = ((1.0, 2.0),), *, name: str = "IN", model: str = "model", **fields: Any
) -> tuple[InferenceRequest, Client]:
    """A validated request of one FP32 input, and its sender."""
    client = Client()
    value = tensor_of_array(np.asarray(array, dtype=np.float32))
    request = InferenceRequest(model, {name: value}, client, time.monotonic_ns(), **fields)
    request.batch_size = value.shape[0]
    return request, client


@dataclass
class PythonModelHost:
    """One model version under `directory`, loaded from source text; `close` ends everything that was made."""

    directory: Path
    services: FakeServices = field(default_factory=FakeServices)

    def __post_init__(self) -> None:
        self.backend: PythonBackend = create_backend(BackendSettings(), self.services)
        self._models: list[PythonModel] = []
        self._instances: list[PythonInstance] = []

    def write(
        self, source: str, *, name: str = "model", version: int = 1, path: str = "model.py"
    ) -> ModelFiles:
        """Put a file of the model's version directory on disk (`../x.py`: of its model directory)."""
        model_directory = self.directory / name
        version_directory = model_directory / str(version)
        version_directory.mkdir(parents=True, exist_ok=True)
        target = (version_directory / path).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(source))
        return ModelFiles(name, version, model_directory, version_directory)

    def config(self, text: str = CONFIG, name: str = "model") -> ModelConfig:
        parsed = read_model_config(f'name: "{name}"\n{text}')
        assert parsed.config is not None, parsed.problems
        return parsed.config

    def load(self, source: str, config: str = CONFIG, *, name: str = "model") -> PythonInstance:
        """Write, load and make one instance."""
        files = self.write(source, name=name)
        return self.load_files(files, config)

    def load_files(self, files: ModelFiles, config: str = CONFIG) -> PythonInstance:
        model = self.backend.load(files, self.config(config, files.name))
        self._models.append(model)
        instance = model.create_instance(InstancePlacement(f"{files.name}_0", "CPU", 0))
        self._instances.append(instance)
        self.spec = ModelSpec(self.config(config, files.name), files.version)
        return instance

    def run(self, instance: PythonInstance, requests: Iterable[InferenceRequest]) -> Execution:
        """Execute a batch as the scheduler does, and send what it leaves."""
        batch = list(requests)
        execution = Execution(self.spec, batch, sum(request.batch_size for request in batch), 0, _send)
        if instance.execute(execution):
            _send(execution)
        return execution

    def infer(self, instance: PythonInstance, array: Any = ((1.0, 2.0),), **fields: Any) -> Client:
        """Run one request."""
        request, client = request_with(array, **fields)
        self.run(instance, [request])
        return client

    def close_instance(self, instance: PythonInstance) -> None:
        self._instances.remove(instance)
        instance.close()

    def close(self) -> None:
        for instance in self._instances:
            instance.close()
        for model in self._models:
            model.close()
        self.backend.close()
        self.services.workers.close()


def _send(execution: Execution) -> None:
    for request, response in zip(execution.requests, execution.responses, strict=True):
        if response is not None:
            request.respond(response, True)
