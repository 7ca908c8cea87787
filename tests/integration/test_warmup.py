"""Models that have run before they serve: what they are given, in which instances, and what becomes of a failure."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cantata import InferenceError, Server
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.server import Server as CoreServer
from tests.support.model_files import ensemble_config, python_config, step_text, tensor_text, write_model
from tests.support.onnx_models import add_sub_model, identity_model
from tests.support.onnx_models import write_model as write_onnx
from tests.support.torch_models import AddSub, save_torchscript

# Answers with everything that its instance has been given so far, a list for each execution.
REMEMBER = """
def initialize(self, args):
    self.seen = []

def execute(self, requests):
    self.seen.append([
        {tensor.name(): [str(value) for value in tensor.as_numpy().ravel()] for tensor in request.inputs()}
        for request in requests
    ])
    answer = np.array([[json.dumps(self.seen).encode()]], dtype=object)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", answer)]) for _ in requests]
"""


SEEN = tensor_text("SEEN", "STRING", dims="1")


def write_remembering(repository: Path, name: str, inputs: list[str], extra: str, *, more: str = "") -> Path:
    config = python_config(inputs, [SEEN], max_batch_size=4, extra=extra + more)
    return write_model(repository, name, config, REMEMBER)


def sample(name: str, size: int, count: int = 0, **inputs: str) -> str:
    """A sample's text; each input is its datatype, dims and data, apart by spaces."""
    parts = [f'name: "{name}" batch_size: {size} count: {count}']
    for input_name, described in inputs.items():
        datatype, dims, data = described.split(maxsplit=2)
        parts.append(
            f'inputs {{ key: "{input_name}" value {{ data_type: TYPE_{datatype} dims: {dims} {data} }} }}'
        )
    return f"model_warmup {{ {' '.join(parts)} }}\n"


def seen_by(server: Server, model: str, **inputs: Any) -> Any:
    """What a remembering model had been given before this."""
    return json.loads(server.infer(model, inputs)["SEEN"].item())[:-1]


def floats(*values: float) -> list[str]:
    return [str(np.float32(value)) for value in values]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_every_kind_of_data_is_run_before_the_model_serves(tmp_path: Path, isolation: str) -> None:
    samples = (
        sample("zeros", 2, 2, A="FP32 [2] zero_data: true", B="STRING [1] zero_data: true")
        + sample("file", 1, A='FP32 [2] input_data_file: "floats"', B='STRING [1] input_data_file: "text"')
        + sample("skipped", 0, 5, A="FP32 [2] zero_data: true")
        + sample("random", 1, A="FP32 [2] random_data: true", B="STRING [1] random_data: true")
    )
    more = f'parameters {{ key: "EXECUTION_ISOLATION" value {{ string_value: "{isolation}" }} }}'
    tensors = [tensor_text("A", dims="2"), tensor_text("B", "STRING", dims="1")]
    directory = write_remembering(tmp_path, "model", tensors, samples, more=more)
    (directory / "warmup").mkdir()
    # What is too much is left out, as Triton does.
    (directory / "warmup" / "floats").write_bytes(struct.pack("<3f", 1.5, 2.5, 3.5))
    (directory / "warmup" / "text").write_bytes(struct.pack("<I", 3) + b"abc")
    with Server(tmp_path) as server:
        a = np.zeros((1, 2), np.float32)
        b = np.array([[b"x"]], dtype=object)
        *zeros, file, random = seen_by(server, "model", A=a, B=b)
    assert zeros == [[{"A": floats(0, 0), "B": ["b''"]}] * 2] * 2
    assert file == [{"A": floats(1.5, 2.5), "B": ["b'abc'"]}]
    [found] = random
    assert found["B"] == ["b''"]
    assert all(0 < float(value) < 1 for value in found["A"])


def test_every_instance_runs_every_sample_and_all_of_it_is_counted(tmp_path: Path) -> None:
    samples = sample("two", 2, 3, A="FP32 [2] zero_data: true") + sample(
        "one", 1, A="FP32 [2] zero_data: true"
    )
    more = "dynamic_batching { } instance_group { count: 2 kind: KIND_CPU }"
    write_remembering(tmp_path, "model", [tensor_text("A", dims="2")], samples, more=more)
    with Server(tmp_path) as server:
        [statistics] = server.core.statistics("model")
        seen = seen_by(server, "model", A=np.zeros((1, 2), np.float32))
    assert [len(requests) for requests in seen] == [2, 2, 2, 1]
    stats = statistics.inference_stats
    counts = (stats.success.count, stats.queue.count, stats.compute_infer.count, stats.fail.count)
    assert (statistics.inference_count, statistics.execution_count, counts) == (14, 8, (14, 14, 14, 0))
    assert [(batch.batch_size, batch.compute_infer.count) for batch in statistics.batch_stats] == [
        (1, 2),
        (2, 6),
    ]
    assert statistics.last_inference > 0


def test_random_data_is_of_its_datatype(tmp_path: Path) -> None:
    names = ("BOOL", "UINT8", "INT8", "UINT16", "INT64", "UINT64", "FP16", "FP32", "FP64", "BF16")
    tensors = [tensor_text(name, name, dims="3, 2") for name in names]
    samples = sample("s", 1, **{name: f"{name} [3, 2] random_data: true" for name in names})
    config = python_config(tensors, [tensor_text("OUTPUT")], extra=samples)
    execute = """
    def execute(self, requests):
        [request] = requests
        for tensor in request.inputs():
            assert tensor.shape() == [3, 2]
            if tensor.name() != "BF16":
                assert 0 <= tensor.as_numpy().min() <= tensor.as_numpy().max() < 128
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.zeros(1, np.float32))])]
    """
    write_model(tmp_path, "model", config, execute)
    with Server(tmp_path) as server:
        assert server.core.statistics("model")[0].inference_stats.success.count == 1


def test_models_of_libraries_are_warmed_up(tmp_path: Path) -> None:
    both = dict.fromkeys(("A", "B"), "FP32 [4] random_data: true")
    write_onnx(tmp_path / "onnx", add_sub_model())
    (tmp_path / "onnx" / "config.pbtxt").write_text("max_batch_size: 4\n" + sample("s", 3, 2, **both))
    # Without a batch dimension there is no batch of three: each runs by itself.
    write_onnx(tmp_path / "alone", identity_model(dims=(4,)))
    text = sample("s", 3, IN="FP32 [4] random_data: true")
    (tmp_path / "alone" / "config.pbtxt").write_text(text)
    (tmp_path / "torch" / "1").mkdir(parents=True)
    save_torchscript(AddSub(), tmp_path / "torch" / "1" / "model.pt")
    (tmp_path / "torch" / "config.pbtxt").write_text(
        'backend: "pytorch" max_batch_size: 4 instance_group { count: 2 kind: KIND_CPU }\n'
        + "".join(f'input {{ name: "INPUT__{n}" data_type: TYPE_FP32 dims: [ 4 ] }}' for n in (0, 1))
        + "".join(f'output {{ name: "OUTPUT__{n}" data_type: TYPE_FP32 dims: [ 4 ] }}' for n in (0, 1))
        + sample("s", 3, 2, **{f"INPUT__{n}": "FP32 [4] zero_data: true" for n in (0, 1)})
    )
    with Server(tmp_path) as server:
        found = {
            statistics.name: (statistics.inference_count, statistics.execution_count)
            for statistics in server.core.statistics()
        }
        instances = sum(group.count for group in server.core.model("onnx").config.instance_group)
    assert found == {
        "onnx": (6 * instances, 2 * instances),
        "alone": (3 * instances, 3 * instances),
        "torch": (12, 4),
    }


CONTROLS = """
control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
control_input { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }
control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } }
control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_%s } }
"""


@pytest.mark.parametrize(("id_type", "sequence_id"), [("UINT64", "1"), ("STRING", "b'1'")])
def test_each_request_of_a_sequence_model_is_a_sequence_of_its_own(
    tmp_path: Path, id_type: str, sequence_id: str
) -> None:
    samples = sample("whole", 2, A="FP32 [1] zero_data: true") + sample(
        "middle", 1, A="FP32 [1] zero_data: true", START="INT32 [1] zero_data: true"
    )
    more = f"sequence_batching {{ direct {{ }} {CONTROLS % id_type} }}"
    write_remembering(tmp_path, "model", [tensor_text("A", dims="1")], samples, more=more)
    with Server(tmp_path) as server:
        inputs = {"A": np.ones((1, 1), np.float32)}
        number: int | str = 7 if id_type == "UINT64" else "seven"
        answer = server.infer("model", inputs, sequence_id=number, sequence_start=True, sequence_end=True)
        [statistics] = server.core.statistics("model")
    whole, middle, _ = json.loads(answer["SEEN"].item())
    usual = {"A": floats(0), "START": ["1"], "END": ["1"], "READY": ["1"], "ID": [sequence_id]}
    assert whole == [usual, usual]
    assert middle == [{**usual, "START": ["0"]}]
    assert (statistics.inference_count, statistics.execution_count) == (4, 3)


STATEFUL = """
def execute(self, requests):
    answers = []
    for request in requests:
        total = sum(tensor.as_numpy() for tensor in request.inputs())
        answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, total) for name in ("OUTPUT", "SUM_OUT")]))
    return answers
"""


def test_a_state_is_there_when_warming_up_and_starts_anew_afterwards(tmp_path: Path) -> None:
    state = 'state { input_name: "SUM_IN" output_name: "SUM_OUT" data_type: TYPE_FP32 dims: [ 1 ] }'
    config = python_config(
        [tensor_text("INPUT", dims="1")],
        [tensor_text("OUTPUT", dims="1")],
        max_batch_size=2,
        extra=f"sequence_batching {{ direct {{ }} {state} }}"
        + sample("s", 1, 3, INPUT="FP32 [1] random_data: true"),
    )
    write_model(tmp_path, "sum", config, STATEFUL)
    with Server(tmp_path) as server:
        one = {"INPUT": np.ones((1, 1), np.float32)}
        first = server.infer("sum", one, sequence_id=1, sequence_start=True)
        second = server.infer("sum", one, sequence_id=1, sequence_end=True)
    assert (first["OUTPUT"].item(), second["OUTPUT"].item()) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("body", "decoupled"),
    [
        ("    await asyncio.sleep(0)\n    return [answer(request) for request in requests]", False),
        (
            "    for request in requests:\n"
            "        sender = request.get_response_sender()\n"
            "        sender.send(answer(request))\n"
            "        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)",
            True,
        ),
    ],
    ids=["coroutine", "decoupled"],
)
def test_models_that_answer_later_are_waited_for(tmp_path: Path, body: str, decoupled: bool) -> None:
    answer = (
        "def answer(request):\n"
        '    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", request.inputs()[0].as_numpy())])\n'
    )
    head = "import asyncio\n\nimport triton_python_backend_utils as pb_utils\n\n\n"
    kind = "def" if decoupled else "async def"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"{head}{answer}\n\nclass TritonPythonModel:\n    {kind} execute(self, requests):\n{lines}"
    warm = sample("s", 2, 2, INPUT="FP32 [1] zero_data: true")
    config = python_config(
        [tensor_text("INPUT")], [tensor_text("OUTPUT")], max_batch_size=4, decoupled=decoupled, extra=warm
    )
    write_model(tmp_path, "model", config, code=code)
    with Server(tmp_path) as server:
        [statistics] = server.core.statistics("model")
    assert (statistics.inference_stats.success.count, statistics.execution_count) == (4, 2)


FAIL = """
def execute(self, requests):
    return [pb_utils.InferenceResponse(error=pb_utils.TritonError("no good")) for _ in requests]
"""
RAISE = """
def execute(self, requests):
    raise ValueError("no good")
"""


@pytest.mark.parametrize(
    ("execute", "text"),
    [
        (FAIL, "failed to run warmup sample 's': no good; no good; "),
        (RAISE, "failed to run warmup sample 's': .*no good.*; .*no good.*; "),
    ],
    ids=["an error as the answer", "an exception"],
)
def test_a_model_that_fails_its_warmup_is_not_served(tmp_path: Path, execute: str, text: str) -> None:
    write_failing(tmp_path, sample("s", 2, INPUT="FP32 [1] zero_data: true"), execute)
    with pytest.raises(InferenceError, match=f"(?s)Invalid argument: {text}"):
        Server(tmp_path).start()


def write_failing(repository: Path, samples: str, execute: str) -> Path:
    config = python_config(
        [tensor_text("INPUT", dims="1")], [tensor_text("OUTPUT", dims="1")], max_batch_size=4, extra=samples
    )
    return write_model(repository, "model", config, execute)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            sample("s", 1, INPUT="FP32 [-1] zero_data: true"),
            "warmup setting expects all variable-size dimensions are specified for input 'INPUT'",
        ),
        (
            'model_warmup { name: "s" batch_size: 1 inputs { key: "INPUT" value { data_type: TYPE_FP32 dims: [1] } } }',
            "warmup setting expects input 'INPUT' to have input_data_type set",
        ),
        (
            sample("s", 1, INPUT="FP32 [1] zero_data: true").replace("data_type: TYPE_FP32", ""),
            "warmup setting expects input 'INPUT' to have data_type set",
        ),
        (
            sample("s", 1, INPUT='FP32 [1] input_data_file: "short"'),
            "input 'INPUT': warmup setting expects 4 bytes, but the data provided from short only has 2 bytes",
        ),
        (
            sample("s", 1, INPUT='FP32 [1] input_data_file: "none"'),
            "input 'INPUT': failed to open text file for read .*/model/warmup/none: No such file or directory",
        ),
        (
            sample("s", 1, INPUT="INT32 [1] zero_data: true"),
            "inference input 'INPUT' data-type is 'INT32', but model 'model' expects 'FP32'",
        ),
        (
            sample("s", 1, INPUT="FP32 [2] zero_data: true"),
            r"unexpected shape for input 'INPUT' for model 'model'. Expected \[-1,1\], got \[1,2\]",
        ),
        (
            sample("s", 1, OTHER="FP32 [1] zero_data: true"),
            r"missing required input\(s\) \['INPUT'\]",
        ),
        (sample("s", 5, INPUT="FP32 [1] zero_data: true"), "batch_size 5 is more than max_batch_size 4"),
    ],
    ids=["open dims", "no data", "no type", "short file", "no file", "type", "shape", "missing", "too many"],
)
def test_a_sample_that_cannot_be_made_is_named_with_its_input(
    tmp_path: Path, text: str, message: str
) -> None:
    directory = write_failing(tmp_path, text, FAIL)
    (directory / "warmup").mkdir()
    (directory / "warmup" / "short").write_bytes(b"ab")
    with pytest.raises(InferenceError, match=f"warmup sample 's': .*{message}"):
        Server(tmp_path).start()


def test_an_ensemble_has_none_but_its_steps_do(tmp_path: Path) -> None:
    write_remembering(
        tmp_path, "model", [tensor_text("A", dims="1")], sample("s", 1, A="FP32 [1] zero_data: true")
    )
    steps = [step_text("model", {"A": "INPUT"}, {"SEEN": "SEEN"})]
    config = ensemble_config([tensor_text("INPUT", dims="1")], [SEEN], steps, max_batch_size=4)
    write_model(tmp_path, "pipeline", config)
    with Server(tmp_path) as server:
        assert server.core.statistics("model")[0].execution_count == 1
        assert server.core.statistics("pipeline")[0].execution_count == 0


def test_an_instance_that_is_added_runs_the_samples_before_it_serves(tmp_path: Path) -> None:
    samples = sample("s", 1, A="FP32 [1] zero_data: true")
    directory = write_remembering(
        tmp_path,
        "model",
        [tensor_text("A", dims="1")],
        samples,
        more='instance_group { count: 1 kind: KIND_CPU } parameters { key: "EXECUTION_ISOLATION" '
        'value { string_value: "thread" } }',
    )
    options = ServerOptions((tmp_path,), model_control_mode=ModelControlMode.EXPLICIT, load_model=("model",))
    core = CoreServer(options)
    core.start()
    try:
        loaded = core.model("model")
        config = directory / "config.pbtxt"
        config.write_text(config.read_text().replace("count: 1 kind", "count: 3 kind"))
        core.load_model("model")
        [statistics] = core.statistics("model")
        assert core.model("model") is loaded
        assert statistics.execution_count == 3
    finally:
        core.close()
