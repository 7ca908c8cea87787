"""Sequences on ONNX and PyTorch models, and many at once over streams: control tensors, states, and nothing lost."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client

from cantata import Server
from tests.support.model_files import python_config, tensor_text, write_model
from tests.support.wire_servers import wire_server

CONTROLS = """
    control_input {{ name: "{start}" control {{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 5, 7 ] }} }}
    control_input {{ name: "{end}" control {{ kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0.5, 1.5 ] }} }}
    control_input {{ name: "{ready}" control {{ kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] }} }}
    control_input {{ name: "{id}" control {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 }} }}
"""
CONTROL_NAMES = ("START", "END", "READY", "ID")

# Writes a model into a directory; returns the names of its input and output, and those of what it is given beside.
WriteModel = Callable[[Path], tuple[str, str, list[str]]]


def onnx_report(directory: Path) -> tuple[str, str, list[str]]:
    pytest.importorskip("onnxruntime")
    onnx_models = pytest.importorskip("tests.support.onnx_models")
    onnx = pytest.importorskip("onnx")
    kinds = onnx.TensorProto
    types = dict(zip(CONTROL_NAMES, (kinds.INT32, kinds.FLOAT, kinds.BOOL, kinds.INT64), strict=True))
    nodes = [
        onnx.helper.make_node("Cast", [name], [f"{name}_CAST"], to=kinds.FLOAT) for name in CONTROL_NAMES
    ]
    casts = [f"{name}_CAST" for name in CONTROL_NAMES]
    nodes.append(onnx.helper.make_node("Concat", ["INPUT", *casts], ["OUTPUT"], axis=1))
    inputs = {"INPUT": (kinds.FLOAT, (None, 1)), **{name: (types[name], (None, 1)) for name in types}}
    content = onnx_models.onnx_model(nodes, inputs, {"OUTPUT": (kinds.FLOAT, (None, 5))})
    onnx_models.write_model(directory, content)
    return "INPUT", "OUTPUT", list(CONTROL_NAMES)


def torch_report(directory: Path) -> tuple[str, str, list[str]]:
    torch_models = pytest.importorskip("tests.support.torch_models")
    torch_models.save_torchscript(torch_models.Row(), directory / "1" / "model.pt")
    return "INPUT__0", "OUTPUT__0", [f"{name}__{index}" for index, name in enumerate(CONTROL_NAMES, 1)]


def onnx_sum(directory: Path) -> tuple[str, str, list[str]]:
    pytest.importorskip("onnxruntime")
    onnx_models = pytest.importorskip("tests.support.onnx_models")
    helper = pytest.importorskip("onnx.helper")
    row = (onnx_models.FLOAT, (None, 1))
    nodes = [
        helper.make_node("Add", ["INPUT", "SUM"], ["OUTPUT"]),
        helper.make_node("Identity", ["OUTPUT"], ["TOTAL"]),
    ]
    content = onnx_models.onnx_model(nodes, {"INPUT": row, "SUM": row}, {"OUTPUT": row, "TOTAL": row})
    onnx_models.write_model(directory, content)
    return "INPUT", "OUTPUT", ["SUM", "TOTAL"]


def torch_sum(directory: Path) -> tuple[str, str, list[str]]:
    torch_models = pytest.importorskip("tests.support.torch_models")
    torch_models.save_torchscript(torch_models.Accumulate(), directory / "1" / "model.pt")
    return "INPUT__0", "OUTPUT__0", ["SUM__1", "TOTAL__1"]


def write_config(directory: Path, backend: str, names: tuple[str, str], size: int, batching: str) -> None:
    (directory / "config.pbtxt").write_text(f"""
        backend: "{backend}" max_batch_size: 4
        input [ {tensor_text(names[0], dims="1")} ]
        output [ {tensor_text(names[1], dims=str(size))} ]
        sequence_batching {{ {batching} }}
    """)


def converse(
    server: Server, model: str, names: tuple[str, str], number: int, values: list[float]
) -> list[Any]:
    """The rows that a whole sequence is answered with."""
    last = len(values) - 1
    return [
        server.infer(
            model,
            {names[0]: np.full((1, 1), value, np.float32)},
            sequence_id=number,
            sequence_start=index == 0,
            sequence_end=index == last,
        )[names[1]][0].tolist()
        for index, value in enumerate(values)
    ]


REPORTS = [
    pytest.param("onnxruntime", onnx_report, id="onnx"),
    pytest.param("pytorch", torch_report, id="pytorch"),
]
SUMS = [pytest.param("onnxruntime", onnx_sum, id="onnx"), pytest.param("pytorch", torch_sum, id="pytorch")]


@pytest.mark.parametrize("strategy", ["direct {}", "oldest {}"])
@pytest.mark.parametrize(("backend", "write"), REPORTS)
def test_a_model_of_arrays_is_told_where_in_which_sequence_it_is(
    tmp_path: Path, backend: str, write: WriteModel, strategy: str
) -> None:
    directory = tmp_path / "report"
    given, answered, controls = write(directory)
    text = CONTROLS.format(**dict(zip(("start", "end", "ready", "id"), controls, strict=True)))
    write_config(directory, backend, (given, answered), 5, f"{strategy} {text}")
    with Server(tmp_path) as server:
        rows = converse(server, "report", (given, answered), 9, [1, 2, 3])
    assert rows == [[1, 7, 0.5, 1, 9], [2, 5, 0.5, 1, 9], [3, 5, 1.5, 1, 9]]


STATES = {
    "as it is": ("", [1, 3, 6]),
    "from zero": ('initial_state { name: "s" data_type: TYPE_FP32 dims: [ 1 ] zero_data: true }', [1, 3, 6]),
    "from a file": (
        'initial_state { name: "s" data_type: TYPE_FP32 dims: [ 1 ] data_file: "s" }',
        [41, 43, 46],
    ),
    "in one buffer": ("use_same_buffer_for_input_output: true", [1, 3, 6]),
}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize(("backend", "write"), SUMS)
def test_a_model_of_arrays_has_states(tmp_path: Path, backend: str, write: WriteModel, kind: str) -> None:
    directory = tmp_path / "sum"
    given, answered, (state, output) = write(directory)
    (directory / "initial_state").mkdir()
    (directory / "initial_state" / "s").write_bytes(struct.pack("<f", 40))
    more, expected = STATES[kind]
    text = (
        f'state {{ input_name: "{state}" output_name: "{output}" data_type: TYPE_FP32 dims: [ 1 ] {more} }}'
    )
    write_config(directory, backend, (given, answered), 1, f"oldest {{}} {text}")
    with Server(tmp_path) as server:
        for number in (1, 2):
            rows = converse(server, "sum", (given, answered), number, [1, 2, 3])
            assert rows == [[total] for total in expected]


SUM = """
def execute(self, requests):
    responses = []
    for request in requests:
        total = pb_utils.get_input_tensor_by_name(request, "SUM").as_numpy()
        total = total + pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        tensors = [pb_utils.Tensor(name, total) for name in ("OUTPUT", "TOTAL")]
        responses.append(pb_utils.InferenceResponse(tensors))
    return responses
"""


class Conversation:
    """Sequences that are sent over one stream, each request as soon as may be, and the answers that are due."""

    def __init__(self, client: Any, numbers: list[int]) -> None:
        self._client = client
        self._numbers = numbers
        self._due: dict[str, float] = {}
        self._open = threading.Semaphore(0)
        self.wrong: list[object] = []
        client.start_stream(self._answered)

    def hold(self, rounds: int, chance: random.Random) -> None:
        """`rounds` sequences of each number, one after the other, all numbers side by side."""
        sent = 0
        for turn in range(rounds):
            plans = {
                number: [float(chance.randint(1, 9)) for _ in range(chance.randint(1, 6))]
                for number in self._numbers
            }
            totals = dict.fromkeys(self._numbers, 0.0)
            for index in range(max(map(len, plans.values()))):
                for number, values in plans.items():
                    if index < len(values):
                        totals[number] += values[index]
                        self._send(f"{turn}.{number}.{index}", number, values, index, totals[number])
                        sent += 1
        for _ in range(sent):
            assert self._open.acquire(timeout=60)
        self._client.stop_stream()

    def _send(self, id: str, number: int, values: list[float], index: int, total: float) -> None:
        tensor = grpc_client.InferInput("INPUT", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.full((1, 1), values[index], np.float32))
        self._due[id] = total
        self._client.async_stream_infer(
            "sum",
            [tensor],
            request_id=id,
            sequence_id=number,
            sequence_start=index == 0,
            sequence_end=index == len(values) - 1,
        )

    def _answered(self, result: Any, error: Exception | None) -> None:
        if error is not None:
            self.wrong.append(error)
        else:
            found, id = float(result.as_numpy("OUTPUT")[0, 0]), result.get_response().id
            if found != self._due.pop(id):
                self.wrong.append((id, found))
        self._open.release()


@pytest.mark.parametrize("strategy", ["direct {}", "oldest { max_candidate_sequences: 6 }"])
def test_sequences_that_do_not_wait_for_answers_lose_nothing(tmp_path: Path, strategy: str) -> None:
    state = 'state { input_name: "SUM" output_name: "TOTAL" data_type: TYPE_FP32 dims: [ 1 ] }'
    tensors = [tensor_text(name, dims="1") for name in ("INPUT", "OUTPUT")]
    extra = f"sequence_batching {{ {strategy} max_sequence_idle_microseconds: 60000000 {state} }}"
    write_model(tmp_path, "sum", python_config(tensors[:1], tensors[1:], max_batch_size=4, extra=extra), SUM)
    with wire_server(tmp_path) as ports:
        clients = [grpc_client.InferenceServerClient(f"127.0.0.1:{ports.grpc}") for _ in range(3)]
        talks = [
            Conversation(client, list(range(8 * index + 1, 8 * index + 9)))
            for index, client in enumerate(clients)
        ]
        threads = [
            threading.Thread(target=talk.hold, args=(6, random.Random(index)))
            for index, talk in enumerate(talks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for client in clients:
            client.close()
    assert [talk.wrong for talk in talks] == [[], [], []]
    assert [talk._due for talk in talks] == [{}, {}, {}]
