"""Requests are held against the model's inputs and outputs; what does not fit is said in Triton's words."""

from __future__ import annotations

import numpy as np
import pytest

from cantata.grammars.model_config import DataType, ModelConfig, ModelInput, ModelOutput
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.tensor import tensor_of_array
from tests.support.requests import RecordingSender

NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def spec(*, max_batch_size: int = 4, optional: bool = False) -> ModelSpec:
    config = ModelConfig(
        name="M",
        max_batch_size=max_batch_size,
        input=(
            ModelInput(name="A", data_type=DataType.TYPE_FP32, dims=(-1, 2)),
            ModelInput(name="B", data_type=DataType.TYPE_INT32, dims=(3,), optional=optional),
        ),
        output=(ModelOutput(name="O", data_type=DataType.TYPE_FP32, dims=(1,)),),
    )
    return ModelSpec(config, 1)


def request(id: str = "", outputs: tuple[str, ...] = (), **shapes: tuple[int, ...]) -> InferenceRequest:
    dtypes = {"A": np.float32, "B": np.int32}
    inputs = {
        name: tensor_of_array(np.zeros(shape, dtypes.get(name, np.float32))) for name, shape in shapes.items()
    }
    return InferenceRequest("M", inputs, RecordingSender(), 0, id=id, requested_outputs=outputs)


@pytest.mark.parametrize(
    ("model", "shapes", "batch_size"),
    [
        (spec(), {"A": (3, 7, 2), "B": (3, 3)}, 3),
        (spec(), {"A": (4, 0, 2), "B": (4, 3)}, 4),
        (spec(max_batch_size=0), {"A": (7, 2), "B": (3,)}, 1),
        (spec(optional=True), {"A": (1, 1, 2)}, 1),
    ],
)
def test_what_fits_is_accepted_with_its_batch_size(
    model: ModelSpec, shapes: dict[str, tuple[int, ...]], batch_size: int
) -> None:
    fitting = request(outputs=("O",), **shapes)
    model.validate(fitting)
    assert fitting.batch_size == batch_size


REFUSED = [
    (
        spec(),
        {"A": (1, 1, 2)},
        "expected 2 inputs but got 1 inputs for model 'M'. Got input(s) ['A'], but missing required input(s) ['B']. "
        "Please provide all required input(s).",
    ),
    (
        spec(optional=True),
        {"B": (1, 3)},
        "expected number of inputs between 1 and 2 but got 1 inputs for model 'M'. Got input(s) ['B'], but missing "
        "required input(s) ['A']. Please provide all required input(s).",
    ),
    (spec(), {"A": (1, 1, 2), "X": (1,)}, "unexpected inference input 'X' for model 'M'"),
    (spec(), {"A": (2, 1, 2), "B": (1, 3)}, "input 'B' batch size does not match other inputs for 'M'"),
    (spec(), {"A": (5, 1, 2), "B": (5, 3)}, "inference request batch-size must be <= 4 for 'M'"),
    (spec(), {"A": (), "B": (1, 3)}, "input 'A' has no shape but model requires batch dimension for 'M'"),
    (
        spec(),
        {"A": (1, 1, 3), "B": (1, 3)},
        "unexpected shape for input 'A' for model 'M'. Expected [-1,-1,2], got [1,1,3]." + NOTE,
    ),
    (
        spec(max_batch_size=0),
        {"A": (1, 1, 2), "B": (3,)},
        "unexpected shape for input 'A' for model 'M'. Expected [-1,2], got [1,1,2].",
    ),
]


@pytest.mark.parametrize(("model", "shapes", "message"), REFUSED)
def test_what_does_not_fit_is_refused(
    model: ModelSpec, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(InferenceError) as refused:
        model.validate(request(id="7", **shapes))
    assert refused.value.code is StatusCode.INVALID_ARG
    assert refused.value.message == "[request id: 7] " + message


def test_a_wrong_datatype_is_named_beside_the_expected_one() -> None:
    wrong = request(A=(1, 1, 2), B=(1, 3))
    wrong.inputs["B"] = tensor_of_array(np.zeros((1, 3), np.uint8))
    with pytest.raises(InferenceError) as refused:
        spec().validate(wrong)
    assert refused.value.message == (
        "[request id: <id_unknown>] inference input 'B' data-type is 'UINT8', but model 'M' expects 'INT32'"
    )


def test_an_output_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(InferenceError, match="unexpected inference output 'P' for model 'M'"):
        spec().validate(request(outputs=("O", "P"), A=(1, 1, 2), B=(1, 3)))
