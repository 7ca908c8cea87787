"""model.py under the real scheduler: calls between models, decoupled models, and bad ones that hurt nobody else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cantata import InferenceError, Server
from cantata.runtime.errors import StatusCode
from cantata.runtime.scheduling import scheduled_instance
from tests.support.model_files import python_config, tensor_text, write_identity, write_model

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")

CALL_THRICE = """
def execute(self, requests):
    responses = []
    for request in requests:
        tensor = request.inputs()[0]
        for _ in range(3):
            call = pb_utils.InferenceRequest(
                model_name="identity",
                requested_output_names=["OUTPUT"],
                inputs=[pb_utils.Tensor("INPUT", tensor.as_numpy() + 1)],
            )
            reply = call.exec()
            if reply.has_error():
                raise pb_utils.TritonModelException(reply.error().message())
            tensor = pb_utils.get_output_tensor_by_name(reply, "OUTPUT")
        responses.append(pb_utils.InferenceResponse([tensor]))
    return responses
"""
AWAIT_THRICE = """
async def execute(self, requests):
    return await asyncio.gather(*[self.answer(request) for request in requests])

async def answer(self, request):
    calls = [
        pb_utils.InferenceRequest(
            model_name="identity", inputs=[pb_utils.Tensor("INPUT", request.inputs()[0].as_numpy() + 1)]
        ).async_exec()
        for _ in range(3)
    ]
    replies = await asyncio.gather(*calls)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("OUTPUT", sum(reply.output_tensors()[0].as_numpy() for reply in replies))]
    )
"""
# Answers each element on its own, from a thread.
ELEMENTS = """
def execute(self, requests):
    for request in requests:
        values = request.inputs()[0].as_numpy()
        threading.Thread(target=self.work, args=[values, request.get_response_sender()]).start()

def work(self, values, sender):
    for value in values:
        if sender.is_cancelled():
            break
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([value]))]))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
SUM_OF_ELEMENTS = """
async def execute(self, requests):
    responses = []
    for request in requests:
        call = pb_utils.InferenceRequest(
            model_name="elements", inputs=[pb_utils.Tensor("INPUT", request.inputs()[0].as_numpy())]
        )
        total = np.zeros(1, np.float32)
        async for reply in await call.async_exec(decoupled=True):
            total = total + reply.output_tensors()[0].as_numpy()
        responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", total)]))
    return responses
"""
DROPS = """
def execute(self, requests):
    requests[0].get_response_sender()
"""
# Counts what is not cancelled; says what it was told in between.
ENDLESS = """
def execute(self, requests):
    sender = requests[0].get_response_sender()
    while not sender.is_cancelled():
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.ones(1, np.float32))]))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture(scope="module", params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    """Where the models run: the same model.py gives the same answers in both."""
    return {"python": {"execution-isolation": request.param}}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, isolation: dict[str, dict[str, str]]
) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    write_identity(repository, "identity")
    config = python_config([IN], [OUT])
    decoupled = python_config([IN], [OUT], decoupled=True)
    write_model(repository, "call_thrice", config, CALL_THRICE)
    write_model(repository, "await_thrice", config, AWAIT_THRICE)
    write_model(repository, "elements", decoupled, ELEMENTS)
    write_model(repository, "sum_of_elements", config, SUM_OF_ELEMENTS)
    write_model(repository, "drops", decoupled, DROPS)
    write_model(repository, "endless", decoupled, ENDLESS)
    write_model(repository, "raises", config, "def execute(self, requests):\n    raise SystemExit('no')")
    with Server(repository, backend_config=isolation) as server:
        yield server


def test_a_model_calls_another_and_waits(server: Server) -> None:
    assert server.infer("call_thrice", {"INPUT": [1, 2]})["OUTPUT"].tolist() == [4.0, 5.0]


def test_a_model_awaits_others(server: Server) -> None:
    assert server.infer("await_thrice", {"INPUT": [1, 2]})["OUTPUT"].tolist() == [6.0, 9.0]


@pytest.mark.parametrize("model", ["call_thrice", "await_thrice"])
def test_many_clients_call_at_once(server: Server, model: str) -> None:
    def ask(value: float) -> float:
        return float(server.infer(model, {"INPUT": [value]})["OUTPUT"][0])

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, range(200)))
    expected = (lambda value: value + 3.0) if model == "call_thrice" else (lambda value: 3.0 * (value + 1))
    assert answers == [expected(value) for value in range(200)]


def test_calls_work_from_an_application_with_an_event_loop(server: Server) -> None:
    async def ask_both() -> list[float]:
        answers = await asyncio.gather(
            *[server.infer_async(model, {"INPUT": [1]}) for model in ("call_thrice", "await_thrice")]
        )
        return [float(answer["OUTPUT"][0]) for answer in answers]

    assert asyncio.run(ask_both()) == [4.0, 6.0]


def test_a_decoupled_model_streams_from_its_own_thread(server: Server) -> None:
    values = [float(value) for value in range(1000)]
    assert [float(answer["OUTPUT"][0]) for answer in server.stream("elements", {"INPUT": values})] == values
    assert list(server.stream("elements", {"INPUT": np.zeros(0, np.float32)})) == []


def test_a_model_iterates_over_a_decoupled_one(server: Server) -> None:
    assert server.infer("sum_of_elements", {"INPUT": np.arange(500, dtype=np.float32)})[
        "OUTPUT"
    ].tolist() == [499 * 250.0]


def test_a_client_that_leaves_ends_an_endless_model(server: Server) -> None:
    for _ in range(3):
        answers = server.stream("endless", {"INPUT": [1]})
        assert next(answers)["OUTPUT"].tolist() == [1.0]
        answers.close()  # type: ignore[attr-defined]


def test_a_dropped_sender_is_an_error_at_the_client(server: Server) -> None:
    with pytest.raises(InferenceError) as failure:
        list(server.stream("drops", {"INPUT": [1]}))
    assert failure.value.code is StatusCode.INTERNAL
    assert "dropped its response sender" in failure.value.message


def test_a_model_that_exits_fails_its_request_and_no_other(server: Server) -> None:
    for _ in range(3):
        with pytest.raises(InferenceError, match=r"Failed to process the request\(s\) for model 'raises_0"):
            server.infer("raises", {"INPUT": [1]})
        assert server.infer("identity", {"INPUT": [1]})["OUTPUT"].tolist() == [1.0]


BAD_MODELS = [
    ("import nowhere_to_be_found", "model.py:1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ("def broken(:", "model.py:1: SyntaxError"),
    ("class Other: pass", "does not define the class `TritonPythonModel`."),
    ("class TritonPythonModel: pass", "does not implement `execute` method."),
    (
        "class TritonPythonModel:\n  def execute(self, r): pass\n  def initialize(self, a): exit(1)",
        "could not be initialized: SystemExit: 1",
    ),
    (
        "class TritonPythonModel:\n  def execute(self, r): pass\n  def auto_complete_config(c): return 1",
        "auto_complete_config function in model 'bad' must return a valid pb.ModelConfig object.",
    ),
]


@pytest.mark.parametrize(("code", "reason"), BAD_MODELS)
def test_a_bad_model_is_reported_and_the_others_serve(
    tmp_path: Path, isolation: dict[str, dict[str, str]], code: str, reason: str
) -> None:
    write_identity(tmp_path, "good")
    write_model(tmp_path, "bad", python_config([IN], [OUT]), code=code)
    with Server(tmp_path, exit_on_error=False, backend_config=isolation) as server:
        assert server.infer("good", {"INPUT": [1]})["OUTPUT"].tolist() == [1.0]
        [failure] = server.core.failures()
        assert (failure.name, reason in failure.reason) == ("bad", True), failure.reason


def test_stopping_the_server_ends_requests_that_a_model_forgot(
    tmp_path: Path, isolation: dict[str, dict[str, str]]
) -> None:
    keeps = "def execute(self, requests):\n    self.kept = requests[0].get_response_sender()"
    write_model(tmp_path, "keeps", python_config([IN], [OUT], decoupled=True), keeps)
    server = Server(tmp_path, exit_timeout_secs=0.2, backend_config=isolation)
    server.start()
    failures: list[str] = []

    def read() -> None:
        try:
            list(server.stream("keeps", {"INPUT": [1]}))
        except InferenceError as error:
            failures.append(error.message)

    reader = threading.Thread(target=read)
    reader.start()
    while not server.core.statistics("keeps")[0].execution_count:
        time.sleep(0.001)
    server.close()
    reader.join(10)
    assert failures == ["model 'keeps' was unloaded before it sent the final response"]


# Answers 0 at once; others when two of them have come, from a thread that outlives `execute`.
COLLECTS = """
held = []

def execute(self, requests):
    import threading
    answers = []
    for request in requests:
        tensor = pb_utils.Tensor("OUTPUT", request.inputs()[0].as_numpy())
        if tensor.as_numpy()[0] == 0:
            answers.append(pb_utils.InferenceResponse([tensor]))
            continue
        self.held.append((request.get_response_sender(), tensor))
        answers.append(None)
    if len(self.held) == 2:
        threading.Thread(target=self.answer).start()
    return None if all(answer is None for answer in answers) else answers

def answer(self):
    for sender, tensor in self.held:
        sender.send(
            pb_utils.InferenceResponse([tensor]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        )
    self.held.clear()
"""
AWAITS_TWO = """
async def execute(self, requests):
    import asyncio
    tensors = requests[0].inputs()
    calls = [
        pb_utils.InferenceRequest(model_name="collects", inputs=tensors, requested_output_names=["OUTPUT"])
        for _ in range(2)
    ]
    answers = await asyncio.gather(*(call.async_exec() for call in calls))
    total = sum(answer.output_tensors()[0].as_numpy()[0] for answer in answers)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([total], np.float32))])]
"""


def test_an_awaited_model_that_answers_later_holds_up_no_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 10**12)
    config = python_config([IN], [OUT])
    write_model(tmp_path, "collects", config, COLLECTS)
    write_model(tmp_path, "awaits", config, AWAITS_TWO)
    with Server(tmp_path) as server, ThreadPoolExecutor(1) as client:
        # It passes for quick from now on.
        for _ in range(20):
            server.infer("collects", {"INPUT": [0]})
        asked = client.submit(server.infer, "awaits", {"INPUT": [3]})
        assert asked.result(20)["OUTPUT"][0] == 6
        assert server.infer("awaits", {"INPUT": [0]})["OUTPUT"][0] == 0


MEETS = """
arrived = []

async def execute(self, requests):
    import asyncio
    # Nobody goes on before four are here.
    turn = asyncio.Event()
    self.arrived.append(turn)
    if len(self.arrived) == 4:
        for each in self.arrived:
            each.set()
    await turn.wait()
    value = requests[0].inputs()[0].as_numpy()
    for _ in range(2):
        call = pb_utils.InferenceRequest(
            model_name="batches", inputs=[pb_utils.Tensor("INPUT", value.reshape(1, 1))]
        )
        value = (await call.async_exec()).output_tensors()[0].as_numpy()
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", value.reshape(1))])]
"""


def test_what_several_requests_ask_of_a_quick_model_at_once_it_takes_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 10**12)
    write_identity(tmp_path, "batches", max_batch_size=8, extra="dynamic_batching { }")
    write_model(tmp_path, "meets", python_config([IN], [OUT]), MEETS)
    with Server(tmp_path) as server, ThreadPoolExecutor(4) as clients:
        for _ in range(20):
            server.infer("batches", {"INPUT": [[0]]})
        [before] = server.core.statistics("batches")
        answers = clients.map(lambda value: server.infer("meets", {"INPUT": [value]}), range(4))
        assert [answer["OUTPUT"].tolist() for answer in answers] == [[0.0], [1.0], [2.0], [3.0]]
        [after] = server.core.statistics("batches")
        assert after.execution_count - before.execution_count == 2
        assert after.inference_count - before.inference_count == 8
