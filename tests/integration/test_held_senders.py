"""Models that hold a request's response sender for ever: the request ends when the model is unloaded, with an error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import StatusCode
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository import retirement
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.server import Server
from cantata.runtime.tensor import tensor_of_array
from tests.support.model_files import python_config, tensor_text, write_model

HOARDS = """
def execute(self, requests):
    self.senders = getattr(self, "senders", []) + [request.get_response_sender() for request in requests]
"""
# Says that it runs, and answers when a file tells it to.
SLOW = """
def execute(self, requests):
    import os, time
    open(pb_utils.get_model_dir() + "/runs", "w").close()
    while not os.path.exists(pb_utils.get_model_dir() + "/go"):
        time.sleep(0.01)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", r.inputs()[0].as_numpy())]) for r in requests]
"""


class Answer:
    """The sender of a request: what it was told, and when that was the end."""

    def __init__(self) -> None:
        self.error = None
        self.ended = threading.Event()

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self.error = response.error
        if final:
            self.ended.set()

    def wait_until_ready(self) -> None:
        """Whatever comes is taken."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(retirement, "_PATIENCE_S", 0.1)
    return tmp_path


@pytest.fixture(params=["thread", "process"])
def server(request: pytest.FixtureRequest, repository: Path) -> Iterator[Server]:
    tensors = ([tensor_text("IN", "INT32", "1")], [tensor_text("OUT", "INT32", "1")])
    write_model(repository, "hoards", python_config(*tensors, decoupled=True), HOARDS)
    write_model(repository, "slow", python_config(*tensors), SLOW)
    options = ServerOptions(
        (repository,),
        model_control_mode=ModelControlMode.EXPLICIT,
        load_model=("*",),
        backend_config={"python": {"execution-isolation": request.param}},
    )
    server = Server(options)
    server.start()
    yield server
    server.close()


def ask(server: Server, model: str) -> Answer:
    answer = Answer()
    server.submit(
        InferenceRequest(model, {"IN": tensor_of_array(np.ones(1, np.int32))}, answer, monotonic_ns())
    )
    return answer


def test_end_when_their_model_is_unloaded(server: Server) -> None:
    answers = [ask(server, "hoards") for _ in range(3)]
    server.unload_model("hoards")
    for answer in answers:
        assert answer.ended.wait(20)
        assert answer.error is not None
        assert answer.error.code is StatusCode.UNAVAILABLE
        assert "was unloaded before it sent the final response" in answer.error.message


def test_do_not_cut_off_a_model_that_executes(server: Server, repository: Path) -> None:
    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(ask, server, "slow")
        runs = repository / "slow" / "1" / "runs"
        while not runs.exists():
            threading.Event().wait(0.01)
        server.unload_model("slow")
        # Longer than a model may hold a sender.
        threading.Event().wait(0.5)
        (repository / "slow" / "1" / "go").touch()
        answer = asked.result(20)
        assert answer.ended.wait(20)
        assert answer.error is None
