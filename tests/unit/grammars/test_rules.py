"""Every rule of a configuration, with the text that breaks it and what is said."""

from __future__ import annotations

import pytest

from cantata.grammars.model_config import InstanceKind, ModelConfig, ModelInput
from cantata.grammars.problems import Positions, Problem
from cantata.grammars.reading import read_model_config
from cantata.grammars.rules import normalize_model_config, validate_model_config


def problems_of(text: str, *, check_io: bool = True) -> list[Problem]:
    parsed = read_model_config(text, "config.pbtxt")
    assert parsed.config is not None, parsed.problems
    return validate_model_config(parsed.config, parsed.positions, check_io=check_io)


MODEL = 'name: "m" backend: "python" max_batch_size: 4 '
TENSORS = (
    'input { name: "I" data_type: TYPE_FP32 dims: 1 } output { name: "O" data_type: TYPE_FP32 dims: 1 } '
)
UNBATCHED = 'name: "m" backend: "python" '


def control(text: str) -> str:
    return f'{MODEL} sequence_batching {{ control_input {{ name: "C" control {{ {text} }} }} }}'


def state(text: str) -> str:
    fields = 'input_name: "S" output_name: "T" data_type: TYPE_FP32 dims: [ 2, -1 ]'
    return f"{MODEL} sequence_batching {{ state {{ {fields} {text} }} }}"


def dynamic(text: str) -> str:
    return f"{MODEL} dynamic_batching {{ {text} }}"


def reshaped(dims: str, shape: str, model: str = MODEL) -> str:
    return f'{model} input {{ name: "I" data_type: TYPE_FP32 dims: [ {dims} ] reshape {{ shape: [ {shape} ] }} }}'


ORDER = "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m"
DIMENSION = "must be integer >= 1, or -1 to indicate a variable-size dimension for m"
SIZE = "model input 'I' has different size for dims and reshape for m"
START = "for CONTROL_SEQUENCE_START for m"
EITHER = "'int32_false_true', 'fp32_false_true' or 'bool_false_true'"

# (text, path of the problem, message)
BROKEN = [
    ('backend: "python"', "name", "model configuration must specify 'name'"),
    ('name: "m"', "platform", "unexpected platform type '' for m"),
    ('name: "m" platform: "onnx"', "platform", "unexpected platform type 'onnx' for m"),
    (
        'name: "m" platform: "ensemble" backend: "python" ensemble_scheduling { }',
        "backend",
        "Ensemble model 'm' must have platform type 'ensemble' and empty backend type",
    ),
    (
        'name: "m" platform: "ensemble"',
        "platform",
        "ensemble scheduling must be set for ensemble m whose platform is ensemble",
    ),
    (
        'name: "m" platform: "onnxruntime_onnx" backend: "python"',
        "platform",
        "unexpected 'platform' and 'backend' pair, got:onnxruntime_onnx, python",
    ),
    (
        'name: "m" platform: "mine" backend: "pytorch"',
        "platform",
        "unexpected 'platform' and 'backend' pair, got:mine, pytorch",
    ),
    (
        'name: "m" backend: "python" max_batch_size: -1',
        "max_batch_size",
        "'max_batch_size' must be non-negative value for m",
    ),
    (
        dynamic("preferred_batch_size: [ 2, 0 ]"),
        "dynamic_batching.preferred_batch_size[1]",
        "dynamic batching preferred size must be positive for m",
    ),
    (
        dynamic("preferred_batch_size: 8"),
        "dynamic_batching.preferred_batch_size[0]",
        "dynamic batching preferred size must be <= max batch size for m",
    ),
    (
        dynamic("priority_levels: 2"),
        "dynamic_batching.default_priority_level",
        "default priority level must be in range [1, 2] for m",
    ),
    (
        dynamic("priority_levels: 2 default_priority_level: 3"),
        "dynamic_batching.default_priority_level",
        "default priority level must be in range [1, 2] for m",
    ),
    (
        dynamic("priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } }"),
        "dynamic_batching.priority_queue_policy['3']",
        "priority queue policy must have priority level in range [1, 2] for m",
    ),
    (
        dynamic("priority_levels: 2 default_priority_level: 1 preserve_ordering: true"),
        "dynamic_batching.priority_levels",
        "Only one priority level is allowed when 'preserve_ordering' is true for m",
    ),
    (
        dynamic(
            "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 }"
        ),
        "dynamic_batching.default_queue_policy.timeout_action",
        ORDER,
    ),
    (
        dynamic(
            "preserve_ordering: true priority_levels: 1 default_priority_level: 1 priority_queue_policy "
            "{ key: 1 value { timeout_action: DELAY default_timeout_microseconds: 1 } }"
        ),
        "dynamic_batching.priority_queue_policy['1'].timeout_action",
        ORDER,
    ),
    (
        MODEL + "response_cache { enable: true } sequence_batching { }",
        "response_cache.enable",
        "Response Cache does not currently support model m with sequence batching scheduler. "
        "Please disable the response cache.",
    ),
    (
        MODEL + "response_cache { enable: true } model_transaction_policy { decoupled: true }",
        "response_cache.enable",
        "Response Cache does not currently support model m with 'decoupled' transaction policy. "
        "Please disable the response cache.",
    ),
    (
        MODEL + "sequence_batching { control_input { } }",
        "sequence_batching.control_input[0]",
        "sequence batching control tensor must have a name for m",
    ),
    (
        MODEL + 'sequence_batching { control_input [ { name: "C" }, { name: "C" } ] }',
        "sequence_batching.control_input[1].name",
        "sequence batching control tensor 'C' is specified for multiple control kinds for m",
    ),
    (
        MODEL
        + 'sequence_batching { control_input [ { name: "C" control { bool_false_true: [ false, true ] } }, '
        + '{ name: "D" control { bool_false_true: [ false, true ] } } ] }',
        "sequence_batching.control_input[1].control[0].kind",
        "sequence batching specifies multiple CONTROL_SEQUENCE_START tensors for m",
    ),
    (
        control(""),
        "sequence_batching.control_input[0].control[0]",
        f"sequence batching must specify either {EITHER} {START}",
    ),
    (
        control("int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ]"),
        "sequence_batching.control_input[0].control[0].fp32_false_true",
        "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and "
        f"'bool_false_true' {START}",
    ),
    (
        control("fp32_false_true: [ 0 ]"),
        "sequence_batching.control_input[0].control[0].fp32_false_true",
        f"sequence batching control 'fp32_false_true' must have exactly 2 entries {START}",
    ),
    (
        control("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 int32_false_true: [ 0, 1 ]"),
        "sequence_batching.control_input[0].control[0].int32_false_true",
        f"sequence batching must not specify either {EITHER} for CONTROL_SEQUENCE_CORRID for m",
    ),
    (
        control("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32"),
        "sequence_batching.control_input[0].control[0].data_type",
        "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. Allowed data types are TYPE_UINT64, "
        "TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
    ),
    (
        MODEL + "sequence_batching { oldest { preferred_batch_size: -1 } }",
        "sequence_batching.oldest.preferred_batch_size[0]",
        "sequence batching preferred batch size must be positive for m",
    ),
    (
        MODEL + "sequence_batching { oldest { preferred_batch_size: 5 } }",
        "sequence_batching.oldest.preferred_batch_size[0]",
        "sequence batching preferred batch size must be <= max batch size for m",
    ),
    (
        MODEL + "sequence_batching { direct { minimum_slot_utilization: 1.5 } }",
        "sequence_batching.direct.minimum_slot_utilization",
        "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
    ),
    (
        MODEL + 'sequence_batching { state [ { input_name: "S" }, { input_name: "S" } ] }',
        "sequence_batching.state[1].input_name",
        "State input name 'S' specified more than once.",
    ),
    (
        state(
            'initial_state { name: "a" data_type: TYPE_FP32 dims: [ 2, 1 ] } '
            'initial_state { name: "b" data_type: TYPE_FP32 dims: [ 2, 1 ] }'
        ),
        "sequence_batching.state[0].initial_state",
        "initial_state field for state input 'S' must contain exactly one or zero element. Found '2' elements.",
    ),
    (
        state("initial_state { data_type: TYPE_FP32 dims: [ 2, 1 ] }"),
        "sequence_batching.state[0].initial_state[0]",
        "Field 'name' must be set when using initial_state for state input 'S'.",
    ),
    (
        state('initial_state { name: "a" data_type: TYPE_INT32 dims: [ 2, 1 ] }'),
        "sequence_batching.state[0].initial_state[0].data_type",
        "The data type used for 'initial_state' field of state 'S' does not match the state data type.",
    ),
    (
        state('initial_state { name: "a" data_type: TYPE_FP32 dims: [ 2 ] }'),
        "sequence_batching.state[0].initial_state[0].dims",
        "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input 'S'. "
        "1 != 2",
    ),
    (
        state('initial_state { name: "a" data_type: TYPE_FP32 dims: [ 2, -1 ] }'),
        "sequence_batching.state[0].initial_state[0].dims",
        "'initial_state' field for state input name 'S' contains variable dimensions.",
    ),
    (
        state('initial_state { name: "a" data_type: TYPE_FP32 dims: [ 3, 1 ] }'),
        "sequence_batching.state[0].initial_state[0].dims",
        "'initial_state' dim for input name 'S' doesn't match 'state' dim description. 3 != 2",
    ),
    (
        MODEL + 'instance_group { name: "g" kind: KIND_CPU gpus: 0 }',
        "instance_group[0].gpus",
        "instance group g of model m has kind KIND_CPU but specifies one or more GPUs",
    ),
    (
        MODEL + "instance_group { } instance_group { kind: KIND_MODEL gpus: 0 }",
        "instance_group[1].gpus",
        "instance group m_1 of model m has kind KIND_MODEL but specifies one or more GPUs",
    ),
    (
        MODEL + 'instance_group { name: "g" profile: "0" }',
        "instance_group[0].profile",
        "instance group g of model m and platform python specifies profile field which is only supported for "
        "TensorRT models",
    ),
    (
        MODEL + "model_metrics { metric_control { histogram_options { buckets: 1 } } }",
        "model_metrics.metric_control[0]",
        "metric control must specify 'metric_identifier'",
    ),
    (
        MODEL + "model_metrics { metric_control { metric_identifier { } histogram_options { buckets: 1 } } }",
        "model_metrics.metric_control[0].metric_identifier",
        "metric identifier must specify non-empty 'family'",
    ),
    (
        MODEL + 'model_metrics { metric_control { metric_identifier { family: "f" } } }',
        "model_metrics.metric_control[0]",
        "metric control must specify 'histogram_options'",
    ),
    (
        MODEL
        + 'model_metrics { metric_control { metric_identifier { family: "f" } histogram_options { } } }',
        "model_metrics.metric_control[0].histogram_options",
        "histogram options must specify non-empty 'buckets'",
    ),
    (MODEL + "input { data_type: TYPE_FP32 dims: 1 }", "input[0]", "model input must specify 'name' for m"),
    (
        MODEL + "output { data_type: TYPE_FP32 dims: 1 }",
        "output[0]",
        "model output must specify 'name' for m",
    ),
    (MODEL + 'input { name: "I" dims: 1 }', "input[0]", "model input 'I' must specify 'data_type' for m"),
    (MODEL + 'output { name: "O" dims: 1 }', "output[0]", "model output 'O' must specify 'data_type' for m"),
    (
        MODEL + 'input { name: "I" data_type: TYPE_FP32 }',
        "input[0]",
        "model input 'I' must specify 'dims' for m",
    ),
    (
        MODEL + 'input { name: "I" data_type: TYPE_FP32 dims: [ 1, 0 ] }',
        "input[0].dims",
        f"model input 'I' dimension {DIMENSION}",
    ),
    (
        MODEL + 'output { name: "O" data_type: TYPE_FP32 dims: -2 }',
        "output[0].dims",
        f"model output 'O' dimension {DIMENSION}",
    ),
    (
        reshaped("1", "", UNBATCHED),
        "input[0].reshape",
        "model input 'I' cannot have empty reshape for non-batching model as scalar tensors are not supported for m",
    ),
    (reshaped("4", "0"), "input[0].reshape", f"model input 'I' reshape dimensions {DIMENSION}"),
    (reshaped("4", "2, 3"), "input[0].reshape", SIZE),
    (reshaped("2", ""), "input[0].reshape", SIZE),
    (reshaped("-1", "3"), "input[0].reshape", SIZE),
    (reshaped("2, -1, 3", "3, -1, 2"), "input[0].reshape", SIZE),
    (
        reshaped("-1, -1", "-1"),
        "input[0].reshape",
        "model input 'I' has different number of variable-size dimensions for dims and reshape for m",
    ),
    (
        MODEL + 'input { name: "I" data_type: TYPE_FP32 dims: [ 3, 4 ] format: FORMAT_NCHW }',
        "input[0].format",
        "model input NHWC/NCHW require 3 dims for m",
    ),
    (
        MODEL + 'input { name: "I" data_type: TYPE_INT32 dims: 3 is_shape_tensor: true }',
        "input[0].is_shape_tensor",
        "shape tensors are only supported for TensorRT platform for m",
    ),
    (
        MODEL + 'output { name: "O" data_type: TYPE_FP32 dims: [ 1, 2, 3 ] is_non_linear_format_io: true }',
        "output[0].is_non_linear_format_io",
        "Non-linear IO format is only supported for the TensorRT platform for m",
    ),
    (
        MODEL + TENSORS + "batch_input { data_type: TYPE_INT32 }",
        "batch_input[0].source_input",
        "batch input kind 'BATCH_ELEMENT_COUNT' expects 1 source input, got 0",
    ),
    (
        MODEL + TENSORS + 'batch_input { data_type: TYPE_INT64 source_input: "I" }',
        "batch_input[0].data_type",
        "batch input data type must be TYPE_INT32 or TYPE_FP32",
    ),
    (
        MODEL + TENSORS + 'batch_input { data_type: TYPE_FP32 source_input: "J" }',
        "batch_input[0].source_input[0]",
        "unknown source input name 'J'",
    ),
    (
        MODEL + TENSORS + 'batch_output { target_name: "P" source_input: "I" }',
        "batch_output[0].target_name[0]",
        "unknown target output name 'P'",
    ),
    (
        MODEL + TENSORS + 'batch_output { target_name: [ "O", "O" ] source_input: "I" }',
        "batch_output[0].target_name[1]",
        "target output name 'O' can only be specified once",
    ),
]


@pytest.mark.parametrize(
    ("text", "path", "message"), BROKEN, ids=[f"{i}-{row[1]}" for i, row in enumerate(BROKEN)]
)
def test_a_broken_rule_is_reported_with_its_field(text: str, path: str, message: str) -> None:
    assert [(problem.path, problem.message) for problem in problems_of(text)] == [(path, message)]


VALID = [
    UNBATCHED,
    MODEL + TENSORS,
    'name: "m" platform: "pytorch_libtorch" backend: "pytorch"',
    'name: "m" platform: "mine" backend: "my_backend"',
    'name: "m" platform: "tensorrt_plan" backend: "tensorrt" instance_group { profile: "0" }',
    dynamic("preferred_batch_size: [ 1, 4 ]"),
    dynamic("preserve_ordering: true default_queue_policy { timeout_action: DELAY }"),
    dynamic("priority_levels: 2 default_priority_level: 2 priority_queue_policy { key: 1 value { } }"),
    control("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING"),
    control("kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ]"),
    state('initial_state { name: "a" data_type: TYPE_FP32 dims: [ 2, 7 ] zero_data: true }'),
    MODEL + "sequence_batching { direct { minimum_slot_utilization: 1 } }",
    reshaped("1, 1", ""),
    reshaped("2, 3", "6"),
    reshaped("2, 3, -1, 4", "6, -1, 2, 2"),
    MODEL + "response_cache { enable: false } sequence_batching { }",
    MODEL + TENSORS + 'batch_input { data_type: TYPE_FP32 source_input: "I" target_name: "B" }',
]


@pytest.mark.parametrize("text", VALID)
def test_what_the_rules_allow_is_not_reported(text: str) -> None:
    assert problems_of(text) == []


def test_every_broken_rule_is_reported_at_once_with_its_position() -> None:
    text = 'name: "m"\nbackend: "python"\nmax_batch_size: -3\ninput {\n  name: "I"\n  dims: [ 0 ]\n}\n'
    assert [(problem.line, problem.column, problem.path) for problem in problems_of(text)] == [
        (3, 1, "max_batch_size"),
        (4, 1, "input[0]"),
        (6, 3, "input[0].dims"),
    ]


def test_a_problem_names_its_model_and_file() -> None:
    (problem,) = problems_of('name: "m" backend: "python" max_batch_size: -1')
    assert (problem.model, problem.file, problem.hint) == ("m", "config.pbtxt", "0 is no batching")


def test_tensors_are_left_alone_as_long_as_the_model_may_complete_them() -> None:
    text = MODEL + 'input { name: "I" } batch_input { }'
    assert problems_of(text, check_io=False) == []
    assert len(problems_of(text)) == 4


def test_a_misspelt_tensor_name_comes_with_the_known_one() -> None:
    text = (
        MODEL
        + TENSORS.replace('"I"', '"IMAGE"')
        + 'batch_input { data_type: TYPE_FP32 source_input: "IMAG" }'
    )
    (problem,) = problems_of(text)
    assert problem.hint == "did you mean 'IMAGE'?"


def test_a_configuration_made_in_code_is_checked_without_positions() -> None:
    config = ModelConfig(name="m", backend="python", input=(ModelInput(name="I", dims=(1,)),))
    (problem,) = validate_model_config(config, Positions())
    assert str(problem).startswith("input[0]: model input 'I' must specify 'data_type' for m")


def normalized(text: str) -> ModelConfig:
    parsed = read_model_config(text)
    assert parsed.config is not None, parsed.problems
    return normalize_model_config(parsed.config)


def test_normalizing_sets_version_policy_and_pinned_memory() -> None:
    expected = UNBATCHED + (
        "version_policy { latest { num_versions: 1 } } "
        "optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }"
    )
    assert normalized(UNBATCHED) == read_model_config(expected).config


def test_normalizing_keeps_what_is_said() -> None:
    text = UNBATCHED + (
        "version_policy { all { } } optimization { graph { level: 1 } input_pinned_memory { } "
        "output_pinned_memory { enable: true } }"
    )
    assert normalized(text) == read_model_config(text).config


def test_normalizing_gives_an_ensemble_no_optimization() -> None:
    assert normalized('name: "e" platform: "ensemble" ensemble_scheduling { }').optimization is None


@pytest.mark.parametrize(("batch_size", "preferred"), [(8, (8,)), (0, ())])
def test_normalizing_prefers_full_batches(batch_size: int, preferred: tuple[int, ...]) -> None:
    model = f'name: "m" backend: "b" max_batch_size: {batch_size} '
    dynamic_batching = normalized(model + "dynamic_batching { }").dynamic_batching
    sequence_batching = normalized(model + "sequence_batching { oldest { } }").sequence_batching
    assert dynamic_batching is not None
    assert sequence_batching is not None
    assert sequence_batching.oldest is not None
    assert dynamic_batching.preferred_batch_size == preferred
    assert sequence_batching.oldest.preferred_batch_size == preferred
    assert sequence_batching.max_sequence_idle_microseconds == 1_000_000


def test_normalizing_keeps_preferred_sizes_that_are_given() -> None:
    config = normalized(dynamic("preferred_batch_size: 2"))
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.preferred_batch_size == (2,)


def test_normalizing_leaves_instance_groups_to_the_runtime() -> None:
    config = normalized(MODEL + "instance_group { }")
    assert config.instance_group[0].kind is InstanceKind.KIND_AUTO
