"""Pipelines written with `cantata.bls`, served: from a model.py alone, embedded and over a gRPC stream."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cantata import InferenceError, Server, bls
from cantata.bls import testing
from cantata.runtime.errors import StatusCode
from tests.support.grpc_servers import grpc_server, infer_input, stock_client
from tests.support.model_files import python_config, tensor_text, write_model

HEAD = """
import asyncio
from pathlib import Path
import numpy as np
from cantata import bls

VECTOR = {"X": bls.FP32[-1]}
"""
# Rows of several calls become one batch of it.
ADD_ONE = """
@bls.model(inputs={"X": bls.FP32[1]}, outputs={"Y": bls.FP32[1]}, max_batch_size=64)
def add_one(X):
    return {"Y": X + 1}
"""
PIPELINE = """
@bls.model(inputs=VECTOR, outputs={"Y": bls.FP32[-1], "ID": bls.BYTES[1]})
async def pipeline(X):
    if not len(X):
        raise bls.Error(bls.Code.INVALID_ARG, "X is empty")
    answers = await bls.map(lambda x: bls.call("add_one", X=[[x]]), X)
    return {"Y": [answer.only[0, 0] for answer in answers], "ID": [bls.request().id]}
"""
# Answers once for each number below N; says in a file how far it came.
COUNT = """
class Count(bls.Model):
    inputs = {"N": bls.INT32[1], "NOTE": bls.BYTES[1]}
    outputs = {"I": bls.INT32[1]}

    async def execute(self, N, NOTE=None):
        made = 0
        try:
            for made in range(int(N[0])):
                yield {"I": made}
        finally:
            if NOTE is not None:
                Path(NOTE[0].decode()).write_text(str(made))
"""
TOTAL = """
@bls.model(inputs={"N": bls.INT32[1]}, outputs={"TOTAL": bls.INT64[1]})
async def total(N):
    total = 0
    async for answer in bls.stream("count", N=N):
        total += int(answer.I[0])
    return {"TOTAL": total}
"""
# What a callee of the other API sees.
REPORT = """
def execute(self, requests):
    return [pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", np.array([
        request.request_id(), str(request.correlation_id()), str(request.flags()), str(request.priority()),
        request.parameters()], np.object_))]) for request in requests]
"""
MODELS = {
    "add_one": ADD_ONE,
    "pipeline": PIPELINE,
    "count": COUNT,
    "total": TOTAL,
    "meet": """
waiting = []

@bls.model(inputs={"X": bls.FP32[-1]}, outputs={"Y": bls.FP32[-1]})
async def meet(X):
    # Goes on when as many requests are here as X says.
    waiting.append(asyncio.get_running_loop().create_future())
    if len(waiting) == X[0]:
        for future in waiting:
            future.set_result(None)
    await waiting[-1]
    return {"Y": X}
""",
    "broken": """
@bls.model(inputs=VECTOR, outputs={"Y": bls.FP32[-1]})
async def broken(X):
    if X[0] == 0:
        return {"Y": X[5]}
    if X[0] == 1:
        X += 1
    if X[0] == 2:
        raise SystemExit("no")
    if X[0] == 3:
        await bls.call("count", N=np.zeros(1, np.int32))
    await bls.call("pipeline", X=np.zeros(0, np.float32))
""",
    "asks": """
@bls.model(inputs=VECTOR, outputs={"SEEN": bls.BYTES[-1]})
async def asks(X):
    return {"SEEN": (await bls.call("report", X=X)).SEEN}
""",
    "waits": """
@bls.model(inputs={"NOTE": bls.BYTES[1]}, outputs={"Y": bls.FP32[1]})
async def waits(NOTE):
    note = Path(NOTE[0].decode())
    note.write_text("waits")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note.write_text("cancelled")
        raise
""",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    for name, code in MODELS.items():
        write_model(repository, name, None, code=HEAD + code)
    config = python_config([tensor_text("X")], [tensor_text("SEEN", "STRING")])
    write_model(repository, "report", config, REPORT)
    return repository


@pytest.fixture(scope="module", params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(repository: Path, isolation: str) -> Iterator[Server]:
    with Server(repository, backend_config={"python": {"execution-isolation": isolation}}) as server:
        yield server


def vector(*values: float) -> dict[str, np.ndarray]:
    return {"X": np.array(values, np.float32)}


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 10
    while not path.exists() or path.read_text() != text:
        assert time.monotonic() < deadline, f"{path} never said {text!r}"
        time.sleep(0.005)


def test_the_configuration_is_completed_from_the_code(server: Server) -> None:
    def said(name: str) -> list[Any]:
        config = server.core.model(name).config
        inputs = [(each.name, each.data_type.name, list(each.dims), each.optional) for each in config.input]
        policy = config.model_transaction_policy
        return [
            inputs,
            config.max_batch_size,
            config.dynamic_batching is not None,
            bool(policy and policy.decoupled),
        ]

    assert said("add_one") == [[("X", "TYPE_FP32", [1], False)], 64, True, False]
    assert said("count") == [
        [("N", "TYPE_INT32", [1], False), ("NOTE", "TYPE_STRING", [1], True)], 0, False, True,
    ]  # fmt: skip


def test_a_pipeline_calls_models_and_answers(server: Server) -> None:
    answer = server.infer("pipeline", vector(1, 2, 3), id="r1")
    assert (answer["Y"].tolist(), answer["ID"].tolist()) == ([2.0, 3.0, 4.0], [b"r1"])


def test_the_items_of_a_fan_out_are_batched_by_the_called_model(server: Server, isolation: str) -> None:
    before = executions(server, "add_one")
    assert server.infer("pipeline", vector(*range(50)))["Y"].tolist() == list(range(1, 51))
    if isolation == "thread":
        # From another process they come one by one.
        assert executions(server, "add_one") - before == 1


def executions(server: Server, model: str) -> int:
    [statistics] = server.core.statistics(model)
    return statistics.execution_count


def test_one_instance_holds_many_requests(server: Server) -> None:
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: server.infer("meet", vector(12)), range(12)))
    assert [answer["Y"].tolist() for answer in answers] == [[12.0]] * 12


def test_an_error_that_is_raised_is_the_answer(server: Server) -> None:
    with pytest.raises(InferenceError) as raised:
        server.infer("pipeline", vector())
    assert (raised.value.code, raised.value.message) == (StatusCode.INVALID_ARG, "X is empty")


def test_the_error_of_a_call_says_where_it_was(server: Server) -> None:
    with pytest.raises(InferenceError) as raised:
        server.infer("broken", vector(9))
    assert raised.value.code is StatusCode.INVALID_ARG
    assert raised.value.message == "in a call of model 'pipeline': X is empty"


def test_a_decoupled_model_is_not_called_as_if_it_answered_once(server: Server) -> None:
    with pytest.raises(InferenceError) as raised:
        server.infer("broken", vector(3))
    assert raised.value.code is StatusCode.UNSUPPORTED
    assert raised.value.message == (
        "in a call of model 'count': it may answer any number of times: use bls.stream"
    )


@pytest.mark.parametrize(
    ("case", "texts"),
    [
        (0, ["IndexError: index 5 is out of bounds", "broken/1/model.py("]),
        (1, ["read-only", "change a copy of them"]),
        (2, ["SystemExit: no"]),
    ],
)
def test_an_exception_is_the_requests_alone(server: Server, case: int, texts: list[str]) -> None:
    with pytest.raises(InferenceError) as raised:
        server.infer("broken", vector(case))
    assert raised.value.code is StatusCode.INTERNAL
    for text in texts:
        assert text in raised.value.message


def test_a_stream_is_read_to_its_end(server: Server) -> None:
    assert [answer["I"][0] for answer in server.stream("count", {"N": [1000]})] == list(range(1000))
    assert server.infer("total", {"N": [1000]})["TOTAL"].tolist() == [499_500]


def test_a_reader_that_leaves_ends_the_model(server: Server, tmp_path: Path) -> None:
    note = tmp_path / "note"
    answers = server.stream("count", {"N": [10**9], "NOTE": [str(note)]})
    assert next(answers)["I"][0] == 0
    # Time in which a model that did not wait for its reader would have yielded tens of thousands.
    time.sleep(0.3)
    answers.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while not note.exists() or not note.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert int(note.read_text()) < 500


def test_a_cancelled_request_cancels_the_model(server: Server, tmp_path: Path) -> None:
    note = tmp_path / "note"

    async def leave() -> None:
        asking = asyncio.ensure_future(server.infer_async("waits", {"NOTE": [str(note)]}))
        await asyncio.to_thread(wait_for, note, "waits")
        asking.cancel()
        await asyncio.to_thread(wait_for, note, "cancelled")

    asyncio.run(leave())


def test_models_of_the_other_api_see_what_a_call_inherits(server: Server) -> None:
    seen = server.infer("asks", vector(1), id="r7", parameters={"colour": "red"})["SEEN"].tolist()
    assert seen == [b"r7", b"0", b"0", b"0", b'{"colour": "red"}']


@pytest.mark.parametrize(("sequence", "seen_as"), [(7, b"7"), ("room", b"room")])
def test_priority_and_sequence_go_with_a_call(server: Server, sequence: int | str, seen_as: bytes) -> None:
    with grpc_server(_Unclosed(server.core)) as front_end, stock_client(front_end) as client:  # type: ignore[arg-type]
        answer = client.infer(
            "asks",
            [infer_input("X", np.ones(1, np.float32), "FP32")],
            request_id="r8",
            priority=3,
            sequence_id=sequence,
            sequence_start=True,
            sequence_end=True,
        )
    assert answer.as_numpy("SEEN").tolist() == [b"r8", seen_as, b"3", b"3", b"{}"]


def test_a_stream_over_grpc(server: Server) -> None:
    with grpc_server(_Unclosed(server.core)) as front_end, stock_client(front_end) as client:  # type: ignore[arg-type]
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client.start_stream(lambda result, error: answers.put(error or result))
        inputs = [infer_input("N", np.array([5], np.int32), "INT32")]
        client.async_stream_infer("count", inputs, request_id="s1")
        received = [answers.get(timeout=10) for _ in range(5)]
        client.stop_stream()
    assert [answer.as_numpy("I")[0] for answer in received] == [0, 1, 2, 3, 4]


class _Unclosed:
    """The module's server, which outlives one test's front-end."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def close(self) -> None:
        pass


def test_a_pipeline_under_test_may_call_a_real_server(server: Server) -> None:
    @bls.model(inputs={"X": bls.FP32[-1]}, outputs={"Y": bls.FP32[-1], "LAST": bls.INT32[1]})
    async def under_test(X: np.ndarray) -> dict[str, Any]:
        last = [answer.I[0] async for answer in bls.stream("count", N=np.array([3], np.int32))][-1]
        return {"Y": (await bls.call("fake", X=(await bls.call("pipeline", X=X)).Y)).Y, "LAST": last}

    answer = asyncio.run(
        testing.run(under_test, X=[1, 2], models={"fake": lambda X: {"Y": X * 10}}, server=server)
    )
    assert (answer.Y.tolist(), answer.LAST.tolist()) == ([20.0, 30.0], [2])


def test_a_served_model_is_the_file_on_disk(repository: Path) -> None:
    # What a debugger's breakpoints in model.py need.
    path = repository / "pipeline" / "1" / "model.py"
    assert testing.load(path).function.__code__.co_filename == str(path)  # type: ignore[union-attr]


REFUSED: list[tuple[str, str | None, str, str]] = [
    (
        "two models",
        None,
        ADD_ONE + PIPELINE,
        "declares several models: `add_one`, `pipeline`. One is served.",
    ),
    (
        "other datatype",
        'backend: "python"\ninput { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }',
        ADD_ONE,
        "configuration expects datatype TYPE_INT32 for input 'X', model provides TYPE_FP32",
    ),
    ("larger batches", 'backend: "python"\nmax_batch_size: 65', ADD_ONE, "specified max_batch_size 65"),
    (
        "wrong declaration",
        None,
        "@bls.model(inputs=VECTOR, outputs=VECTOR)\ndef model(Y): pass",
        "TypeError: the model model takes 'Y', which is not among its inputs",
    ),
]


@pytest.mark.parametrize(
    ("config", "code", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_model_that_cannot_be_served_says_why(
    tmp_path: Path, config: str | None, code: str, text: str
) -> None:
    write_model(tmp_path, "model", config, code=HEAD + code)
    with pytest.raises(InferenceError, match="model") as raised, Server(tmp_path):
        pass
    assert text in raised.value.message


def test_a_configuration_may_add_to_the_declaration(tmp_path: Path) -> None:
    config = 'backend: "python"\ninstance_group { count: 2 kind: KIND_CPU }'
    write_model(tmp_path, "add_one", config, code=HEAD + ADD_ONE)
    with Server(tmp_path) as server:
        assert server.infer("add_one", {"X": [[1.0], [2.0]]})["Y"].tolist() == [[2.0], [3.0]]
