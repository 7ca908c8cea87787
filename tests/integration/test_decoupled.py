"""Decoupled models over a real stream: any number of answers, from anywhere, in order, each request ending once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from cantata import Server
from cantata.runtime.repository.control import ModelControlMode
from tests.support.model_files import python_config, tensor_text, write_model
from tests.support.wire_servers import Ports, wire_server

CONFIG = python_config([tensor_text("IN", "INT32", "1")], [tensor_text("OUT", "INT32", "1")], decoupled=True)

# Each of these answers with 0, 1, ... up to what IN says; they differ in where from.
COUNT = """
def count(self, request, sender):
    for index in range(int(request.inputs()[0].as_numpy()[0])):
        if sender.is_cancelled():
            break
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([index], np.int32))]))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
FROM_EXECUTE = (
    COUNT
    + """
def execute(self, requests):
    for request in requests:
        self.count(request, request.get_response_sender())
"""
)
FROM_THREADS = (
    COUNT
    + """
def execute(self, requests):
    for request in requests:
        threading.Thread(target=self.count, args=(request, request.get_response_sender())).start()
"""
)
FROM_TASKS = """
async def execute(self, requests):
    self.tasks = getattr(self, "tasks", set())
    for request in requests:
        task = asyncio.create_task(self.count(request, request.get_response_sender()))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

async def count(self, request, sender):
    for index in range(int(request.inputs()[0].as_numpy()[0])):
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([index], np.int32))]))
        await asyncio.sleep(0)
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
# The final flag comes with the last response.
FLAGGED = """
def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        last = int(request.inputs()[0].as_numpy()[0]) - 1
        for index in range(last + 1):
            response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([index], np.int32))])
            sender.send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if index == last else 0)
"""
# Keeps the first request until the second has been answered.
BACKWARDS = """
def execute(self, requests):
    for request in requests:
        held = getattr(self, "held", None)
        self.held = (request, request.get_response_sender())
        if held is not None:
            self.answer(*self.held)
            self.answer(*held)
            self.held = None

def answer(self, request, sender):
    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", request.inputs()[0].as_numpy())]), 1)
"""
# Goes on for a while after it has begun to answer.
LINGERS = """
def execute(self, requests):
    threading.Thread(target=self.answer, args=(requests[0].get_response_sender(),)).start()

def answer(self, sender):
    for index in range(2):
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([index], np.int32))]))
        threading.Event().wait(0.3)
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
DROPS = """
def execute(self, requests):
    sender = requests[0].get_response_sender()
    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.zeros(1, np.int32))]))
"""
MODELS = {
    "from_execute": FROM_EXECUTE,
    "from_threads": FROM_THREADS,
    "from_tasks": FROM_TASKS,
    "flagged": FLAGGED,
    "backwards": BACKWARDS,
    "lingers": LINGERS,
    "drops": DROPS,
}


class Answer(NamedTuple):
    """One message of the stream: whose, what it holds, and whether it is the request's last."""

    id: str
    values: list[int]
    is_final: bool
    error: str


class Stream:
    """A stock client with one open stream."""

    def __init__(self, ports: Ports) -> None:
        self._client = triton.InferenceServerClient(f"127.0.0.1:{ports.grpc}")
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._client.start_stream(self._take)

    def ask(self, model: str, value: int, id: str = "") -> None:
        tensor = triton.InferInput("IN", [1], "INT32")
        tensor.set_data_from_numpy(np.array([value], np.int32))
        self._client.async_stream_infer(model, [tensor], request_id=id, enable_empty_final_response=True)

    def next(self) -> Answer:
        return self._answers.get(timeout=20)

    def all_of_one(self) -> list[Answer]:
        answers = [self.next()]
        while not (answers[-1].is_final or answers[-1].error):
            answers.append(self.next())
        return answers

    def close(self) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def _take(self, result: Any, error: Any) -> None:
        if error is not None:
            self._answers.put(Answer("", [], False, str(error)))
            return
        response = result.get_response()
        values = result.as_numpy("OUT").tolist() if response.outputs else []
        is_final = response.parameters["triton_final_response"].bool_param
        self._answers.put(Answer(response.id, values, is_final, ""))


@pytest.fixture(scope="module", params=["thread", "process"])
def ports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    repository = tmp_path_factory.mktemp("models")
    for name, execute in MODELS.items():
        write_model(repository, name, CONFIG, execute)
    options = {"python": {"execution-isolation": request.param}}
    with wire_server(
        repository,
        backend_config=options,
        model_control_mode=ModelControlMode.EXPLICIT,
        load_model=("*",),
        exit_timeout_secs=5,
    ) as served:
        yield served


@pytest.fixture
def stream(ports: Ports) -> Iterator[Stream]:
    opened = Stream(ports)
    yield opened
    opened.close()


@pytest.mark.parametrize("count", [0, 1, 2, 300])
@pytest.mark.parametrize("model", ["from_execute", "from_threads", "from_tasks"])
def test_any_number_of_answers_and_one_end(stream: Stream, model: str, count: int) -> None:
    stream.ask(model, count, "one")
    numbered = [Answer("one", [index], False, "") for index in range(count)]
    assert stream.all_of_one() == [*numbered, Answer("one", [], True, "")]


def test_the_last_answer_may_be_the_end(stream: Stream) -> None:
    stream.ask("flagged", 3, "one")
    assert stream.all_of_one() == [Answer("one", [index], index == 2, "") for index in range(3)]


def test_requests_end_in_the_order_in_which_the_model_answers(stream: Stream) -> None:
    stream.ask("backwards", 1, "first")
    stream.ask("backwards", 2, "second")
    assert [stream.next(), stream.next()] == [Answer("second", [2], True, ""), Answer("first", [1], True, "")]


def test_many_requests_at_once_each_keep_their_order(stream: Stream) -> None:
    for number in range(20):
        stream.ask(("from_threads", "from_tasks")[number % 2], 50, str(number))
    seen: dict[str, list[int]] = {}
    ended = 0
    while ended < 20:
        answer = stream.next()
        assert not answer.error
        seen.setdefault(answer.id, []).extend(answer.values)
        ended += answer.is_final
    assert seen == {str(number): list(range(50)) for number in range(20)}


def test_a_sender_dropped_without_an_end_is_an_error(stream: Stream) -> None:
    stream.ask("drops", 1)
    *_, last = stream.all_of_one()
    assert "dropped its response sender without sending the final response" in last.error


def test_a_model_that_unloads_ends_its_requests_first(ports: Ports, stream: Stream) -> None:
    stream.ask("lingers", 1, "one")
    assert stream.next().values == [0]
    ports.server.unload_model("lingers")
    stream.ask("lingers", 1, "two")
    answers = [stream.next() for _ in range(3)]
    assert "lingers" in next(answer.error for answer in answers if answer.error)
    ends = [answer for answer in answers if not answer.error]
    assert ends == [Answer("one", [1], False, ""), Answer("one", [], True, "")]


def test_a_client_that_leaves_ends_its_requests(ports: Ports) -> None:
    leaving = Stream(ports)
    leaving.ask("from_threads", 100_000_000)
    assert leaving.next().values == [0]
    leaving.close()
    deadline = time.monotonic() + 20
    while ports.server.model("from_threads").scheduler.in_flight:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
@pytest.mark.timeout(600)
def test_a_long_stream_keeps_its_order_and_takes_no_memory(ports: Ports, count: int) -> None:
    """The reader takes its time at first: the model has to wait for it, whatever it could make meanwhile."""
    family = [psutil.Process(), *psutil.Process().children()]
    client = triton.InferenceServerClient(f"127.0.0.1:{ports.grpc}")
    seen = wrong = most = least = 0
    ended = threading.Event()

    def take(result: Any, error: Any) -> None:
        nonlocal seen, wrong, most, least
        if error is not None or not result.get_response().outputs:
            ended.set()
            return
        wrong += int(result.as_numpy("OUT")[0]) != seen
        seen += 1
        if seen == 1:
            threading.Event().wait(0.5)
        if seen % (count // 20) == 0:
            resident = sum(member.memory_info().rss for member in family)
            least = least or resident
            most = max(most, resident)

    client.start_stream(take)
    tensor = triton.InferInput("IN", [1], "INT32")
    tensor.set_data_from_numpy(np.array([count], np.int32))
    client.async_stream_infer("from_threads", [tensor], enable_empty_final_response=True)
    assert ended.wait(500)
    client.stop_stream()
    client.close()
    assert (seen, wrong) == (count, 0)
    assert most - least < 30 << 20


def test_memory_and_order_without_a_wire(tmp_path: Path) -> None:
    write_model(tmp_path, "from_threads", CONFIG, FROM_THREADS)
    with Server(tmp_path) as server:
        answers = server.stream("from_threads", {"IN": [50_000]})
        assert [int(answer["OUT"][0]) for answer in answers] == list(range(50_000))
