"""Models that never answer: neither others' unloading nor the server's end waits for them; their callers are told."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cantata import Server
from cantata.runtime.errors import InferenceError, StatusCode
from tests.support.model_files import ensemble_config, python_config, step_text, tensor_text, write_model
from tests.support.model_files import write_identity as write_other

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")
INPUT = {"INPUT": np.zeros(1, np.float32)}
HOLDER = """
def initialize(self, args):
    self.senders = []

def execute(self, requests):
    self.senders += [request.get_response_sender() for request in requests]
"""
WAITING = """
async def execute(self, requests):
    await asyncio.Event().wait()
"""
EXIT_TIMEOUT_S = 0.3


class Caller:
    """Asks a model, in a thread; `error` is what it was told."""

    def __init__(self, server: Server, model: str, *, streams: bool) -> None:
        self._told: queue.SimpleQueue[InferenceError] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._call, args=(server, model, streams), daemon=True)
        self._thread.start()
        while not server.core.model(model).scheduler.in_flight:
            time.sleep(0.001)

    def _call(self, server: Server, model: str, streams: bool) -> None:
        try:
            if streams:
                list(server.stream(model, INPUT))
            else:
                server.infer(model, INPUT)
        except InferenceError as error:
            self._told.put(error)

    def error(self) -> InferenceError:
        return self._told.get(timeout=20)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path, "holder", python_config([IN], [OUT], decoupled=True), HOLDER)
    write_model(tmp_path, "waiting", python_config([IN], [OUT]), WAITING)
    step = step_text("waiting", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    write_model(tmp_path, "over", ensemble_config([IN], [OUT], [step]))
    write_other(tmp_path)
    return tmp_path


def states(server: Server) -> dict[str, str]:
    return {entry.name: entry.state for entry in server.repository_index()}


@pytest.mark.parametrize("is_unloaded_first", [False, True], ids=["closing", "unloading and closing"])
def test_the_end_of_the_server_waits_no_longer_than_it_may(repository: Path, is_unloaded_first: bool) -> None:
    server = Server(
        repository, model_control_mode="explicit", load_model=["*"], exit_timeout_secs=EXIT_TIMEOUT_S
    )
    server.start()
    callers = [Caller(server, "holder", streams=True), Caller(server, "over", streams=False)]
    if is_unloaded_first:
        for name in ("holder", "waiting", "identity"):
            server.unload_model(name)
        # `waiting` goes when `over` does.
        assert states(server) | {"identity": ""} == {
            "holder": "UNLOADING",
            "waiting": "UNLOADING",
            "over": "UNLOADING",
            "identity": "",
        }
        server.load_model("identity")
        assert server.infer("identity", INPUT)["OUTPUT"].tolist() == [0.0]
    server.close()
    for caller in callers:
        assert caller.error().code in (StatusCode.UNAVAILABLE, StatusCode.INTERNAL)
    assert set(states(server).values()) == {"UNAVAILABLE"}
