"""auto_complete_config and the rules of pb_utils.ModelConfig."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cantata.bls import pb_utils
from cantata.grammars.model_config import DataType
from cantata.runtime.errors import InferenceError
from tests.support.python_models import CONFIG, PythonModelHost

X = {"name": "X", "data_type": "TYPE_FP32", "dims": [4]}


def config(**fields: Any) -> pb_utils.ModelConfig:
    return pb_utils.ModelConfig({"name": "m", "max_batch_size": 0, "input": [], "output": [], **fields})


def test_an_empty_configuration_is_filled() -> None:
    completed = config()
    completed.set_max_batch_size(4)
    completed.set_dynamic_batching()
    completed.set_model_transaction_policy({"decoupled": True})
    completed.add_input({**X, "optional": True})
    completed.add_output({"name": "Y", "data_type": "TYPE_STRING", "dims": (-1, 2)})
    assert completed.as_dict() == {
        "name": "m",
        "max_batch_size": 4,
        "dynamic_batching": {},
        "model_transaction_policy": {"decoupled": True},
        "input": [{**X, "optional": True}],
        "output": [{"name": "Y", "data_type": "TYPE_STRING", "dims": [-1, 2]}],
    }
    assert pb_utils.using_decoupled_model_transaction_policy(completed.as_dict())
    assert pb_utils.get_input_config_by_name(completed.as_dict(), "X") == {**X, "optional": True}
    assert pb_utils.get_output_config_by_name(completed.as_dict(), "X") is None


def test_what_is_configured_stays_and_gaps_are_filled() -> None:
    completed = config(
        max_batch_size=2,
        sequence_batching={"direct": {}},
        input=[{"name": "X", "data_type": "TYPE_INVALID", "dims": [], "reshape": None}],
    )
    completed.set_max_batch_size(8)
    completed.set_dynamic_batching()
    completed.add_input(X)
    assert completed.as_dict() == {
        "name": "m",
        "max_batch_size": 8,
        "sequence_batching": {"direct": {}},
        "input": [{**X, "reshape": None}],
        "output": [],
    }


CONTRADICTIONS: list[tuple[Callable[[pb_utils.ModelConfig], None], str]] = [
    (
        lambda config: config.set_max_batch_size(3),
        "configuration specified max_batch_size 4, but in auto-complete-config function for model 'm' specified "
        "max_batch_size 3",
    ),
    (
        lambda config: config.add_input({**X, "data_type": "TYPE_INT8"}),
        "unable to load model 'm', configuration expects datatype TYPE_FP32 for input 'X', model provides TYPE_INT8",
    ),
    (
        lambda config: config.add_output({**X, "data_type": "TYPE_INT8"}),
        "unable to load model 'm', configuration expects datatype TYPE_FP32 for output 'X', model provides TYPE_INT8",
    ),
    (
        lambda config: config.add_input({**X, "dims": [5]}),
        "model 'm', tensor 'X': the model expects dims [5] but the model configuration specifies dims [4]",
    ),
    (
        lambda config: config.add_input({**X, "format": "NCHW"}),
        "input 'X' in auto-complete-config function for model 'm' contains property other than 'name', 'data_type', "
        "'dims' and 'optional'.",
    ),
    (
        lambda config: config.add_output({**X, "optional": True}),
        "output 'X' in auto-complete-config function for model 'm' contains property other than 'name', 'data_type' "
        "and 'dims'.",
    ),
    (
        lambda config: config.add_output({"name": "X", "dims": [1]}),
        "output 'X' in auto-complete-config function for model 'm' is missing 'data_type' property.",
    ),
    (
        lambda config: config.set_model_transaction_policy({"decoupled": True}),
        "trying to change decoupled property in auto-complete-config for model 'm', which is already set to 'False'.",
    ),
    (
        lambda config: config.set_model_transaction_policy({"coupled": True}),
        "model transaction property in auto-complete-config function for model 'm' contains property other than "
        "'decoupled'.",
    ),
]


@pytest.mark.parametrize(("contradict", "message"), CONTRADICTIONS)
def test_contradictions_are_errors(contradict: Callable[[pb_utils.ModelConfig], None], message: str) -> None:
    configured = config(
        max_batch_size=4, input=[dict(X)], output=[dict(X)], model_transaction_policy={"decoupled": False}
    )
    before = json.dumps(configured.as_dict())
    with pytest.raises(ValueError) as refused:
        contradict(configured)
    assert str(refused.value) == message
    assert json.dumps(configured.as_dict()) == before


def complete(host: PythonModelHost, hook: str, text: str = 'backend: "python"'):
    files = host.write(
        f"""
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    {hook}
    def execute(self, requests):
        pass
"""
    )
    return host.backend.complete_config(files, host.config(text))


def test_a_model_completes_its_configuration(host: PythonModelHost) -> None:
    completed = complete(
        host,
        """@staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(4)
        config.add_input({'name': 'X', 'data_type': 'TYPE_FP32', 'dims': [-1]})
        return config""",
    )
    assert (completed.name, completed.backend, completed.max_batch_size) == ("model", "python", 4)
    [tensor] = completed.input
    assert (tensor.name, tensor.data_type, tensor.dims) == ("X", DataType.TYPE_FP32, (-1,))


def test_a_model_without_the_hook_leaves_the_configuration_as_it_is(host: PythonModelHost) -> None:
    assert complete(host, "", CONFIG) == host.config(CONFIG)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "auto_complete_config function in model 'model' must return a valid pb.ModelConfig object."),
        (
            "return {}",
            "auto_complete_config function in model 'model' must return a valid pb.ModelConfig object.",
        ),
        ("raise ValueError('x')", "auto_complete_config of model 'model' failed: ValueError: x"),
        (
            "c.as_dict()['nonsense'] = 1; return c",
            "auto_complete_config of model 'model' gave a wrong configuration: ",
        ),
        (
            "pb_utils.InferenceRequest(model_name='m').exec()",
            "auto_complete_config of model 'model' failed: TritonModelException: BLS is only supported during the "
            "'execute' function.",
        ),
    ],
)
def test_a_hook_that_misbehaves_fails_the_load(host: PythonModelHost, body: str, message: str) -> None:
    with pytest.raises(InferenceError) as failure:
        complete(host, f"@staticmethod\n    def auto_complete_config(c): {body}")
    assert failure.value.message.startswith(message)
