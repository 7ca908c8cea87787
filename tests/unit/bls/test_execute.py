"""A model.py at work: what it gets, what it may return, and what its mistakes look like to clients."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from cantata.runtime.errors import InferenceError, StatusCode
from tests.support.python_models import CONFIG, PythonModelHost, request_with

IDENTITY = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(request, "IN").as_numpy())]
            )
            for request in requests
        ]
"""


def returning(expression: str) -> str:
    """A model whose `execute` returns an expression; `answer(request)` is a right response."""
    return f"""
import numpy as np
import triton_python_backend_utils as pb_utils

def answer(request, name="OUT", dtype=np.float32, shape=(1, 2)):
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, np.ones(shape, dtype))])

class TritonPythonModel:
    def execute(self, requests):
        return {expression}
"""


def test_a_model_answers_each_request_of_a_batch(host: PythonModelHost) -> None:
    instance = host.load(IDENTITY)
    batch = [request_with([[1.0]], id="a"), request_with([[2.0], [3.0]], id="b")]
    host.run(instance, [request for request, _ in batch])
    assert [client.values() for _, client in batch] == [[[[1.0]]], [[[2.0], [3.0]]]]
    assert [(client.response.id, client.response.model_version) for _, client in batch] == [
        ("a", 1),
        ("b", 1),
    ]


def test_an_answer_is_the_models_own_array(host: PythonModelHost) -> None:
    instance = host.load(
        """
        import numpy as np
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def execute(self, requests):
                self.array = np.ones((1, 4), np.float32)
                return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", self.array)])]
        """
    )
    request, client = request_with(np.ones((1, 4)))
    host.run(instance, [request])
    assert client.response.outputs["OUT"].array is instance._object.array


def test_initialize_is_told_where_it_is(host: PythonModelHost, tmp_path: Path) -> None:
    instance = host.load(
        """
        class TritonPythonModel:
            def initialize(self, args):
                self.args = args
            def execute(self, requests):
                pass
        """
    )
    args = dict(instance._object.args)
    config = json.loads(args.pop("model_config"))
    assert (config["name"], config["max_batch_size"]) == ("model", 8)
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert args == {
        "model_instance_kind": "CPU",
        "model_instance_name": "model_0",
        "model_instance_device_id": "0",
        "model_repository": str(tmp_path / "model"),
        "model_version": "1",
        "model_name": "model",
    }


def test_outputs_that_nobody_asked_for_are_dropped(host: PythonModelHost) -> None:
    config = CONFIG + 'output { name: "SECOND" data_type: TYPE_FP32 dims: [ -1 ] }'
    instance = host.load(
        returning(
            "[pb_utils.InferenceResponse([pb_utils.Tensor(name, np.ones((1, 1), np.float32)) "
            "for name in ('SECOND', 'UNKNOWN', 'OUT')])]"
        ),
        config,
    )
    assert list(host.infer(instance).response.outputs) == ["SECOND", "OUT"]
    assert list(host.infer(instance, requested_outputs=("OUT",)).response.outputs) == ["OUT"]


def test_a_response_carries_parameters_or_an_error_with_its_code(host: PythonModelHost) -> None:
    instance = host.load(
        returning("[pb_utils.InferenceResponse([], parameters={'seen': 1, 'by': 'me', 'ok': True})]")
    )
    assert host.infer(instance).response.parameters == {"seen": 1, "by": "me", "ok": True}
    instance = host.load(
        returning(
            "[pb_utils.InferenceResponse(error=pb_utils.TritonError('no such', pb_utils.TritonError.NOT_FOUND))]"
        )
    )
    error = host.infer(instance).error
    assert (error.code, error.message) == (StatusCode.NOT_FOUND, "no such")


BAD_RETURNS = [
    ("None", "Expected a list in the execute return, found type '<class 'NoneType'>'."),
    ("{}", "Expected a list in the execute return, found type '<class 'dict'>'."),
    ("answer(requests[0])", "Expected a list in the execute return, found type "),
    (
        "[]",
        "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
        "InferenceRequest(s) size is:2, and InferenceResponse(s) size is:0",
    ),
    (
        "[answer(requests[0])] * 3",
        "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
        "InferenceRequest(s) size is:2, and InferenceResponse(s) size is:3",
    ),
    (
        "[answer(requests[0]), None]",
        "Expected an 'InferenceResponse' object in the execute function return list, found type "
        "'<class 'NoneType'>'.",
    ),
    (
        "[answer(requests[0]), 7]",
        "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'int'>'.",
    ),
    ("1 / 0", "ZeroDivisionError: division by zero\n\nAt:\n  "),
    ("exit(3)", "SystemExit: 3"),
    ("[pb_utils.Tensor('', np.ones(1))]", "TritonModelException: Tensor name cannot be an empty string."),
]


@pytest.mark.parametrize(("expression", "message"), BAD_RETURNS)
def test_a_broken_execute_fails_every_request_of_its_batch(
    host: PythonModelHost, expression: str, message: str
) -> None:
    instance = host.load(returning(expression))
    batch = [request_with(), request_with()]
    host.run(instance, [request for request, _ in batch])
    for _, client in batch:
        assert client.error.code is StatusCode.INTERNAL
        assert client.error.message.startswith(
            f"Failed to process the request(s) for model 'model_0', message: {message}"
        )


def test_a_failure_names_the_lines_of_the_model(host: PythonModelHost, tmp_path: Path) -> None:
    instance = host.load(
        """
        class TritonPythonModel:
            def execute(self, requests):
                return self.work()
            def work(self):
                raise ValueError("bad luck")
        """
    )
    path = tmp_path / "model" / "1" / "model.py"
    assert host.infer(instance).error.message == (
        "Failed to process the request(s) for model 'model_0', message: ValueError: bad luck\n\n"
        f"At:\n  {path}(4): execute\n  {path}(6): work\n"
    )


WRONG_TENSORS = [
    ("dtype=np.int64", "model 'model', output 'OUT': expected FP32, got INT64"),
    ("dtype=object", "model 'model', output 'OUT': expected FP32, got BYTES"),
]


@pytest.mark.parametrize(("tensor", "message"), WRONG_TENSORS)
def test_a_tensor_of_the_wrong_kind_fails_its_own_request(
    host: PythonModelHost, tensor: str, message: str
) -> None:
    instance = host.load(returning(f"[answer(requests[0]), answer(requests[1], {tensor})]"))
    (first, right), (second, wrong) = request_with(), request_with()
    host.run(instance, [first, second])
    assert right.values() == [[[1.0, 1.0]]]
    assert (wrong.error.code, wrong.error.message) == (StatusCode.INTERNAL, message)


def test_the_reshape_of_an_output_is_undone(host: PythonModelHost) -> None:
    config = """
    max_batch_size: 8
    input { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] }
    output { name: "OUT" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] } }
    """
    instance = host.load(returning("[answer(requests[0], shape=(1, 2, 2))]"), config)
    assert host.infer(instance).values() == [[[1.0, 1.0, 1.0, 1.0]]]


def test_a_shape_that_is_not_the_configured_one_is_passed_on(host: PythonModelHost) -> None:
    instance = host.load(returning("[answer(requests[0], shape=(3,))]"))
    assert host.infer(instance).values() == [[1.0, 1.0, 1.0]]


def test_an_input_reaches_the_model_in_the_shape_that_it_asked_for(host: PythonModelHost) -> None:
    config = """
    max_batch_size: 8
    input { name: "IN" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }
    output { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }
    """
    shape = "np.array([requests[0].inputs()[0].shape()], np.float32)"
    instance = host.load(
        returning(f"[pb_utils.InferenceResponse([pb_utils.Tensor('OUT', {shape})])]"), config
    )
    request, client = request_with([[7.0]])
    host.run(instance, [request])
    assert client.values() == [[[1.0]]]


LOAD_FAILURES = [
    ("import nowhere", "1: ModuleNotFoundError: No module named 'nowhere'"),
    ("x = 1\nboom = x / 0\n", "2: ZeroDivisionError: division by zero"),
    ("def broken(:\n  pass\n", "1: SyntaxError: invalid syntax"),
    ("raise SystemExit(4)", "1: SystemExit: 4"),
]


@pytest.mark.parametrize(("source", "message"), LOAD_FAILURES)
def test_a_file_that_cannot_be_imported_says_where(
    host: PythonModelHost, tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(InferenceError) as failure:
        host.load(source)
    path = tmp_path / "model" / "1" / "model.py"
    assert failure.value.message.startswith(f"model 'model' could not be imported: {path}:{message}")


def test_a_class_or_an_execute_that_is_missing_is_named(host: PythonModelHost, tmp_path: Path) -> None:
    path = tmp_path / "model" / "1" / "model.py"
    with pytest.raises(InferenceError) as failure:
        host.load("")
    assert failure.value.message == f"Python model {path} does not define the class `TritonPythonModel`."
    with pytest.raises(InferenceError) as failure:
        host.load("class TritonPythonModel: pass")
    assert failure.value.message == f"Python model {path} does not implement `execute` method."


@pytest.mark.parametrize(
    ("statement", "message"),
    [("raise ValueError('no weights')", "ValueError: no weights"), ("raise SystemExit", "SystemExit")],
)
def test_an_initialize_that_raises_fails_the_load(
    host: PythonModelHost, statement: str, message: str
) -> None:
    with pytest.raises(InferenceError) as failure:
        host.load(
            f"""
            class TritonPythonModel:
                def initialize(self, args):
                    {statement}
                def execute(self, requests):
                    pass
            """
        )
    assert failure.value.code is StatusCode.INTERNAL
    assert failure.value.message.startswith(f"model 'model' could not be initialized: {message}")


def test_finalize_runs_when_the_instance_closes_and_may_fail(
    host: PythonModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    instance = host.load(
        """
        class TritonPythonModel:
            def execute(self, requests):
                pass
            def finalize(self):
                raise SystemExit("in finalize")
        """
    )
    host.close_instance(instance)
    assert "finalize of instance 'model_0' failed" in caplog.text


def test_a_model_logs_under_its_own_name_and_line(
    host: PythonModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host.load(
        """
        import triton_python_backend_utils as pb_utils
        class TritonPythonModel:
            def initialize(self, args):
                pb_utils.Logger.log_info("i")
                pb_utils.Logger.log_warn("w")
                pb_utils.Logger.log_error("e")
                pb_utils.Logger.log_verbose("v")
                pb_utils.Logger.log("default")
                pb_utils.Logger.log("chosen", pb_utils.Logger.WARNING)
            def execute(self, requests):
                pass
        """
    )
    own = [record for record in caplog.records if record.name == "cantata.model.model"]
    assert [(record.levelname, record.message, record.lineno) for record in own] == [
        ("INFO", "i", 5),
        ("WARNING", "w", 6),
        ("ERROR", "e", 7),
        ("DEBUG", "v", 8),
        ("INFO", "default", 9),
        ("WARNING", "chosen", 10),
    ]


@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        ("def is_ready(self): return True", True),
        ("def is_ready(self): return False", False),
        ("async def is_ready(self): return False", False),
        ("def other(self): pass", True),
    ],
)
def test_a_model_may_say_whether_it_is_ready(host: PythonModelHost, hook: str, answer: bool) -> None:
    instance = host.load(f"{IDENTITY}\n    {hook}\n")
    assert instance.is_ready() is answer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1", "is_ready() must return a boolean value"),
        ("raise ValueError('x')", "model 'model': is_ready() failed: ValueError: x"),
    ],
)
def test_an_is_ready_that_misbehaves_is_an_error(host: PythonModelHost, body: str, message: str) -> None:
    instance = host.load(f"{IDENTITY}\n    def is_ready(self): {body}\n")
    with pytest.raises(InferenceError) as failure:
        instance.is_ready()
    assert failure.value.message == message


def test_a_model_may_write_into_its_input_without_anybody_else_seeing_it(host: PythonModelHost) -> None:
    instance = host.load(
        """
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def execute(self, requests):
                values = requests[0].inputs()[0].as_numpy()
                values *= 2
                return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", values)])]
        """
    )
    request, client = request_with([[1.0]])
    request.inputs["IN"].array.setflags(write=False)
    host.run(instance, [request])
    assert client.values() == [[[2.0]]]
    assert request.inputs["IN"].array.tolist() == [[1.0]]


def test_a_finalize_without_end_does_not_keep_the_instance(
    host: PythonModelHost, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cantata.bls.instance._FINALIZE_S", 0.01)
    instance = host.load(
        """
        import threading

        class TritonPythonModel:
            gate = threading.Event()

            def execute(self, requests):
                pass

            def finalize(self):
                self.gate.wait(10)
        """
    )
    host.close_instance(instance)
    assert "finalize of instance 'model_0' took longer than 0.01 s" in caplog.text
    instance._object.gate.set()
