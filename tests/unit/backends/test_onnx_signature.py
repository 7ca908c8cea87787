"""Completing a configuration from an ONNX graph, and holding it against one."""

from __future__ import annotations

from typing import Any

import pytest

from cantata.grammars.model_config import (
    BatchInput,
    DataType,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelOutput,
    ModelSequenceBatching,
    ModelTensorReshape,
)
from cantata.runtime.backends.onnx_signature import (
    DATATYPES,
    GraphSignature,
    GraphTensor,
    check_config,
    complete_config,
    needs_completion,
)
from cantata.runtime.errors import InferenceError, StatusCode

FP32 = DataType.TYPE_FP32


def graph_of(inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> GraphSignature:
    return GraphSignature(
        tuple(GraphTensor(name, "tensor(float)", shape) for name, shape in inputs.items()),
        tuple(GraphTensor(name, "tensor(float)", shape) for name, shape in outputs.items()),
    )


def config_of(**fields: Any) -> ModelConfig:
    return ModelConfig(name="m", backend="onnxruntime", **fields)


def input_of(name: str = "IN", dims: tuple[int, ...] = (4,), **fields: Any) -> ModelInput:
    return ModelInput(**{"name": name, "data_type": FP32, "dims": dims} | fields)


def output_of(name: str = "OUT", dims: tuple[int, ...] = (4,), **fields: Any) -> ModelOutput:
    return ModelOutput(**{"name": name, "data_type": FP32, "dims": dims} | fields)


BATCHING = graph_of({"IN": (-1, 4)}, {"OUT": (-1, 4)})
FIXED = graph_of({"IN": (1, 4)}, {"OUT": (-1, 4)})


def test_a_graph_that_can_batch_fills_in_everything() -> None:
    assert complete_config(config_of(), BATCHING, 4) == config_of(
        max_batch_size=4,
        input=(input_of(),),
        output=(output_of(),),
        dynamic_batching=ModelDynamicBatching(),
    )


def test_a_graph_that_cannot_batch_keeps_its_whole_shapes() -> None:
    assert complete_config(config_of(), FIXED, 4) == config_of(
        input=(input_of(dims=(1, 4)),), output=(output_of(dims=(-1, 4)),)
    )


def test_a_batch_size_that_is_given_is_kept() -> None:
    assert complete_config(config_of(max_batch_size=16), BATCHING, 4).max_batch_size == 16


@pytest.mark.parametrize("size", [0, 1])
def test_no_scheduler_is_added_where_nothing_can_be_batched(size: int) -> None:
    assert complete_config(config_of(), BATCHING, size).dynamic_batching is None


def test_a_scheduler_that_is_given_is_kept() -> None:
    completed = complete_config(config_of(sequence_batching=ModelSequenceBatching()), BATCHING, 4)
    assert completed.dynamic_batching is None
    assert completed.sequence_batching == ModelSequenceBatching()


def test_what_is_given_is_kept_and_the_rest_filled_in() -> None:
    given = input_of(data_type=DataType.TYPE_INT8)
    completed = complete_config(config_of(max_batch_size=2, input=(given,)), BATCHING, 4)
    assert completed.input == (given,)
    assert completed.output == (output_of(),)


def test_one_value_an_item_is_listed_as_one_dimension_that_the_model_does_not_see() -> None:
    completed = complete_config(config_of(), graph_of({"IN": (-1,)}, {"OUT": (-1, 4)}), 4)
    assert completed.input == (input_of(dims=(1,), reshape=ModelTensorReshape()),)


def test_a_scalar_of_a_model_that_does_not_batch_is_listed_as_one_value() -> None:
    completed = complete_config(config_of(), graph_of({"IN": ()}, {"OUT": (4,)}), 4)
    assert completed.input == (input_of(dims=(1,)),)


def test_asking_for_batches_of_a_graph_that_forms_none_is_refused() -> None:
    with pytest.raises(InferenceError) as caught:
        complete_config(config_of(max_batch_size=8), FIXED, 4)
    assert caught.value.message == (
        "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified"
    )


def test_initializers_that_may_be_overridden_are_not_listed() -> None:
    graph = GraphSignature(BATCHING.inputs, BATCHING.outputs, (GraphTensor("W", "tensor(float)", (3,)),))
    assert complete_config(config_of(), graph, 4).input == (input_of(),)


def test_an_optional_input_is_listed_as_optional() -> None:
    graph = GraphSignature((GraphTensor("IN", "optional(tensor(float))", (-1, 4)),), BATCHING.outputs)
    assert complete_config(config_of(), graph, 4).input == (input_of(optional=True),)


@pytest.mark.parametrize(
    "type_name", ["seq(tensor(float))", "tensor(float8e5m2)", "map(int64,tensor(float))"]
)
def test_what_is_no_tensor_is_refused(type_name: str) -> None:
    graph = GraphSignature((GraphTensor("IN", type_name, (-1, 4)),), BATCHING.outputs)
    with pytest.raises(InferenceError) as caught:
        complete_config(config_of(), graph, 4)
    assert caught.value.message == (
        f"model 'm', tensor 'IN': the model has the type {type_name}, which no request can carry; "
        "only tensors are supported"
    )


def test_every_datatype_of_a_configuration_has_an_element_type() -> None:
    assert set(DATATYPES.values()) == set(DataType) - {DataType.TYPE_INVALID}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"input": (input_of(),)}, True),
        ({"output": (output_of(),)}, True),
        ({"input": (input_of(),), "output": (output_of(),)}, False),
        ({"batch_input": (BatchInput(),), "output": (output_of(),)}, False),
    ],
)
def test_only_what_is_left_open_needs_the_graph(fields: dict[str, Any], expected: bool) -> None:
    assert needs_completion(config_of(**fields)) is expected


@pytest.mark.parametrize(
    ("fields", "graph"),
    [
        ({"max_batch_size": 4}, BATCHING),
        ({"input": (input_of(dims=(1, 4)),), "output": (output_of(dims=(3, 4)),)}, FIXED),
        (
            {"max_batch_size": 4},
            graph_of({"IN": (-1, 4)}, {"OUT": (-1, 4), "MORE": (-1, 4)}),
        ),
        (
            {"max_batch_size": 4, "input": (input_of(dims=(2, 2), reshape=ModelTensorReshape(shape=(4,))),)},
            BATCHING,
        ),
        (
            {"input": (input_of(),), "output": (output_of(dims=(7,)),)},
            graph_of({"IN": (4,)}, {"OUT": ()}),
        ),
        (
            {"max_batch_size": 4, "input": (input_of(), input_of("W", optional=True))},
            GraphSignature(BATCHING.inputs, BATCHING.outputs, (GraphTensor("W", "tensor(float)", (-1, 4)),)),
        ),
    ],
    ids=[
        "as completed",
        "narrowed",
        "fewer outputs",
        "by its reshape",
        "of unknown rank",
        "overriding an initializer",
    ],
)
def test_a_configuration_that_fits_is_accepted(fields: dict[str, Any], graph: GraphSignature) -> None:
    check_config(config_of(**{"input": (input_of(),), "output": (output_of(),)} | fields), graph)


@pytest.mark.parametrize(
    ("fields", "graph", "text"),
    [
        (
            {"input": (input_of("INN"), input_of())},
            BATCHING,
            "model 'm': unexpected inference input 'INN', allowed inputs are: IN (did you mean 'IN'?)",
        ),
        (
            {"output": (output_of("RESULT"),)},
            BATCHING,
            "model 'm': unexpected inference output 'RESULT', allowed outputs are: OUT",
        ),
        (
            {},
            graph_of({"IN": (-1, 4), "B": (-1, 4)}, {"OUT": (-1, 4)}),
            "unable to load model 'm', configuration expects 1 inputs, model provides 2; "
            "the configuration lacks: B",
        ),
        (
            {"input": (input_of(data_type=DataType.TYPE_INT64),)},
            BATCHING,
            "unable to load model 'm', configuration expects datatype TYPE_INT64 for input 'IN', "
            "model provides TYPE_FP32",
        ),
        (
            {"output": (output_of(dims=(4, 4)),)},
            BATCHING,
            "model 'm', tensor 'OUT': the model expects 2 dimensions (shape [-1,4]) but the model configuration "
            "specifies 3 dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
            "explicit tensor shape, making complete shape [-1,4,4])",
        ),
        (
            {"max_batch_size": 0, "input": (input_of(dims=(4,)),)},
            BATCHING,
            "model 'm', tensor 'IN': the model expects 2 dimensions (shape [-1,4]) but the model configuration "
            "specifies 1 dimensions (shape [4])",
        ),
        (
            {"input": (input_of(dims=(-1,)),)},
            BATCHING,
            "model 'm', tensor 'IN': the model expects 2 dimensions (shape [-1,4]) but the model configuration "
            "specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
            "explicit tensor shape, making complete shape [-1,-1])",
        ),
        (
            {},
            FIXED,
            "model 'm', tensor 'IN': for the model to support batching the shape should have at least 1 dimension "
            "and the first dimension must be -1; but shape expected by the model is [1,4]",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_says_where(
    fields: dict[str, Any], graph: GraphSignature, text: str
) -> None:
    config = config_of(**{"max_batch_size": 4, "input": (input_of(),), "output": (output_of(),)} | fields)
    with pytest.raises(InferenceError) as caught:
        check_config(config, graph)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARG, text)
