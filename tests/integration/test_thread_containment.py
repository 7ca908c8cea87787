"""Whatever a model on a thread of the server raises, in any hook, thread or task of its own, stays its own affair."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cantata import InferenceError, Server
from cantata.runtime.errors import StatusCode
from tests.support.model_files import python_config, tensor_text, write_identity, write_model


@pytest.fixture(autouse=True)
def nothing_left_for_later() -> Iterator[None]:
    """Tasks that failed unheard are logged when they are collected: here, and not in the middle of another test."""
    yield
    gc.collect()


IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")
RAISED = ("ValueError", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "asyncio.CancelledError")
ANSWERS = """
def execute(self, requests):
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", r.inputs()[0].as_numpy())]) for r in requests]
"""
# Hooks that end the load.
LOADING = {
    "class body": "raise ERROR('mine')",
    "__init__": "def __init__(self):\n    raise ERROR('mine')",
    "auto_complete_config": "@staticmethod\ndef auto_complete_config(config):\n    raise ERROR('mine')",
    "initialize": "def initialize(self, args):\n    raise ERROR('mine')",
}
# Ways to execute that end the request.
EXECUTING = {
    "execute": "def execute(self, requests):\n    raise ERROR('mine')",
    "coroutine": "async def execute(self, requests):\n    await asyncio.sleep(0)\n    raise ERROR('mine')",
    "own loop": """
def execute(self, requests):
    async def fail():
        raise ERROR("mine")
    asyncio.run(fail())
""",
    "answer": """
class Answer(pb_utils.InferenceResponse):
    def __class_getitem__(cls, item):
        raise ERROR("mine")
def execute(self, requests):
    return self.Answer[0]
""",
}
# Code that goes on beside `execute`, which answers.
BESIDE = {
    "thread": "threading.Thread(target=self.fail).start()",
    "timer": "threading.Timer(0, self.fail).start()",
    "executor": "concurrent.futures.ThreadPoolExecutor(1).submit(self.fail)",
    "collected object": "Falls()",
}
BESIDE_TEXT = """
class Falls:
    def __del__(self):
        raise ERROR("mine")

def fail(self):
    raise ERROR("mine")

def execute(self, requests):
    import concurrent.futures
    Falls = self.Falls
    WHAT
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", r.inputs()[0].as_numpy())]) for r in requests]
"""
TASK = """
async def fail(self):
    raise ERROR("mine")

async def execute(self, requests):
    self.task = asyncio.get_running_loop().create_task(self.fail())
    await asyncio.sleep(0.01)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", r.inputs()[0].as_numpy())]) for r in requests]
"""
CALLBACK = TASK.replace("create_task(self.fail())", "call_soon(self.fail_now)") + (
    "\ndef fail_now(self):\n    raise ERROR('mine')\n"
)
READY = {
    "is_ready": "def is_ready(self):\n    raise ERROR('mine')",
    "async is_ready": "async def is_ready(self):\n    raise ERROR('mine')",
}
SENDS = """
def execute(self, requests):
    for request in requests:
        threading.Thread(target=self.send, args=(request.get_response_sender(),)).start()

def send(self, sender):
    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.ones(1, np.float32))]))
    raise ERROR("mine")
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_identity(tmp_path, "neighbour")
    return tmp_path


@pytest.fixture
def unheeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model's thread or destructor raises is Python's to report; pytest would keep it, and what it refers to."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


def write(repository: Path, hook: str, code: str, *, decoupled: bool = False) -> list[str]:
    """A model for each of RAISED; returns their names."""
    names = []
    for raised in RAISED:
        name = f"{hook}_{raised}".replace(".", "_").replace(" ", "_")
        text = "import asyncio\n" + code.replace("ERROR", raised)
        write_model(repository, name, python_config([IN], [OUT], decoupled=decoupled), text)
        names.append(name)
    return names


def neighbour_answers(server: Server) -> bool:
    return server.infer("neighbour", {"INPUT": [5]})["OUTPUT"].tolist() == [5.0]


def test_while_it_loads_it_fails_the_load(repository: Path) -> None:
    names = [name for hook, code in LOADING.items() for name in write(repository, hook, f"{code}\n{ANSWERS}")]
    with Server(repository, exit_on_error=False) as server:
        reasons = {failure.name: failure.reason for failure in server.core.failures()}
        assert reasons.keys() == set(names)
        assert all("mine" in reason for reason in reasons.values())
        assert neighbour_answers(server)


def test_in_execute_it_fails_the_request(repository: Path) -> None:
    names = [name for hook, code in EXECUTING.items() for name in write(repository, hook, code)]
    with Server(repository) as server:
        for name in names * 2:
            with pytest.raises(InferenceError, match="Failed to process the request") as failure:
                server.infer(name, {"INPUT": [1]})
            assert failure.value.code is StatusCode.INTERNAL
        assert neighbour_answers(server)


@pytest.mark.usefixtures("unheeded")
def test_beside_execute_it_fails_nothing(repository: Path) -> None:
    codes = {hook: BESIDE_TEXT.replace("WHAT", what) for hook, what in BESIDE.items()}
    codes |= {"task": TASK, "callback": CALLBACK}
    names = [name for hook, code in codes.items() for name in write(repository, hook, code)]
    with Server(repository) as server:
        for name in names:
            for value in range(3):
                assert server.infer(name, {"INPUT": [value]})["OUTPUT"].tolist() == [float(value)], name
        assert neighbour_answers(server)


@pytest.mark.usefixtures("unheeded")
def test_in_a_thread_that_answers_it_ends_the_request(repository: Path) -> None:
    names = write(repository, "sends", SENDS, decoupled=True)
    with Server(repository) as server:
        for name in names:
            stream = server.stream(name, {"INPUT": [1]})
            assert next(stream)["OUTPUT"].tolist() == [1.0]
            with pytest.raises(InferenceError, match="dropped its response sender"):
                next(stream)
        assert neighbour_answers(server)


def test_asked_whether_it_is_ready_it_is_not(repository: Path) -> None:
    names = [name for hook, code in READY.items() for name in write(repository, hook, f"{code}\n{ANSWERS}")]
    with Server(repository) as server:
        assert not any(server.core.is_model_ready(name) for name in names)
        assert server.infer(names[0], {"INPUT": [1]})["OUTPUT"].tolist() == [1.0]
        assert neighbour_answers(server)


def test_in_finalize_it_does_not_keep_the_server_from_closing(repository: Path) -> None:
    names = write(repository, "ends", "def finalize(self):\n    raise ERROR('mine')\n" + ANSWERS)
    with Server(repository) as server:
        for name in names:
            assert server.infer(name, {"INPUT": [1]})["OUTPUT"].tolist() == [1.0]
    assert not server.core.is_live()


def test_on_a_callers_event_loop_it_leaves_the_loop_alone(repository: Path) -> None:
    names = write(repository, "executes", EXECUTING["execute"])

    async def ask(server: Server) -> None:
        for name in names * 20:
            with pytest.raises(InferenceError, match="Failed to process"):
                await server.infer_async(name, {"INPUT": [1]})
        assert (await server.infer_async("neighbour", {"INPUT": [5]}))["OUTPUT"].tolist() == [5.0]

    with Server(repository) as server:
        asyncio.run(ask(server))
