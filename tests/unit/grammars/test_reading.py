"""Reading a config.pbtxt: every spelling of every value, where fields stand, and what a configuration refuses to be."""

from __future__ import annotations

import math

import pydantic
import pytest

from cantata.grammars import model_config as mc
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.problems import Path, Position
from cantata.grammars.reading import ParsedConfig, read_model_config


def config_of(text: str) -> ModelConfig:
    parsed = read_model_config(text)
    assert parsed.config is not None, parsed.problems
    return parsed.config


def test_an_empty_text_is_a_configuration_of_defaults() -> None:
    assert config_of("  # nothing\n") == ModelConfig()


def test_a_whole_configuration_is_read() -> None:
    text = """
    # A detector.
    name: "detect"; platform: 'onnxruntime_onnx', max_batch_size: 0x8
    input [
      { name: "IMAGE" data_type: TYPE_UINT8 format: FORMAT_NHWC dims: [ -1, -1, 3 ] },
      < name: "SCALE", data_type: 11; dims: 1 reshape: { shape: [] } optional: true >
    ]
    output { name: "BOXES" data_type: TYPE_FP32 dims: -1 dims: 4 }
    output: [ { name: "SCORES" data_type: TYPE_FP16 dims: [ -1 ] label_filename: "labels" ".txt" } ]
    version_policy: { specific { versions: [ 1, 3 ] } }
    dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 }
    instance_group [ {
      count: 2 kind: KIND_GPU gpus: [ 0 ] rate_limiter { resources { name: "R" global: t count: 1 } }
    } ]
    parameters { key: "A" value: { string_value: "1" } }
    parameters: [ { key: "B" value < string_value: "2" > }, { key: "C" } ]
    metric_tags { value: "v" }
    """
    assert config_of(text) == ModelConfig(
        name="detect",
        platform="onnxruntime_onnx",
        max_batch_size=8,
        input=(
            mc.ModelInput(
                name="IMAGE",
                data_type=mc.DataType.TYPE_UINT8,
                format=mc.InputFormat.FORMAT_NHWC,
                dims=(-1, -1, 3),
            ),
            mc.ModelInput(
                name="SCALE",
                data_type=mc.DataType.TYPE_FP32,
                dims=(1,),
                reshape=mc.ModelTensorReshape(),
                optional=True,
            ),
        ),
        output=(
            mc.ModelOutput(name="BOXES", data_type=mc.DataType.TYPE_FP32, dims=(-1, 4)),
            mc.ModelOutput(
                name="SCORES", data_type=mc.DataType.TYPE_FP16, dims=(-1,), label_filename="labels.txt"
            ),
        ),
        version_policy=mc.ModelVersionPolicy(specific=mc.VersionPolicySpecific(versions=(1, 3))),
        dynamic_batching=mc.ModelDynamicBatching(preferred_batch_size=(4,), max_queue_delay_microseconds=100),
        instance_group=(
            mc.ModelInstanceGroup(
                count=2,
                kind=mc.InstanceKind.KIND_GPU,
                gpus=(0,),
                rate_limiter=mc.ModelRateLimiter(
                    resources=(mc.RateLimiterResource(name="R", global_=True, count=1),)
                ),
            ),
        ),
        parameters={
            "A": mc.ModelParameter(string_value="1"),
            "B": mc.ModelParameter(string_value="2"),
            "C": mc.ModelParameter(),
        },
        metric_tags={"": "v"},
    )


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ('"plain"', "plain"),
        ("'single'", "single"),
        ("'a\"b'", 'a"b'),
        ('"a\'b"', "a'b"),
        ('"one" \'two\' "three"', "onetwothree"),
        ('"one"\n  # between\n  "two"', "onetwo"),
        (r'"\a\b\f\n\r\t\v\\\'\"\?"', "\a\b\f\n\r\t\v\\'\"?"),
        (r'"\0\7\101\1012"', "\0\aAA2"),
        (r'"\x41\x4a\xA"', "AJ\n"),
        (r'"\303\251\xc3\xa9"', "éé"),
        (r'"\303" "\251"', "é"),
        (r'"\u00e9\u20ac\U0001f600"', "é€\U0001f600"),
        ('"é€\U0001f600#{}"', "é€\U0001f600#{}"),
        ('""', ""),
    ],
)
def test_every_spelling_of_a_string(literal: str, value: str) -> None:
    assert config_of(f"name: {literal}").name == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("8", 8),
        ("-8", -8),
        ("+8", 8),
        ("0", 0),
        ("-0", 0),
        ("010", 8),
        ("-010", -8),
        ("0x1F", 31),
        ("-0x1f", -31),
        ("0X10", 16),
        ("0o17", 15),
        ("0b101", 5),
        ("2147483647", 2**31 - 1),
        ("-2147483648", -(2**31)),
    ],
)
def test_every_spelling_of_an_integer(literal: str, value: int) -> None:
    assert config_of(f"max_batch_size: {literal}").max_batch_size == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("1", 1.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1e3", -1000.0),
        ("1E-3", 0.001),
        ("1.5f", 1.5),
        ("3F", 3.0),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("Infinity", math.inf),
        ("-INFf", -math.inf),
        ("1e400", math.inf),
    ],
)
def test_every_spelling_of_a_double(literal: str, value: float) -> None:
    config = config_of(f"model_metrics {{ metric_control {{ histogram_options {{ buckets: {literal} }} }} }}")
    assert config.model_metrics is not None
    options = config.model_metrics.metric_control[0].histogram_options
    assert options is not None
    assert options.buckets == (value,)


@pytest.mark.parametrize("literal", ["nan", "NaN", "-nan", "nanf"])
def test_a_number_may_be_none(literal: str) -> None:
    config = config_of(f"sequence_batching {{ direct {{ minimum_slot_utilization: {literal} }} }}")
    assert config.sequence_batching is not None
    assert config.sequence_batching.direct is not None
    assert math.isnan(config.sequence_batching.direct.minimum_slot_utilization)


@pytest.mark.parametrize(("literal", "value"), [("0.1", 0.10000000149011612), ("1e39", math.inf)])
def test_a_float_is_of_single_precision(literal: str, value: float) -> None:
    config = config_of(f"sequence_batching {{ direct {{ minimum_slot_utilization: {literal} }} }}")
    assert config.sequence_batching is not None
    assert config.sequence_batching.direct is not None
    assert config.sequence_batching.direct.minimum_slot_utilization == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("true", True),
        ("True", True),
        ("t", True),
        ("1", True),
        ("false", False),
        ("False", False),
        ("f", False),
        ("0", False),
    ],
)
def test_every_spelling_of_a_boolean(literal: str, value: bool) -> None:
    config = config_of(f"response_cache {{ enable: {literal} }}")
    assert config.response_cache == mc.ModelResponseCache(enable=value)


@pytest.mark.parametrize("literal", ["TYPE_STRING", "13", "0xD"])
def test_an_enum_is_given_by_name_or_number(literal: str) -> None:
    assert config_of(f"input {{ data_type: {literal} }}").input[0].data_type is mc.DataType.TYPE_STRING


def test_the_last_of_two_entries_with_the_same_key_wins() -> None:
    text = 'parameters { key: "k" value { string_value: "1" } } parameters { key: "k" value { string_value: "2" } }'
    assert config_of(text).parameters == {"k": mc.ModelParameter(string_value="2")}


def test_keys_of_maps_are_of_their_type() -> None:
    config = config_of("dynamic_batching { priority_queue_policy { key: 0x3 value { max_queue_size: 1 } } }")
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.priority_queue_policy == {3: mc.ModelQueuePolicy(max_queue_size=1)}


def test_presence_of_an_empty_message_counts() -> None:
    config = config_of("dynamic_batching { } version_policy { all { } }")
    assert config.dynamic_batching == mc.ModelDynamicBatching()
    assert config.version_policy == mc.ModelVersionPolicy(all=mc.VersionPolicyAll())


def test_presence_of_a_false_member_of_a_oneof_counts() -> None:
    config = config_of("sequence_batching { state { initial_state { zero_data: false } } }")
    assert config.sequence_batching is not None
    assert config.sequence_batching.state[0].initial_state[0].zero_data is False


def test_a_step_that_names_no_version_asks_for_version_0() -> None:
    config = config_of('ensemble_scheduling { step { model_name: "a" } }')
    assert config.ensemble_scheduling is not None
    assert config.ensemble_scheduling.step == (mc.EnsembleStep(model_name="a", model_version=0),)


ENSEMBLE = """\
name: "e"
platform: "ensemble"
input { name: "X" dims: [ 1 ] }
ensemble_scheduling {
  step [
    { model_name: "a" input_map { key: "I" value: "X" } },
    {
      model_name: "b"
      input_map { key: "I" value: "old" }
      input_map { key: "I" value: "Y" }
    }
  ]
}
"""


@pytest.mark.parametrize(
    ("path", "position"),
    [
        ((), (1, 1)),
        (("name",), (1, 1)),
        (("platform",), (2, 1)),
        (("backend",), (1, 1)),
        (("input",), (3, 1)),
        (("input", 0), (3, 1)),
        (("input", 0, "dims"), (3, 19)),
        (("input", 0, "dims", 0), (3, 27)),
        (("input", 7), (3, 1)),
        (("ensemble_scheduling", "step", 0), (6, 5)),
        (("ensemble_scheduling", "step", 1), (7, 5)),
        (("ensemble_scheduling", "step", 1, "model_name"), (8, 7)),
        (("ensemble_scheduling", "step", 1, "model_version"), (7, 5)),
        (("ensemble_scheduling", "step", 1, "input_map", "I"), (10, 7)),
        (("ensemble_scheduling", "step", 1, "input_map", "J"), (9, 7)),
    ],
)
def test_a_position_is_that_of_the_field_or_of_its_nearest_ancestor(
    path: Path, position: tuple[int, int]
) -> None:
    assert read_model_config(ENSEMBLE).positions.at(path) == Position(*position)


def test_a_problem_is_located_by_its_path() -> None:
    positions = read_model_config(ENSEMBLE, "e/config.pbtxt").positions
    problem = positions.problem(("ensemble_scheduling", "step", 1, "input_map", "I"), "bad", "mend it")
    assert str(problem) == "e/config.pbtxt:10:7: ensemble_scheduling.step[1].input_map['I']: bad (mend it)"


def test_reading_is_deterministic_and_shares_nothing() -> None:
    first, second = config_of(ENSEMBLE), config_of(ENSEMBLE)
    assert first == second
    first.parameters["k"] = mc.ModelParameter()
    assert second.parameters == {}


def test_a_long_configuration_is_read() -> None:
    text = "\n".join(f'input {{ name: "I{i}" data_type: TYPE_FP32 dims: [ {i + 1} ] }}' for i in range(2_000))
    assert [tensor.dims for tensor in config_of(text).input] == [(i + 1,) for i in range(2_000)]


def test_deep_nesting_is_a_problem_and_no_crash() -> None:
    parsed: ParsedConfig = read_model_config("a { " * 20_000)
    assert parsed.config is None
    assert next(problem.path for problem in parsed.problems) == "a"


def test_a_configuration_cannot_be_changed_or_made_of_unknown_fields() -> None:
    config = ModelConfig(name="m")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.name = "n"  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="Extra inputs"):
        ModelConfig(nmae="m")  # type: ignore[call-arg]


def test_a_configuration_cannot_hold_two_members_of_a_oneof() -> None:
    with pytest.raises(pydantic.ValidationError, match="scheduling_choice"):
        ModelConfig(dynamic_batching=mc.ModelDynamicBatching(), sequence_batching=mc.ModelSequenceBatching())


def test_a_configuration_cannot_hold_a_number_out_of_range() -> None:
    with pytest.raises(pydantic.ValidationError):
        ModelConfig(max_batch_size=2**31)
