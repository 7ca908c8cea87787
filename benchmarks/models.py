"""The repositories that the benchmarks serve: written anew for each run, from the same text for every server.

All models pass 16 floats on. `write_pipelines` has the three ways to chain them; `write_identities` is for start-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ELEMENTS = 16
MAX_BATCH_SIZE = 64
BLS_CALLS = 3
STEPS = ("first", "second", "third")

_TENSORS = f"""max_batch_size: {MAX_BATCH_SIZE}
input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: [ {ELEMENTS} ] }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ {ELEMENTS} ] }} ]
"""

_IDENTITY = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        array = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array)])
"""

_CALLER = f"""
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        array = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        for _ in range({BLS_CALLS}):
            call = pb_utils.InferenceRequest(
                model_name="identity",
                inputs=[pb_utils.Tensor("INPUT", array)],
                requested_output_names=["OUTPUT"],
            )
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            array = pb_utils.get_output_tensor_by_name(response, "OUTPUT").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array)])
"""

_REPEAT = """
import numpy as np

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for index in range(int(pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()[0])):
                tensor = pb_utils.Tensor("OUTPUT", np.array([index], np.int32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def write_pipelines(repository: Path) -> None:
    """`identity`, `ensemble` (of three more of its kind) and `bls` (which calls `identity` three times)."""
    for name in ("identity", *STEPS):
        write_python_model(repository / name, _IDENTITY, "dynamic_batching { }\n")
    write_python_model(repository / "bls", _CALLER)
    write_chain(repository / "ensemble", STEPS)


def write_identities(repository: Path, count: int) -> None:
    """`count` Python models and nothing else."""
    for index in range(count):
        write_python_model(repository / f"identity_{index}", _IDENTITY)


def write_python_model(directory: Path, model: str, more: str = "") -> None:
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(model.lstrip())
    (directory / "config.pbtxt").write_text(f'name: "{directory.name}"\nbackend: "python"\n{_TENSORS}{more}')


def write_chain(directory: Path, steps: Sequence[str]) -> None:
    """An ensemble of `steps`, one after the other."""
    (directory / "1").mkdir(parents=True)
    tensors = ["INPUT", *(f"tensor_{index}" for index in range(1, len(steps))), "OUTPUT"]
    written = ",".join(
        f'\n    {{ model_name: "{step}" model_version: -1'
        f'\n      input_map {{ key: "INPUT" value: "{tensors[index]}" }}'
        f'\n      output_map {{ key: "OUTPUT" value: "{tensors[index + 1]}" }} }}'
        for index, step in enumerate(steps)
    )
    head = f'name: "{directory.name}"\nplatform: "ensemble"\n{_TENSORS}'
    (directory / "config.pbtxt").write_text(f"{head}ensemble_scheduling {{\n  step [{written}\n  ]\n}}\n")


def write_repeat(directory: Path) -> None:
    """A decoupled model that answers as many times as INPUT says."""
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(_REPEAT.lstrip())
    (directory / "config.pbtxt").write_text(
        'backend: "python"\n'
        'input [ { name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]\n'
        'output [ { name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]\n'
        "model_transaction_policy { decoupled: true }\n"
    )


def write_large(directory: Path, size: int) -> None:
    """An identity model for tensors of `size` bytes, in a process of its own on every server."""
    write_identity_of(directory, size)
    with (directory / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "EXECUTION_ISOLATION" value: { string_value: "process" } }\n')


def write_identity_of(directory: Path, size: int) -> None:
    """An identity model for tensors of `size` bytes, where each server puts it."""
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(_IDENTITY.lstrip())
    (directory / "config.pbtxt").write_text(
        'backend: "python"\n'
        'input [ { name: "INPUT" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
        'output [ { name: "OUTPUT" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
    )
