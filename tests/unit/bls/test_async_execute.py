"""`async def execute`: many requests in one instance, and failures that stay where they are."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.support.python_models import CONFIG, DECOUPLED, PythonModelHost

ANSWERING = """
import asyncio
import numpy as np
import triton_python_backend_utils as pb_utils

gate = asyncio.Event()

def response(value):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full((1, 1), value, np.float32))])

class TritonPythonModel:
    async def execute(self, requests):
        {body}
"""


def load(host: PythonModelHost, body: str, config: str = CONFIG):
    return host.load(ANSWERING.format(body=body), config)


def test_one_instance_holds_many_requests(host: PythonModelHost) -> None:
    instance = load(
        host,
        """
        value = requests[0].inputs()[0].as_numpy().item()
        if value == 9:
            gate.set()
        await gate.wait()
        return [response(value)]
        """,
    )
    clients = [host.infer(instance, [[float(value)]]) for value in range(10)]
    assert [client.values() for client in clients] == [[[[float(value)]]] for value in range(10)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('x')", "ValueError: x\n\nAt:\n  "),
        ("raise SystemExit(2)", "SystemExit: 2"),
        ("raise asyncio.CancelledError", "CancelledError"),
        ("return 5", "Expected a list in the execute return, found type '<class 'int'>'."),
    ],
)
def test_a_broken_execute_fails_its_batch_and_the_next_one_runs(
    host: PythonModelHost, body: str, message: str
) -> None:
    instance = load(
        host,
        f"""
        if requests[0].request_id() == "good":
            return [response(1)]
        {body}
        """,
    )
    assert host.infer(instance).error.message.startswith(
        f"Failed to process the request(s) for model 'model_0', message: {message}"
    )
    assert host.infer(instance, id="good").values() == [[[1.0]]]


def test_a_batch_whose_inputs_cannot_be_read_is_failed(
    host: PythonModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = load(host, "return [response(1)]")

    def refuse(execution: object) -> None:
        raise ValueError("no such shape")

    with monkeypatch.context() as broken:
        broken.setattr(instance, "_receive", refuse)
        assert host.infer(instance).error.message == "ValueError: no such shape"
    assert host.infer(instance).values() == [[[1.0]]]


def test_a_batch_whose_answers_cannot_be_taken_is_failed(host: PythonModelHost) -> None:
    instance = load(
        host,
        """
        class Odd(list):
            def __len__(self):
                raise ValueError("no length")
        return [response(1)] if requests[0].request_id() == "good" else Odd()
        """,
    )
    assert host.infer(instance).error.message == "ValueError: no length"
    assert host.infer(instance, id="good").values() == [[[1.0]]]


def test_a_task_that_exits_does_not_end_the_loop(
    host: PythonModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    instance = load(
        host,
        """
        async def leave():
            raise SystemExit(1)
        if requests[0].request_id() == "bad":
            self.task = asyncio.ensure_future(leave())
            self.task.add_done_callback(lambda task: task.exception())
        return [response(1)]
        """,
    )
    for request_id in ("bad", "good"):
        assert host.infer(instance, id=request_id).values() == [[[1.0]]]


def test_a_decoupled_model_goes_on_in_a_task(host: PythonModelHost) -> None:
    instance = load(
        host,
        """
        async def work(sender):
            for value in range(5):
                sender.send(response(value))
                await asyncio.sleep(0)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        for request in requests:
            self.task = asyncio.create_task(work(request.get_response_sender()))
        """,
        DECOUPLED,
    )
    clients = [host.infer(instance) for _ in range(3)]
    for client in clients:
        assert [value for [[value]] in client.values()] == [0, 1, 2, 3, 4]
        assert client.finals == 1


def test_closing_ends_what_still_waits(host: PythonModelHost) -> None:
    instance = load(host, "await asyncio.Event().wait()")
    client = host.infer(instance)
    host.close_instance(instance)
    assert "CancelledError" in client.error.message


def test_the_loops_thread_ends_with_the_instance(host: PythonModelHost) -> None:
    instance = load(host, "return [response(1)]")
    host.infer(instance).wait()
    host.close_instance(instance)
    assert not [thread for thread in threading.enumerate() if thread.name == "cantata-loop-model_0"]


def test_a_plain_execute_may_run_a_loop_on_a_thread_that_has_one(host: PythonModelHost) -> None:
    instance = host.load(
        ANSWERING.format(body="return [response(3)]").replace("async def execute", "async def work")
        + """
    def execute(self, requests):
        return asyncio.run(self.work(requests))
"""
    )

    async def front_end() -> object:
        client = host.infer(instance)
        await asyncio.sleep(0)
        return client.values()

    assert asyncio.run(front_end()) == [[[3.0]]]
