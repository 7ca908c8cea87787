"""A load that is given a configuration, or a model's files, in place of what the repository holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from cantata.runtime.errors import InferenceError
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.repository.model_version import ModelState
from tests.support.model_files import python_config, tensor_text, write_identity, write_model
from tests.support.served import Served, served

MODEL_PY = b"""
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        from helper import ANSWER
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([ANSWER], np.float32))]) for _ in requests
        ]
"""
FILES = {"file:1/model.py": MODEL_PY, "file:1/helper.py": b"ANSWER = 7"}


def config(**changes: Any) -> str:
    tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
    document = {
        "backend": "python",
        "input": [{"name": "INPUT", **tensor}],
        "output": [{"name": "OUTPUT", **tensor}],
    }
    return json.dumps({**document, **changes})


class Control:
    """The repository extension of one protocol, through its stock client."""

    def __init__(self, running: Served, protocol: str) -> None:
        self.server = running.server
        self._triton: Any = triton_http if protocol == "http" else triton_grpc
        self._client: Any = running.http if protocol == "http" else running.grpc

    def load(self, name: str, **arguments: Any) -> None:
        self._client.load_model(name, **arguments)

    def unload(self, name: str) -> None:
        self._client.unload_model(name)

    def max_batch_size(self, name: str) -> int:
        return self.server.model(name).config.max_batch_size

    def answer(self, name: str) -> list[float]:
        tensor = self._triton.InferInput("INPUT", [2], "FP32")
        tensor.set_data_from_numpy(np.array([1, 2], np.float32))
        values: list[float] = self._client.infer(name, [tensor]).as_numpy("OUTPUT").tolist()
        return values


@pytest.fixture(params=["http", "grpc"])
def control(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Control]:
    write_identity(tmp_path)
    with served(tmp_path, model_control_mode=ModelControlMode.EXPLICIT) as running:
        yield Control(running, request.param)


def test_a_configuration_holds_for_one_load(control: Control) -> None:
    control.load("identity", config=config(max_batch_size=3))
    assert control.max_batch_size("identity") == 3
    control.load("identity")
    assert control.max_batch_size("identity") == 0
    assert control.answer("identity") == [1.0, 2.0]


def test_the_same_configuration_again_changes_nothing(control: Control) -> None:
    control.load("identity", config=config(max_batch_size=3))
    before = control.server.model("identity")
    control.load("identity", config=config(max_batch_size=3))
    assert control.server.model("identity") is before


def test_files_take_the_place_of_the_models_directory_for_one_load(control: Control) -> None:
    control.load("identity", config=config(), files=FILES)
    assert control.answer("identity") == [7.0]
    control.load("identity")
    assert control.answer("identity") == [1.0, 2.0]


def test_files_may_make_a_model_that_no_repository_holds(control: Control) -> None:
    control.load("made", config=config(), files=FILES)
    assert control.answer("made") == [7.0]
    directory = control.server.model("made").directory
    assert directory.is_dir()
    leaving = control.server.model("made")
    control.unload("made")
    while leaving.state is not ModelState.UNAVAILABLE:
        time.sleep(0.01)
    control.load("identity")
    assert not directory.exists()


def test_files_are_gone_when_the_server_is(tmp_path: Path) -> None:
    with served(tmp_path, model_control_mode=ModelControlMode.EXPLICIT) as running:
        Control(running, "grpc").load("made", config=config(), files=FILES)
        directory = running.server.model("made").directory
        assert (directory / "1" / "helper.py").read_bytes() == FILES["file:1/helper.py"]
    assert not directory.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "{"}, "failed to load 'identity', failed to poll from model repository: invalid config"),
        ({"config": config(no_such_field=1)}, "no_such_field: unknown field 'no_such_field'"),
        ({"config": config(), "files": {"file:" + 256 * "A": b""}}, "Invalid file path: "),
        ({"config": config(max_batch_size=-1)}, "'max_batch_size' must be non-negative value for identity"),
        (
            {"config": config(), "files": {"file:../x.py": b""}},
            "Invalid file parameter 'file:../x.py' with normalized path '../x.py' must stay within model directory.",
        ),
        (
            {"config": config(), "files": {"file:1/../../x.py": b""}},
            "Invalid file parameter 'file:1/../../x.py' with normalized path '../x.py' must stay within",
        ),
        (
            {"config": config(), "files": {"file:/etc/x.py": b""}},
            "Invalid file parameter 'file:/etc/x.py' with normalized path '/etc/x.py' must stay within",
        ),
        ({"config": config(), "files": {"file:1/other.py": b""}}, "there is no file"),
    ],
)
def test_a_load_that_cannot_be_leaves_what_served(
    control: Control, arguments: dict[str, Any], message: str
) -> None:
    control.load("identity")
    with pytest.raises(InferenceServerException) as refused:
        control.load("identity", **arguments)
    assert message in refused.value.message()
    assert control.answer("identity") == [1.0, 2.0]


def test_files_need_a_configuration(control: Control) -> None:
    with pytest.raises(InferenceError) as refused:
        control.server.load_model("identity", {"file:1/model.py": MODEL_PY})
    assert refused.value.message == "Load parameter 'config' must be specified for model file override"


def test_a_configuration_alone_needs_a_model_on_disk(control: Control) -> None:
    with pytest.raises(
        InferenceServerException, match="failed to load 'nobody', failed to poll from model repository"
    ):
        control.load("nobody", config=config())


def test_overriding_is_refused_where_loading_is(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "m",
        python_config([tensor_text("INPUT")], [tensor_text("OUTPUT")]),
        "def execute(self, r): ...",
    )
    with served(tmp_path) as running, pytest.raises(InferenceServerException) as refused:
        Control(running, "grpc").load("m", config="{")
    assert "explicit model load / unload is not allowed if polling is enabled" in refused.value.message()
