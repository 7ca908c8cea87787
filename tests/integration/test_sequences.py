"""Sequences through the embedded server, on models of all three backends: control tensors, states, iterations."""

from __future__ import annotations

import json
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cantata import InferenceError, Server
from tests.support.model_files import ensemble_config, python_config, step_text, tensor_text, write_model

CONTROLS = """
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } }
  control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_%s } }
"""
STATE = 'state { input_name: "SUM_IN" output_name: "SUM_OUT" data_type: TYPE_FP32 dims: [ %s ] %s }'

# Answers with the sum of its sequence so far, which it does not keep itself.
ACCUMULATE = """\
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        total = pb_utils.get_input_tensor_by_name(request, "SUM_IN").as_numpy() + value
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", total), pb_utils.Tensor("SUM_OUT", total)])
"""

# Answers with what it was given beside its input, and with how many rows the batch had.
REPORT = """\
import json


def plain(value):
    return value.decode() if isinstance(value, bytes) else value


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request, len(requests)) for request in requests]

    def answer(self, request, rows):
        seen = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        text = {
            name: [array.dtype.name, list(array.shape), [plain(value) for value in array.ravel().tolist()]]
            for name, array in seen.items() if name != "INPUT"
        }
        text["rows"] = rows
        answer = np.array([json.dumps(text).encode()], dtype=object).reshape(seen["INPUT"].shape)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", answer)])
"""


_HEAD = """\
import numpy as np
import triton_python_backend_utils as pb_utils


"""


class Repository:
    """A directory that models are added to; `code` is a model.py, but for its imports."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, config: str, code: str = "", files: dict[str, bytes] | None = None) -> Path:
        directory = write_model(self.path, name, config, code=code and _HEAD + code)
        for file, content in (files or {}).items():
            (directory / "1" / file).write_bytes(content)
        return directory

    def add_python(self, name: str, code: str, *, dims: tuple[int, ...] = (-1,), more: str = "") -> Path:
        tensors = [tensor_text(tensor, dims=", ".join(map(str, dims))) for tensor in ("INPUT", "OUTPUT")]
        return self.add(name, python_config(tensors[:1], tensors[1:], max_batch_size=4, extra=more), code)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def step(
    server: Server, model: str, number: int | str, value: float, *, start: bool = False, end: bool = False
) -> Any:
    """One request of a sequence: the model's answer, as it is printed."""
    batches = server.core.model(model).spec.batches
    value_of = np.full((1, 1) if batches else (1,), value, np.float32)
    return server.infer(
        model, {"INPUT": value_of}, sequence_id=number, sequence_start=start, sequence_end=end
    )["OUTPUT"].ravel()[0]


def accumulate(server: Server, model: str, number: int | str, values: list[float]) -> list[float]:
    """A whole sequence."""
    last = len(values) - 1
    return [
        float(step(server, model, number, value, start=index == 0, end=index == last))
        for index, value in enumerate(values)
    ]


def add_report(
    repository: Repository, name: str, strategy: str, datatype: str, max_batch_size: int = 4
) -> None:
    config = f"""
        name: "{name}" backend: "python" max_batch_size: {max_batch_size}
        input {{ name: "INPUT" data_type: TYPE_FP32 dims: [ 1 ] }}
        output {{ name: "OUTPUT" data_type: TYPE_STRING dims: [ 1 ] }}
        sequence_batching {{ {strategy} {CONTROLS % datatype} }}
    """
    repository.add(name, config, REPORT)


@pytest.mark.parametrize("strategy", ["direct {}", "oldest {}"])
@pytest.mark.parametrize(
    ("datatype", "number", "seen"),
    [
        ("UINT64", 2**63 + 5, ["uint64", 2**63 + 5]),
        ("INT64", 2**64 - 2, ["int64", -2]),
        ("UINT32", 2**32 + 7, ["uint32", 7]),
        ("INT32", 2**32 - 1, ["int32", -1]),
        ("STRING", "talk", ["object", "talk"]),
    ],
)
def test_a_model_is_told_where_in_which_sequence_it_is(
    repository: Repository, strategy: str, datatype: str, number: int | str, seen: list[Any]
) -> None:
    add_report(repository, "report", strategy, datatype)
    with Server(repository.path) as server:
        answers = [
            json.loads(step(server, "report", number, 0, start=index == 0, end=index == 2))
            for index in range(3)
        ]
    for index, answer in enumerate(answers):
        assert answer == {
            "START": ["int32", [1, 1], [int(index == 0)]],
            "END": ["float32", [1, 1], [float(index == 2)]],
            "READY": ["bool", [1, 1], [True]],
            "ID": [seen[0], [1, 1], [seen[1]]],
            "rows": 1,
        }


def test_without_batches_control_tensors_have_one_dimension(repository: Repository) -> None:
    add_report(repository, "report", "direct {}", "UINT64", max_batch_size=0)
    with Server(repository.path) as server:
        answer = json.loads(step(server, "report", 9, 0, start=True))
    assert answer["ID"] == ["uint64", [1], [9]]


@pytest.mark.parametrize(
    ("datatype", "number", "text"),
    [
        ("UINT64", "talk", "control 'ID' data-type is 'BYTES', but model 'report' expects 'UINT64'"),
        ("INT32", "talk", "control 'ID' data-type is 'BYTES', but model 'report' expects 'INT32'"),
        ("STRING", 7, "control 'ID' data-type is 'UINT64', but model 'report' expects 'BYTES'"),
    ],
)
def test_an_id_of_the_wrong_kind_is_refused(
    repository: Repository, datatype: str, number: int | str, text: str
) -> None:
    add_report(repository, "report", "direct {}", datatype)
    with Server(repository.path) as server, pytest.raises(InferenceError, match=text):
        step(server, "report", number, 0, start=True)


def test_a_request_is_one_item_of_a_batch(repository: Repository) -> None:
    add_report(repository, "report", "direct {}", "UINT64")
    text = "inference request to model 'report' must specify batch-size 1 due to requirements of sequence batcher"
    with Server(repository.path) as server, pytest.raises(InferenceError, match=text):
        server.infer("report", {"INPUT": np.zeros((2, 1), np.float32)}, sequence_id=1, sequence_start=True)


def test_rows_of_nobody_are_neither_inferences_nor_answered(repository: Repository) -> None:
    add_report(repository, "report", "direct { max_queue_delay_microseconds: 0 }", "UINT64")
    with Server(repository.path) as server:
        step(server, "report", 1, 0, start=True)
        gate = ThreadPoolExecutor(2)
        answers = list(
            gate.map(lambda number: json.loads(step(server, "report", number, 0, start=True)), (2, 3))
        )
        gate.shutdown()
        statistics = server.core.statistics("report")[0]
    assert all(answer["READY"][2] == [True] for answer in answers)
    assert statistics.inference_count == 3
    assert statistics.inference_stats.success.count == 3


def test_an_idle_sequence_is_forgotten(repository: Repository) -> None:
    add_report(
        repository, "report", "direct {} max_sequence_idle_microseconds: 50000", "UINT64", max_batch_size=0
    )
    with Server(repository.path) as server:
        step(server, "report", 1, 0, start=True)
        # It waits for the only slot, which nobody but the clock frees.
        step(server, "report", 2, 0, start=True)
        with pytest.raises(InferenceError, match="must specify the START flag"):
            step(server, "report", 1, 0)


SLOW = """\
import time


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.5)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUTPUT", pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy())]
            )
            for request in requests
        ]
"""


@pytest.mark.parametrize("strategy", ["direct {}", "oldest { max_candidate_sequences: 4 }"])
def test_a_sequence_is_not_idle_while_the_model_is_busy_with_it(
    repository: Repository, strategy: str
) -> None:
    idle = "max_sequence_idle_microseconds: 400000"
    repository.add_python("slow", SLOW, more=f"sequence_batching {{ {strategy} {idle} }}\n")

    def converse(number: int) -> list[float]:
        return [float(step(server, "slow", number, index, start=not index)) for index in range(2)]

    with Server(repository.path) as server, ThreadPoolExecutor(4) as clients:
        assert list(clients.map(converse, range(1, 5))) == [[0, 1]] * 4


def python_model(repository: Repository, strategy: str, *, count: int = 1, isolation: str = "") -> str:
    more = f"""
        instance_group {{ count: {count} kind: KIND_CPU }}
        sequence_batching {{ {strategy} {STATE % ("1", "")} }}
    """
    if isolation:
        more += f'parameters {{ key: "EXECUTION_ISOLATION" value {{ string_value: "{isolation}" }} }}\n'
    repository.add_python("sum", ACCUMULATE, dims=(1,), more=more)
    return "sum"


def onnx_model(repository: Repository, strategy: str) -> str:
    pytest.importorskip("onnxruntime")
    onnx_models = pytest.importorskip("tests.support.onnx_models")
    helper = pytest.importorskip("onnx.helper")
    tensors = (onnx_models.FLOAT, (None, 1))
    nodes = [
        helper.make_node("Add", ["INPUT", "SUM_IN"], ["OUTPUT"]),
        helper.make_node("Identity", ["OUTPUT"], ["SUM_OUT"]),
    ]
    content = onnx_models.onnx_model(
        nodes, {"INPUT": tensors, "SUM_IN": tensors}, {"OUTPUT": tensors, "SUM_OUT": tensors}
    )
    config = f"""
        name: "sum" backend: "onnxruntime" max_batch_size: 4
        sequence_batching {{ {strategy} {STATE % ("1", "")} }}
    """
    repository.add("sum", config, files={"model.onnx": content})
    return "sum"


def torch_model(repository: Repository, strategy: str) -> str:
    torch_models = pytest.importorskip("tests.support.torch_models")
    state = 'state { input_name: "SUM__1" output_name: "TOTAL__1" data_type: TYPE_FP32 dims: [ 1 ] }'
    config = f"""
        name: "sum" backend: "pytorch" max_batch_size: 4
        input {{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ 1 ] }}
        output {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 1 ] }}
        sequence_batching {{ {strategy} {state} }}
    """
    directory = repository.add("sum", config)
    torch_models.save_torchscript(torch_models.Accumulate(), directory / "1" / "model.pt")
    return "sum"


MODELS = {
    "python": lambda repository, strategy: python_model(repository, strategy),
    "python in threads": lambda repository, strategy: python_model(
        repository, strategy, count=2, isolation="thread"
    ),
    "python in processes": lambda repository, strategy: python_model(
        repository, strategy, count=2, isolation="process"
    ),
    "onnx": onnx_model,
}


@pytest.mark.parametrize("strategy", ["direct {}", "oldest { max_candidate_sequences: 3 }"])
@pytest.mark.parametrize("kind", MODELS)
def test_each_of_many_sequences_has_its_own_state(repository: Repository, kind: str, strategy: str) -> None:
    name = MODELS[kind](repository, strategy)
    lengths = [1 + number % 5 for number in range(24)]
    with Server(repository.path) as server, ThreadPoolExecutor(24) as clients:
        answers = list(
            clients.map(
                lambda number: accumulate(server, name, number + 1, [float(number + 1)] * lengths[number]),
                range(24),
            )
        )
        assert server.core.statistics(name)[0].inference_count == sum(lengths)
    assert answers == [
        [float((number + 1) * (index + 1)) for index in range(lengths[number])] for number in range(24)
    ]


def test_a_pytorch_model_has_states(repository: Repository) -> None:
    name = torch_model(repository, "direct {}")
    with Server(repository.path) as server:
        totals = [
            float(
                server.infer(
                    name,
                    {"INPUT__0": np.full((1, 1), 2, np.float32)},
                    sequence_id=5,
                    sequence_start=index == 0,
                )["OUTPUT__0"][0, 0]
            )
            for index in range(3)
        ]
    assert totals == [2, 4, 6]


def test_a_start_begins_with_the_initial_state_again(repository: Repository) -> None:
    python_model(repository, "direct {}")
    with Server(repository.path) as server:
        step(server, "sum", 1, 5, start=True)
        assert step(server, "sum", 1, 5) == 10
        assert step(server, "sum", 1, 1, start=True) == 1
        assert step(server, "sum", 1, 1) == 2


def add_with_initial_state(repository: Repository, initial: str, dims: str = "1", more: str = "") -> Path:
    state = STATE % (dims, f'initial_state {{ name: "zero" data_type: TYPE_FP32 dims: [ 1 ] {initial} }}')
    return repository.add_python(
        "sum",
        ACCUMULATE,
        dims=(1,),
        more=f"sequence_batching {{ direct {{}} {state} }}\n{more}",
    )


def test_the_initial_state_comes_from_a_file(repository: Repository) -> None:
    directory = add_with_initial_state(repository, 'data_file: "start"', dims="-1")
    (directory / "initial_state").mkdir()
    (directory / "initial_state" / "start").write_bytes(struct.pack("<f", 40))
    with Server(repository.path) as server:
        assert accumulate(server, "sum", 1, [1, 1]) == [41, 42]


def test_the_initial_state_is_zero(repository: Repository) -> None:
    add_with_initial_state(repository, "zero_data: true", dims="-1")
    with Server(repository.path) as server:
        assert accumulate(server, "sum", 1, [1, 1]) == [1, 2]


def test_too_short_a_file_of_an_initial_state_fails_the_load(repository: Repository) -> None:
    directory = add_with_initial_state(repository, 'data_file: "start"')
    (directory / "initial_state").mkdir()
    (directory / "initial_state" / "start").write_bytes(b"12")
    path = directory / "initial_state" / "start"
    text = f"initial_state setting expects 4 bytes, but the data provided from {path} only has 2 bytes"
    with pytest.raises(InferenceError, match=text), Server(repository.path):
        pass


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_client_gets_the_states_that_are_outputs(repository: Repository, is_listed: bool) -> None:
    output = 'output { name: "SUM_OUT" data_type: TYPE_FP32 dims: [ 1 ] }\n' if is_listed else ""
    add_with_initial_state(repository, "zero_data: true", more=output)
    with Server(repository.path) as server:
        answer = server.infer(
            "sum", {"INPUT": np.ones((1, 1), np.float32)}, sequence_id=1, sequence_start=True
        )
        # Not asked for, the state is kept all the same.
        server.infer("sum", {"INPUT": np.ones((1, 1), np.float32)}, sequence_id=1, outputs=("OUTPUT",))
        assert step(server, "sum", 1, 1) == 3
    assert sorted(answer) == (["OUTPUT", "SUM_OUT"] if is_listed else ["OUTPUT"])


IN_PLACE = """\
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        total = pb_utils.get_input_tensor_by_name(request, "SUM_IN").as_numpy()
        total += pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", total.copy())])
"""


def test_a_model_may_change_a_state_in_place_that_has_one_buffer(repository: Repository) -> None:
    state = STATE % ("1", "use_same_buffer_for_input_output: true")
    repository.add_python("sum", IN_PLACE, dims=(1,), more=f"sequence_batching {{ direct {{}} {state} }}\n")
    with Server(repository.path) as server:
        assert [step(server, "sum", number, number, start=True) for number in (1, 2)] == [1, 2]
        assert [step(server, "sum", number, number) for number in (1, 2)] == [2, 4]
        assert step(server, "sum", 1, 1, start=True) == 1


COLLECT = """\
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        seen = pb_utils.get_input_tensor_by_name(request, "SUM_IN").as_numpy()
        seen = np.concatenate([seen, value], axis=1)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUTPUT", seen), pb_utils.Tensor("SUM_OUT", seen)]
        )
"""


@pytest.mark.parametrize("strategy", ["direct {}", "oldest {}"])
def test_a_state_may_grow(repository: Repository, strategy: str) -> None:
    repository.add_python(
        "collect",
        COLLECT,
        more=f"sequence_batching {{ {strategy} {STATE % ('-1', '')} }}\n",
    )
    with Server(repository.path) as server:
        for index in range(4):
            answer = server.infer(
                "collect",
                {"INPUT": np.full((1, 1), index + 1, np.float32)},
                sequence_id=1,
                sequence_start=not index,
            )
    assert answer["OUTPUT"].tolist() == [[0, 1, 2, 3, 4]]


def test_sequences_whose_states_have_other_shapes_run_apart(repository: Repository) -> None:
    onnx_models = pytest.importorskip("tests.support.onnx_models")
    helper = pytest.importorskip("onnx.helper")
    one, any_size = (onnx_models.FLOAT, (None, 1)), (onnx_models.FLOAT, (None, None))
    nodes = [
        helper.make_node("Concat", ["SUM_IN", "INPUT"], ["SUM_OUT"], axis=1),
        helper.make_node("Identity", ["SUM_OUT"], ["OUTPUT"]),
    ]
    content = onnx_models.onnx_model(
        nodes, {"INPUT": one, "SUM_IN": any_size}, {"OUTPUT": any_size, "SUM_OUT": any_size}
    )
    config = f"""
        name: "collect" backend: "onnxruntime" max_batch_size: 4 instance_group {{ count: 1 kind: KIND_CPU }}
        sequence_batching {{ oldest {{}} {STATE % ("-1", "")} }}
    """
    repository.add("collect", config, files={"model.onnx": content})

    def collect(number: int) -> list[list[float]]:
        for index in range(number):
            answer = server.infer(
                "collect",
                {"INPUT": np.full((1, 1), number, np.float32)},
                sequence_id=number,
                sequence_start=not index,
            )
        found: list[list[float]] = answer["OUTPUT"].tolist()
        return found

    with Server(repository.path) as server, ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(collect, range(1, 5)))
    assert answers == [[[0.0] + [float(number)] * number] for number in range(1, 5)]


def test_rows_of_nobody_are_as_large_as_states_that_have_grown(repository: Repository) -> None:
    onnx_models = pytest.importorskip("tests.support.onnx_models")
    helper = pytest.importorskip("onnx.helper")
    one, any_size = (onnx_models.FLOAT, (None, 1)), (onnx_models.FLOAT, (None, None))
    nodes = [
        helper.make_node("Concat", ["SUM_IN", "INPUT"], ["SUM_OUT"], axis=1),
        helper.make_node("Identity", ["SUM_OUT"], ["OUTPUT"]),
    ]
    content = onnx_models.onnx_model(
        nodes, {"INPUT": one, "SUM_IN": any_size}, {"OUTPUT": any_size, "SUM_OUT": any_size}
    )
    config = f"""
        name: "collect" backend: "onnxruntime" max_batch_size: 4 instance_group {{ count: 1 kind: KIND_CPU }}
        sequence_batching {{ direct {{}} {STATE % ("-1", "")} }}
    """
    repository.add("collect", config, files={"model.onnx": content})
    with Server(repository.path) as server:
        # The first keeps the first place in the batch, and says nothing while the second goes on.
        answers = [
            server.infer("collect", {"INPUT": [[value]]}, sequence_id=number, sequence_start=index < 2)[
                "OUTPUT"
            ].tolist()
            for index, (number, value) in enumerate([(1, 1.0), (2, 2.0), (2, 3.0), (2, 4.0)])
        ]
    assert answers == [[[0, 1]], [[0, 2]], [[0, 2, 3]], [[0, 2, 3, 4]]]


def test_an_ensemble_passes_the_sequence_on(repository: Repository) -> None:
    python_model(repository, "oldest {}")
    steps = [
        step_text("sum", {"INPUT": "INPUT"}, {"OUTPUT": "middle"}),
        step_text("sum2", {"INPUT": "middle"}, {"OUTPUT": "OUTPUT"}),
    ]
    tensors = [tensor_text(tensor, dims="1") for tensor in ("INPUT", "OUTPUT")]
    repository.add("chain", ensemble_config(tensors[:1], tensors[1:], steps, max_batch_size=4))
    (repository.path / "sum").rename(repository.path / "sum2")
    python_model(repository, "direct {}")
    with Server(repository.path) as server:
        assert accumulate(server, "chain", 7, [1, 1, 1]) == [1, 3, 6]
        with pytest.raises(InferenceError, match="must specify the START flag"):
            step(server, "chain", 7, 1)


BLS = """\
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        value = pb_utils.get_input_tensor_by_name(request, "INPUT")
        flags = [pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, 0, pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END]
        for flag in flags:
            call = pb_utils.InferenceRequest(
                model_name="sum", requested_output_names=["OUTPUT"], inputs=[value], correlation_id=3, flags=flag
            )
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
        return pb_utils.InferenceResponse([pb_utils.get_output_tensor_by_name(response, "OUTPUT")])
"""


def test_a_model_calls_another_with_a_sequence(repository: Repository) -> None:
    python_model(repository, "direct {}")
    repository.add_python("caller", BLS, dims=(1,))
    with Server(repository.path) as server:
        assert step(server, "caller", 0, 5) == 15


KEEP = """\
class TritonPythonModel:
    def initialize(self, args):
        self.done = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        wanted = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        number = request.correlation_id()
        self.done[number] = self.done.get(number, 0) + 1
        if self.done[number] < wanted[0, 0]:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUTPUT", np.full((1, 1), self.done.pop(number), np.float32))]
        )
"""

STREAM = """\
class TritonPythonModel:
    def initialize(self, args):
        self.done = {}

    def execute(self, requests):
        for request in requests:
            wanted = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            sender = request.get_response_sender()
            number = request.correlation_id()
            done = self.done[number] = self.done.get(number, 0) + 1
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.full((1, 1), done, np.float32))]))
            if done < wanted[0, 0]:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            else:
                del self.done[number]
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("strategy", ["direct {}", "oldest {}"])
def test_an_iterative_model_runs_a_request_until_it_has_an_answer(
    repository: Repository, strategy: str, isolation: str
) -> None:
    more = (
        f"sequence_batching {{ {strategy} iterative_sequence: true }}\n"
        f'parameters {{ key: "EXECUTION_ISOLATION" value {{ string_value: "{isolation}" }} }}\n'
    )
    repository.add_python("iterate", KEEP, dims=(1,), more=more)
    with Server(repository.path) as server, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda wanted: float(step(server, "iterate", 0, wanted)), range(1, 9)))
        statistics = server.core.statistics("iterate")[0]
    assert answers == list(range(1, 9))
    assert statistics.inference_count == sum(range(1, 9))
    assert statistics.inference_stats.success.count == 8


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_an_iterative_model_streams_an_answer_each_time(repository: Repository, isolation: str) -> None:
    more = (
        "sequence_batching { oldest {} iterative_sequence: true }\n"
        "model_transaction_policy { decoupled: true }\n"
        f'parameters {{ key: "EXECUTION_ISOLATION" value {{ string_value: "{isolation}" }} }}\n'
    )
    repository.add_python("stream", STREAM, dims=(1,), more=more)
    with Server(repository.path) as server, ThreadPoolExecutor(4) as clients:

        def read(wanted: int) -> list[float]:
            answers = server.stream("stream", {"INPUT": np.full((1, 1), wanted, np.float32)})
            return [float(answer["OUTPUT"][0, 0]) for answer in answers]

        assert list(clients.map(read, range(1, 5))) == [
            [float(index) for index in range(1, wanted + 1)] for wanted in range(1, 5)
        ]


def test_only_an_iterative_model_may_run_a_request_again(repository: Repository) -> None:
    repository.add_python("iterate", KEEP, dims=(1,))
    text = (
        "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to "
        "handle such a flag."
    )
    with Server(repository.path) as server, pytest.raises(InferenceError, match=text):
        step(server, "iterate", 0, 3)


def test_unloading_answers_what_waits_for_a_slot(repository: Repository) -> None:
    python_model(repository, "oldest { max_candidate_sequences: 1 } max_sequence_idle_microseconds: 60000000")
    answers: list[str] = []

    def wait_for_slot(server: Server) -> None:
        try:
            step(server, "sum", 2, 1, start=True)
        except InferenceError as error:
            answers.append(str(error))

    with Server(repository.path, exit_timeout_secs=0.2) as server:
        step(server, "sum", 1, 1, start=True)
        waiting = threading.Thread(target=wait_for_slot, args=(server,))
        waiting.start()
        while not server.core.model("sum").scheduler.pending():
            time.sleep(0.001)
    waiting.join(10)
    assert answers == ["[request id: <id_unknown>] Server is stopping"]
