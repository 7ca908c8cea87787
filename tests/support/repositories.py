"""Builders of model repositories on disk: Python models, ensembles of them, and the classic ones ready made.

repository = Repository(tmp_path)
repository.add_identity("identity", max_batch_size=8)
repository.add_chain("chain", ["identity", "identity", "identity"])
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

_MODEL_HEAD = """\
import time

import numpy as np
import triton_python_backend_utils as pb_utils


"""

_BLS = """\
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "INPUT")
        for _ in range({calls}):
            inner = pb_utils.Tensor("INPUT", tensor.as_numpy())
            call = pb_utils.InferenceRequest(
                model_name="{target}", requested_output_names=["OUTPUT"], inputs=[inner]
            )
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            tensor = pb_utils.get_output_tensor_by_name(response, "OUTPUT")
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", tensor.as_numpy())])
"""

_REPEAT = """\
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for value in pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy():
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([value]))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

_IDENTITY = """\
class TritonPythonModel:
    def execute(self, requests):
        {pause}
        return [self.answer(request) for request in requests]

    def answer(self, request):
        array = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array)])
"""


class Repository:
    """A directory that models are added to; its models have one input INPUT and one output OUTPUT."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        name: str,
        config: str,
        model: str = "",
        *,
        version: int = 1,
        files: dict[str, bytes] | None = None,
    ) -> Path:
        """Write a model of any kind; `files` go into its version directory. Returns the model's directory."""
        directory = self.path / name
        version_directory = directory / str(version)
        version_directory.mkdir(parents=True, exist_ok=True)
        if config:
            (directory / "config.pbtxt").write_text(textwrap.dedent(config))
        if model:
            (version_directory / "model.py").write_text(_MODEL_HEAD + textwrap.dedent(model))
        for file, content in (files or {}).items():
            (version_directory / file).write_bytes(content)
        return directory

    def add_python(
        self,
        name: str,
        model: str,
        *,
        max_batch_size: int = 0,
        datatype: str = "TYPE_FP32",
        dims: Sequence[int] = (-1,),
        more: str = "",
    ) -> Path:
        """A Python model with the body of its model.py; `more` is added to its configuration."""
        config = _config_head(name, 'backend: "python"', max_batch_size, datatype, dims) + more
        return self.add(name, config, model)

    def add_identity(
        self,
        name: str = "identity",
        *,
        max_batch_size: int = 0,
        datatype: str = "TYPE_FP32",
        dims: Sequence[int] = (-1,),
        delay_ms: int = 0,
        more: str = "",
    ) -> Path:
        """OUTPUT is INPUT, after `delay_ms` for each batch."""
        model = _IDENTITY.format(pause=f"time.sleep({delay_ms / 1_000})" if delay_ms else "pass")
        return self.add_python(
            name, model, max_batch_size=max_batch_size, datatype=datatype, dims=dims, more=more
        )

    def add_bls(self, name: str = "bls", *, target: str = "identity", calls: int = 3, more: str = "") -> Path:
        """Calls `target` again and again, each time with what it answered last."""
        return self.add_python(name, _BLS.format(target=target, calls=calls), more=more)

    def add_repeat(self, name: str = "repeat", *, datatype: str = "TYPE_INT32") -> Path:
        """A decoupled model that answers once for each element of INPUT."""
        return self.add_python(
            name, _REPEAT, datatype=datatype, more="model_transaction_policy { decoupled: true }\n"
        )

    def add_chain(
        self,
        name: str,
        steps: Sequence[str],
        *,
        max_batch_size: int = 0,
        datatype: str = "TYPE_FP32",
        dims: Sequence[int] = (-1,),
        more: str = "",
    ) -> Path:
        """An ensemble that sends its INPUT through `steps`, one after the other."""
        tensors = ["INPUT", *(f"after_{index}" for index in range(1, len(steps))), "OUTPUT"]
        written = ",\n".join(
            f'    {{ model_name: "{step}" model_version: -1\n'
            f'      input_map {{ key: "INPUT" value: "{tensors[index]}" }}\n'
            f'      output_map {{ key: "OUTPUT" value: "{tensors[index + 1]}" }} }}'
            for index, step in enumerate(steps)
        )
        head = _config_head(name, 'platform: "ensemble"', max_batch_size, datatype, dims)
        return self.add(name, f"{head}ensemble_scheduling {{\n  step [\n{written}\n  ]\n}}\n{more}")


def _config_head(name: str, kind: str, max_batch_size: int, datatype: str, dims: Sequence[int]) -> str:
    tensor = f"data_type: {datatype} dims: [ {', '.join(map(str, dims))} ]"
    return (
        f'name: "{name}"\n{kind}\nmax_batch_size: {max_batch_size}\n'
        f'input {{ name: "INPUT" {tensor} }}\noutput {{ name: "OUTPUT" {tensor} }}\n'
    )
