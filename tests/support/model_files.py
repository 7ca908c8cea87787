"""Writing models to disk as a user would: config.pbtxt and model.py in a repository."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

_HEAD = """
import asyncio
import json
import threading

import numpy as np

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
"""


def write_model(
    repository: Path,
    name: str,
    config: str | None,
    execute: str | None = None,
    *,
    version: int = 1,
    code: str = "",
) -> Path:
    """Write one model; `execute` is the body of its class, `code` a whole model.py. Returns the model's directory."""
    directory = repository / name
    version_directory = directory / str(version)
    version_directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.pbtxt").write_text(dedent(config))
    if execute is not None:
        body = "\n".join("    " + line for line in dedent(execute).strip().splitlines())
        code = _HEAD + body + "\n"
    if code:
        (version_directory / "model.py").write_text(code)
    return directory


def tensor_text(name: str, datatype: str = "FP32", dims: str = "-1", extra: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{datatype} dims: [ {dims} ] {extra} }}'


def python_config(
    inputs: list[str],
    outputs: list[str],
    *,
    max_batch_size: int = 0,
    decoupled: bool = False,
    extra: str = "",
) -> str:
    """The config.pbtxt of a Python model; tensors as `tensor_text` gives them."""
    return "\n".join(
        [
            'backend: "python"',
            f"max_batch_size: {max_batch_size}",
            f"input [ {', '.join(inputs)} ]",
            f"output [ {', '.join(outputs)} ]",
            "model_transaction_policy { decoupled: true }" if decoupled else "",
            extra,
        ]
    )


def step_text(model: str, inputs: dict[str, str], outputs: dict[str, str], version: int = -1) -> str:
    maps = "".join(
        f' {field} {{ key: "{key}" value: "{value}" }}'
        for field, entries in (("input_map", inputs), ("output_map", outputs))
        for key, value in entries.items()
    )
    return f'{{ model_name: "{model}" model_version: {version}{maps} }}'


def ensemble_config(
    inputs: list[str], outputs: list[str], steps: list[str], *, max_batch_size: int = 0, extra: str = ""
) -> str:
    """The config.pbtxt of an ensemble; steps as `step_text` gives them, `extra` inside ensemble_scheduling."""
    return "\n".join(
        [
            'platform: "ensemble"',
            f"max_batch_size: {max_batch_size}",
            f"input [ {', '.join(inputs)} ]",
            f"output [ {', '.join(outputs)} ]",
            f"ensemble_scheduling {{ step [ {', '.join(steps)} ] {extra} }}",
        ]
    )


IDENTITY = """
def execute(self, requests):
    return [
        pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUTPUT", pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy())]
        )
        for request in requests
    ]
"""

# Adds what its name says to INPUT.
ADD = """
def initialize(self, args):
    self.amount = float(args["model_name"].rpartition("_")[2])

def execute(self, requests):
    arrays = [pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy() for request in requests]
    return [
        pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array + np.float32(self.amount))])
        for array in arrays
    ]
"""

# Sends each element of INPUT as a response of its own.
SPLIT = """
def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        for value in pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy().reshape(-1):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([value], np.float32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    return None
"""


def write_add(repository: Path, amount: int, *, max_batch_size: int = 0) -> str:
    """A model that adds `amount`; returns its name."""
    name = f"add_{amount}"
    config = python_config([tensor_text("INPUT")], [tensor_text("OUTPUT")], max_batch_size=max_batch_size)
    write_model(repository, name, config, ADD)
    return name


def write_identity(
    repository: Path, name: str = "identity", *, max_batch_size: int = 0, extra: str = ""
) -> str:
    config = python_config(
        [tensor_text("INPUT")], [tensor_text("OUTPUT")], max_batch_size=max_batch_size, extra=extra
    )
    write_model(repository, name, config, IDENTITY)
    return name
