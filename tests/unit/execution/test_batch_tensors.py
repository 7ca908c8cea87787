"""Gathering the inputs of a batch, and dividing its outputs among the requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars.model_config import (
    DataType,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelTensorReshape,
)
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.batch_tensors import divide_outputs, gather_inputs, wanted_outputs
from cantata.runtime.model_spec import ModelSpec
from tests.support.batches import batch_of, outputs_of, request_for

FP32 = DataType.TYPE_FP32


def spec_of(max_batch_size: int = 8, **changes: object) -> ModelSpec:
    fields: dict[str, object] = {
        "name": "model",
        "max_batch_size": max_batch_size,
        "input": (ModelInput(name="A", data_type=FP32, dims=(2,)),),
        "output": (
            ModelOutput(name="X", data_type=FP32, dims=(2,)),
            ModelOutput(name="Y", data_type=FP32, dims=(2,)),
        ),
    }
    return ModelSpec(ModelConfig(**(fields | changes)), 1)


def rows(count: int, start: float = 0.0) -> np.ndarray:
    return np.arange(start, start + 2 * count, dtype=np.float32).reshape(count, 2)


def test_one_request_passes_its_own_array() -> None:
    spec, array = spec_of(), rows(3)
    assert gather_inputs(batch_of(spec, request_for(spec, {"A": array})))["A"] is array


def test_several_requests_are_concatenated_in_order() -> None:
    spec = spec_of()
    execution = batch_of(spec, request_for(spec, {"A": rows(2)}), request_for(spec, {"A": rows(1, 4)}))
    np.testing.assert_array_equal(gather_inputs(execution)["A"], rows(3))


def test_an_optional_input_that_nobody_gives_is_absent() -> None:
    inputs = (
        ModelInput(name="A", data_type=FP32, dims=(2,)),
        ModelInput(name="B", data_type=FP32, dims=(2,), optional=True),
    )
    spec = spec_of(input=inputs)
    assert list(gather_inputs(batch_of(spec, request_for(spec, {"A": rows(1)})))) == ["A"]


def test_an_input_that_only_some_requests_give_is_an_error() -> None:
    inputs = tuple(ModelInput(name=name, data_type=FP32, dims=(2,), optional=name == "B") for name in "AB")
    spec = spec_of(input=inputs)
    execution = batch_of(
        spec, request_for(spec, {"A": rows(1), "B": rows(1)}), request_for(spec, {"A": rows(1)})
    )
    with pytest.raises(
        InferenceError, match="model 'model', input 'B': only some requests of a batch have it"
    ):
        gather_inputs(execution)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    spec = spec_of(input=(ModelInput(name="A", data_type=FP32, dims=(-1,)),))
    execution = batch_of(
        spec,
        request_for(spec, {"A": np.zeros((1, 2), np.float32)}),
        request_for(spec, {"A": np.zeros((1, 3), np.float32)}),
    )
    with pytest.raises(
        InferenceError, match="input 'A': the shapes of a batch's requests do not fit"
    ) as caught:
        gather_inputs(execution)
    assert caught.value.code is StatusCode.INVALID_ARG


def test_reshape_is_applied_both_ways() -> None:
    reshape = ModelTensorReshape(shape=(1, 2))
    spec = spec_of(
        input=(ModelInput(name="A", data_type=FP32, dims=(2,), reshape=reshape),),
        output=(ModelOutput(name="X", data_type=FP32, dims=(1,), reshape=ModelTensorReshape()),),
    )
    execution = batch_of(spec, request_for(spec, {"A": rows(2)}), request_for(spec, {"A": rows(1)}))
    assert gather_inputs(execution)["A"].shape == (3, 1, 2)
    divide_outputs(execution, {"X": np.array([1, 2, 3], np.float32)})
    assert [outputs_of(response)["X"].tolist() for response in execution.responses] == [[[1], [2]], [[3]]]


def test_outputs_are_views_of_the_models_arrays_and_only_those_asked_for() -> None:
    spec = spec_of()
    first = request_for(spec, {"A": rows(2)}, ("Y",), id="first")
    execution = batch_of(spec, first, request_for(spec, {"A": rows(1)}, ("X", "Y")))
    assert wanted_outputs(execution) == ("Y", "X")
    x, y = rows(3), rows(3, 10)
    divide_outputs(execution, {"X": x, "Y": y})
    one, other = (outputs_of(response) for response in execution.responses)
    assert list(one) == ["Y"]
    assert list(other) == ["X", "Y"]
    assert np.shares_memory(one["Y"], y)
    np.testing.assert_array_equal(one["Y"], y[:2])
    np.testing.assert_array_equal(other["X"], x[2:])
    assert execution.responses[0] is not None
    assert execution.responses[0].id == "first"


def test_a_request_that_names_no_outputs_wants_all() -> None:
    spec = spec_of()
    execution = batch_of(spec, request_for(spec, {"A": rows(1)}, ("Y",)), request_for(spec, {"A": rows(1)}))
    assert wanted_outputs(execution) == ("X", "Y")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_every_request_gets_its_own_rows_back(sizes: list[int]) -> None:
    spec = spec_of(max_batch_size=100)
    arrays = [rows(size, 100 * index) for index, size in enumerate(sizes)]
    execution = batch_of(spec, *(request_for(spec, {"A": array}) for array in arrays))
    gathered = gather_inputs(execution)["A"]
    divide_outputs(execution, {"X": gathered, "Y": gathered + 1})
    for array, response in zip(arrays, execution.responses, strict=True):
        outputs = outputs_of(response)
        np.testing.assert_array_equal(outputs["X"], array)
        np.testing.assert_array_equal(outputs["Y"], array + 1)


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (np.zeros((2, 2), np.int64), "model 'model', output 'X': expected FP32, but the model gave INT64"),
        (np.zeros((2, 2), np.complex64), "expected FP32, but the model gave complex64"),
        (np.zeros((5, 2), np.float32), r"the batch has \d rows, but the model gave the shape \[5,2\]"),
        (np.array(1, np.float32), r"the batch has \d rows, but the model gave the shape \[\]"),
    ],
)
def test_an_output_that_cannot_be_divided_says_why(requests: int, given: np.ndarray, text: str) -> None:
    spec = spec_of(output=(ModelOutput(name="X", data_type=FP32, dims=(2,)),))
    execution = batch_of(spec, *(request_for(spec, {"A": rows(2 // requests)}) for _ in range(requests)))
    with pytest.raises(InferenceError, match=text) as caught:
        divide_outputs(execution, {"X": given})
    assert caught.value.code is StatusCode.INTERNAL


def test_an_output_that_does_not_fit_its_reshape_says_why() -> None:
    output = ModelOutput(name="X", data_type=FP32, dims=(4,), reshape=ModelTensorReshape(shape=(2, 2)))
    spec = spec_of(output=(output,))
    execution = batch_of(spec, request_for(spec, {"A": rows(1)}))
    with pytest.raises(
        InferenceError, match=r"output 'X': the model's shape \[1,2,3\] does not fit \[-1,4\]"
    ):
        divide_outputs(execution, {"X": np.zeros((1, 2, 3), np.float32)})


def test_without_batching_the_shape_is_the_models_own() -> None:
    spec = spec_of(max_batch_size=0)
    execution = batch_of(spec, request_for(spec, {"A": np.zeros(2, np.float32)}))
    divide_outputs(execution, {"X": np.zeros(2, np.float32), "Y": np.zeros((7, 2), np.float32)})
    assert outputs_of(execution.responses[0])["Y"].shape == (7, 2)
