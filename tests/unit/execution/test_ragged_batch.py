"""What ragged batches are made of: flat inputs, batch inputs of every kind, and outputs cut up by their sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars.model_config import (
    BatchInput,
    BatchOutput,
    DataType,
    ModelConfig,
    ModelInput,
    ModelOutput,
)
from cantata.runtime.datatypes import DataType as OurDataType
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.batch_tensors import divide_outputs, gather_inputs
from cantata.runtime.execution.ragged_batch import batch_input_value, scattered
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.ragged_spec import BatchInputKind, BatchInputSpec
from tests.support.batches import batch_of, outputs_of, request_for

# Three requests: of one item, of two, of one.
SHAPES = [(1, 3), (2, 2), (1, 5)]

KINDS = [
    (BatchInputKind.ELEMENT_COUNT, [3, 4, 5]),
    (BatchInputKind.ACCUMULATED_ELEMENT_COUNT, [3, 7, 12]),
    (BatchInputKind.ACCUMULATED_ELEMENT_COUNT_WITH_ZERO, [0, 3, 7, 12]),
    (BatchInputKind.ITEM_SHAPE, [[3], [2], [2], [5]]),
    (BatchInputKind.ITEM_SHAPE_FLATTEN, [3, 2, 2, 5]),
]


@pytest.mark.parametrize(("kind", "expected"), KINDS)
@pytest.mark.parametrize("datatype", [OurDataType.INT32, OurDataType.FP32])
def test_each_kind_of_batch_input_is_computed_from_the_shapes(
    kind: BatchInputKind, expected: list[object], datatype: OurDataType
) -> None:
    value = batch_input_value(BatchInputSpec(kind, ("T",), datatype, "IN"), SHAPES)
    assert value.tolist() == expected
    assert value.dtype == (np.int32 if datatype is OurDataType.INT32 else np.float32)


def test_the_largest_count_is_given_as_a_shape() -> None:
    kind = BatchInputKind.MAX_ELEMENT_COUNT_AS_SHAPE
    assert batch_input_value(BatchInputSpec(kind, ("T",), OurDataType.FP32, "IN"), SHAPES).shape == (5,)


def test_item_shapes_have_a_column_for_each_dimension() -> None:
    batch_input = BatchInputSpec(BatchInputKind.ITEM_SHAPE, ("T",), OurDataType.INT32, "IN")
    assert batch_input_value(batch_input, [(2, 2, 2), (1, 1, 3)]).tolist() == [[2, 2], [2, 2], [1, 3]]


def ragged_config(**fields: object) -> ModelConfig:
    return ModelConfig(
        name="m",
        max_batch_size=8,
        input=(
            ModelInput(name="RAGGED", data_type=DataType.TYPE_FP32, dims=(-1,), allow_ragged_batch=True),
            ModelInput(name="PLAIN", data_type=DataType.TYPE_FP32, dims=(2,)),
        ),
        output=(ModelOutput(name="OUT", data_type=DataType.TYPE_FP32, dims=(-1,)),),
        batch_input=(
            BatchInput(
                target_name=("COUNT", "AGAIN"), data_type=DataType.TYPE_INT32, source_input=("RAGGED",)
            ),
        ),
        **fields,
    )


def inputs_of(*shape: int) -> dict[str, np.ndarray]:
    ragged = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return {"RAGGED": ragged, "PLAIN": np.ones((shape[0], 2), np.float32)}


def test_ragged_inputs_are_laid_end_to_end_and_the_others_stacked() -> None:
    spec = ModelSpec(ragged_config(), 1)
    assert spec.compared_inputs == ()
    arrays = gather_inputs(batch_of(spec, *(request_for(spec, inputs_of(*shape)) for shape in SHAPES)))
    assert {name: array.shape for name, array in arrays.items()} == {
        "RAGGED": (12,),
        "PLAIN": (4, 2),
        "COUNT": (3,),
        "AGAIN": (3,),
    }
    assert arrays["RAGGED"].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_a_single_request_is_flat_as_well() -> None:
    spec = ModelSpec(ragged_config(), 1)
    arrays = gather_inputs(batch_of(spec, request_for(spec, inputs_of(2, 2))))
    assert (arrays["RAGGED"].shape, arrays["COUNT"].tolist()) == ((4,), [4])


SCATTERING = {"batch_output": (BatchOutput(target_name=("OUT",), source_input=("RAGGED",)),)}


def test_a_batch_output_is_cut_up_by_its_source() -> None:
    spec = ModelSpec(ragged_config(**SCATTERING), 1)
    execution = batch_of(spec, *(request_for(spec, inputs_of(*shape)) for shape in SHAPES))
    divide_outputs(execution, {"OUT": np.arange(12, dtype=np.float32)})
    outputs = [outputs_of(response)["OUT"].tolist() for response in execution.responses]
    assert outputs == [[[0, 1, 2]], [[3, 4], [5, 6]], [[7, 8, 9, 10, 11]]]


def test_a_batch_output_of_another_size_is_an_error() -> None:
    spec = ModelSpec(ragged_config(**SCATTERING), 1)
    execution = batch_of(spec, request_for(spec, inputs_of(1, 3)))
    with pytest.raises(InferenceError, match="requests have 3 elements, but the model gave 4"):
        divide_outputs(execution, {"OUT": np.zeros(4, np.float32)})


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=5))
def test_scattering_undoes_laying_end_to_end(shapes: list[tuple[int, ...]]) -> None:
    arrays = [np.random.default_rng(0).random(shape) for shape in shapes]
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    parts = scattered(flat, (-1, -1), shapes, batches=True)
    assert all(np.array_equal(part, array) for part, array in zip(parts, arrays, strict=True))


def test_an_output_of_another_rank_takes_the_number_of_elements() -> None:
    parts = scattered(np.arange(6), (-1,), [(1, 2, 2), (1, 1, 2)], batches=True)
    assert [part.tolist() for part in parts] == [[[0, 1, 2, 3]], [[4, 5]]]
