"""The server inside another program: blocking, awaited and streamed calls, and what a wrong call is told."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cantata
from cantata import InferenceError, Server
from cantata.runtime.errors import StatusCode
from tests.support.model_files import (
    IDENTITY,
    SPLIT,
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_add,
    write_identity,
    write_model,
)

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")
# What numpy has no type for passes through DLPack.
PASS_ON = """
def execute(self, requests):
    inputs = [request.inputs()[0].to_dlpack() for request in requests]
    return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT", tensor)]) for tensor in inputs]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    one = write_add(path, 1)
    write_identity(
        path, "batching", max_batch_size=8, extra="dynamic_batching { max_queue_delay_microseconds: 200 }"
    )
    for name, datatype in (("text", "STRING"), ("half", "BF16"), ("flags", "BOOL")):
        config = python_config([tensor_text("INPUT", datatype)], [tensor_text("OUTPUT", datatype)])
        code = PASS_ON if datatype == "BF16" else IDENTITY
        write_model(path, name, config, code)
    write_model(path, "split", python_config([IN], [OUT], decoupled=True), SPLIT)
    step = step_text(one, {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    write_model(path, "pipeline", ensemble_config([IN], [OUT], [step]))
    return path


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository) as server:
        yield server


def test_arrays_go_in_and_come_out(server: Server) -> None:
    outputs = server.infer("pipeline", {"INPUT": np.array([1, 2], np.float32)})
    assert outputs["OUTPUT"].dtype == np.float32
    assert outputs["OUTPUT"].tolist() == [2.0, 3.0]


def test_lists_take_the_datatype_of_the_input(server: Server) -> None:
    assert server.infer("pipeline", {"INPUT": [1, 2]})["OUTPUT"].tolist() == [2.0, 3.0]
    assert server.infer("flags", {"INPUT": [True, False]})["OUTPUT"].tolist() == [True, False]


def test_strings_go_in_as_text_and_come_out_as_bytes(server: Server) -> None:
    assert server.infer("text", {"INPUT": ["häuser", b"\xff"]})["OUTPUT"].tolist() == [
        "häuser".encode(),
        b"\xff",
    ]


def test_bf16_is_carried_as_bit_patterns(server: Server) -> None:
    bits = np.array([0x3F80, 0xC000], np.uint16)
    assert server.infer("half", {"INPUT": bits})["OUTPUT"].tolist() == bits.tolist()


def test_empty_tensors_are_tensors(server: Server) -> None:
    assert server.infer("pipeline", {"INPUT": np.zeros((0,), np.float32)})["OUTPUT"].shape == (0,)


def test_calls_from_many_threads_each_get_their_own_answer(server: Server) -> None:
    answers: dict[int, float] = {}

    def call(number: int) -> None:
        for _ in range(20):
            answers[number] = float(server.infer("batching", {"INPUT": [[number]]})["OUTPUT"][0, 0])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: float(number) for number in range(16)}


def test_awaited_calls_run_side_by_side_in_batches(server: Server) -> None:
    async def call_all() -> list[float]:
        calls = (server.infer_async("batching", {"INPUT": [[number]]}) for number in range(32))
        return [float(outputs["OUTPUT"][0, 0]) for outputs in await asyncio.gather(*calls)]

    before = server.core.statistics("batching")[0].execution_count
    assert asyncio.run(call_all()) == list(range(32))
    assert server.core.statistics("batching")[0].execution_count - before < 32


def test_streamed_answers_come_one_by_one(server: Server) -> None:
    answers = server.stream("split", {"INPUT": np.arange(300, dtype=np.float32)})
    assert [float(answer["OUTPUT"][0]) for answer in answers] == list(range(300))


def test_a_stream_that_is_kept_keeps_no_inputs(server: Server) -> None:
    array = np.arange(3, dtype=np.float32)
    is_let_go = threading.Event()
    weakref.finalize(array, is_let_go.set)
    answers = server.stream("split", {"INPUT": array})
    assert len(list(answers)) == 3
    del array
    # The model's thread may be about to let go of it.
    assert is_let_go.wait(10)
    del answers


def test_a_reader_that_stops_early_cancels_the_request(server: Server) -> None:
    answers = server.stream("split", {"INPUT": np.arange(100_000, dtype=np.float32)})
    assert float(next(answers)["OUTPUT"][0]) == 0.0
    answers.close()  # type: ignore[attr-defined]
    assert server.core.model("split").scheduler.wait_until_idle(60)


@pytest.mark.parametrize(
    ("model", "inputs", "code", "message"),
    [
        (
            "nobody",
            {"INPUT": [1.0]},
            StatusCode.INVALID_ARG,
            "Request for unknown model: 'nobody' is not found",
        ),
        (
            "pipeline",
            {"IMPUT": [1.0]},
            StatusCode.INVALID_ARG,
            "unexpected inference input 'IMPUT' for model 'pipeline'",
        ),
        ("pipeline", {}, StatusCode.INVALID_ARG, "expected 1 inputs but got 0 inputs for model 'pipeline'"),
        (
            "pipeline",
            {"INPUT": np.zeros(2, np.int8)},
            StatusCode.INVALID_ARG,
            "data-type is 'INT8', but model 'pipeline' expects 'FP32'",
        ),
        (
            "pipeline",
            {"INPUT": ["one"]},
            StatusCode.INVALID_ARG,
            "input 'INPUT' for model 'pipeline': could not convert string",
        ),
        (
            "batching",
            {"INPUT": np.zeros((9, 1), np.float32)},
            StatusCode.INVALID_ARG,
            "inference request batch-size must be <= 8 for 'batching'",
        ),
        (
            "split",
            {"INPUT": [1.0]},
            StatusCode.UNSUPPORTED,
            "answers any number of times: call it with `stream`",
        ),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(
    server: Server, model: str, inputs: dict[str, object], code: StatusCode, message: str
) -> None:
    with pytest.raises(InferenceError) as refused:
        server.infer(model, inputs)  # type: ignore[arg-type]
    assert refused.value.code is code
    assert message in refused.value.message


def test_a_repository_is_checked_without_serving_it(repository: Path, server: Server) -> None:
    assert cantata.check(repository).problems == server.check() == []


def test_a_closed_server_refuses_requests(repository: Path) -> None:
    server = Server(repository)
    server.start()
    server.close()
    server.close()
    with pytest.raises(InferenceError, match=r"has no available versions|not ready"):
        server.infer("pipeline", {"INPUT": [1.0]})


def test_no_thread_outlives_the_server(repository: Path) -> None:
    before = set(threading.enumerate())
    with Server(repository) as server:
        server.infer("pipeline", {"INPUT": [1.0]})
        asyncio.run(server.infer_async("batching", {"INPUT": [[1.0]]}))
    assert set(threading.enumerate()) - before == set()


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"cannot read model repository .*nowhere.*: No such file"):
        Server(tmp_path / "nowhere").start()


def test_models_that_fail_are_named_with_their_reasons(tmp_path: Path) -> None:
    write_model(tmp_path, "broken", "backend: 7", code="x = 1\n")
    with pytest.raises(
        InferenceError, match=r"failed to load all models\nbroken: Invalid argument: .*config.pbtxt:1:10"
    ):
        Server(tmp_path).start()


def test_a_field_that_nothing_acts_on_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_identity(tmp_path, extra='model_repository_agents { agents { name: "checksum" } }')
    with Server(tmp_path) as server:
        assert server.infer("identity", {"INPUT": [1.0]})["OUTPUT"].tolist() == [1.0]
    assert (
        "model 'identity': 'model_repository_agents' has no effect in this version of cantata" in caplog.text
    )
