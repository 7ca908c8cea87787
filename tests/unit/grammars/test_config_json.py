"""The JSON form of a configuration: what is printed, and what is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings

from cantata.grammars import messages
from cantata.grammars.messages import message_to_model_config, model_config_to_message
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.reading import model_config_to_json, read_model_config, read_model_config_json
from tests.support.protobuf_messages import messages as random_messages


def config_of(text: str) -> ModelConfig:
    parsed = read_model_config(text)
    assert parsed.config is not None, parsed.problems
    return parsed.config


def config_of_json(value: object) -> ModelConfig:
    parsed = read_model_config_json(json.dumps(value))
    assert parsed.config is not None, parsed.problems
    return parsed.config


def encoded(config: ModelConfig | None) -> bytes:
    """A configuration as bytes, which are equal whatever the order of its maps, and where NaN equals itself."""
    assert config is not None
    return model_config_to_message(config).SerializeToString(deterministic=True)


def test_scalars_lists_and_maps_are_printed_even_if_they_are_not_set() -> None:
    assert model_config_to_json(config_of('name: "m"')) == {
        "name": "m",
        "platform": "",
        "backend": "",
        "runtime": "",
        "max_batch_size": 0,
        "input": [],
        "output": [],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
    }


def test_integers_are_numbers_and_enums_are_names() -> None:
    printed: Any = model_config_to_json(
        config_of(
            'input { name: "I" data_type: TYPE_FP32 dims: [ -1, 9007199254740993 ] reshape { shape: 3 } } '
            "version_policy { specific { versions: 2 } } dynamic_batching { max_queue_delay_microseconds: 5 }"
        )
    )
    assert printed["input"] == [
        {
            "name": "I",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [-1, 9007199254740993],
            "reshape": {"shape": [3]},
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert printed["version_policy"] == {"specific": {"versions": [2]}}
    assert printed["dynamic_batching"]["max_queue_delay_microseconds"] == 5


def test_a_few_integers_stay_strings() -> None:
    printed: Any = model_config_to_json(
        config_of(
            "dynamic_batching { priority_queue_policy { key: 1 value { } } } "
            "instance_group { secondary_devices { device_id: 2 } } "
            'optimization { cuda { graph_spec { batch_size: 1 input { key: "I" value { dim: 3 } } '
            'graph_lower_bound { input { key: "I" value { dim: 4 } } } } } }'
        )
    )
    assert list(printed["dynamic_batching"]["priority_queue_policy"]) == ["1"]
    assert printed["instance_group"][0]["secondary_devices"] == [{"kind": "KIND_NVDLA", "device_id": "2"}]
    (spec,) = printed["optimization"]["cuda"]["graph_spec"]
    assert spec["input"] == {"I": {"dim": ["3"]}}
    assert spec["graph_lower_bound"]["input"] == {"I": {"dim": ["4"]}}


def test_a_float_is_printed_as_short_as_it_can_be() -> None:
    printed: Any = model_config_to_json(
        config_of(
            "sequence_batching { direct { minimum_slot_utilization: 0.1 } control_input { control { "
            "fp32_false_true: [ 1, inf ] } } }"
        )
    )
    assert printed["sequence_batching"]["direct"]["minimum_slot_utilization"] == 0.1
    assert printed["sequence_batching"]["control_input"][0]["control"][0]["fp32_false_true"] == [
        1.0,
        "Infinity",
    ]


@settings(max_examples=100, deadline=None)
@given(random_messages(messages.ModelConfig))
def test_what_is_printed_is_read_back(message: Any) -> None:
    config = message_to_model_config(message)
    text = json.dumps(model_config_to_json(config))
    parsed = read_model_config_json(text)
    assert parsed.problems == ()
    assert parsed.config is not None
    assert encoded(parsed.config) == encoded(config)


@settings(max_examples=100, deadline=None)
@given(random_messages(messages.ModelConfig))
def test_the_json_of_protobuf_is_read_and_ours_is_read_by_protobuf(message: Any) -> None:
    config = message_to_model_config(message)
    for by_name in (True, False):
        theirs = json_format.MessageToJson(message, preserving_proto_field_name=by_name)
        assert encoded(read_model_config_json(theirs).config) == encoded(config)
    ours = json.dumps(model_config_to_json(config))
    reread = json_format.Parse(ours, messages.ModelConfig())
    assert reread.SerializeToString(deterministic=True) == encoded(config)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"name": "m", "maxBatchSize": 3}, 'name: "m" max_batch_size: 3'),
        ({"max_batch_size": "3"}, "max_batch_size: 3"),
        ({"max_batch_size": 3.0}, "max_batch_size: 3"),
        ({"name": None, "input": None}, ""),
        ({"input": [{"data_type": "type_fp32"}]}, "input { data_type: TYPE_FP32 }"),
        ({"input": [{"data_type": 11, "dims": ["-1", 2]}]}, "input { data_type: TYPE_FP32 dims: [ -1, 2 ] }"),
        (
            {"dynamic_batching": {"priority_queue_policy": {"7": {"max_queue_size": 1}}}},
            "dynamic_batching { priority_queue_policy { key: 7 value { max_queue_size: 1 } } }",
        ),
        (
            {"sequence_batching": {"direct": {"minimum_slot_utilization": "0.5"}}},
            "sequence_batching { direct { minimum_slot_utilization: 0.5 } }",
        ),
        ({"version_policy": {"all": {}}}, "version_policy { all { } }"),
    ],
)
def test_json_is_read_as_protobuf_reads_it(value: object, text: str) -> None:
    assert config_of_json(value) == config_of(text)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("[]", "", "expected an object, found a list"),
        ('{"nmae": "m"}', "nmae", "unknown field 'nmae'"),
        ('{"name": 3}', "name", "expected a string, found 3"),
        ('{"max_batch_size": "x"}', "max_batch_size", 'expected an integer, found "x"'),
        ('{"max_batch_size": 1.5}', "max_batch_size", "expected an integer, found 1.5"),
        ('{"max_batch_size": true}', "max_batch_size", "expected an integer, found true"),
        (
            '{"max_batch_size": 2147483648}',
            "max_batch_size",
            "expected a number from -2147483648 to 2147483647 (int32), found 2147483648",
        ),
        ('{"input": {}}', "input", "expected a list, found an object"),
        ('{"input": [{"dims": [1, null]}]}', "input[0].dims[1]", "expected an integer, found null"),
        (
            '{"input": [{"data_type": "FP32"}]}',
            "input[0].data_type",
            'expected a value of DataType, found "FP32"',
        ),
        (
            '{"response_cache": {"enable": "true"}}',
            "response_cache.enable",
            'expected true or false, found "true"',
        ),
        ('{"metric_tags": {"a b": 1}}', "metric_tags['a b']", "expected a string, found 1"),
        ('{"metric_tags": []}', "metric_tags", "expected an object, found a list"),
        (
            '{"version_policy": {"all": {}, "latest": {}}}',
            "version_policy.latest",
            "'latest' and 'all' are members of oneof 'policy_choice'",
        ),
        ('{"name": "a", "name": "b"}', "", "'name' is set twice"),
        ('{"max_batch_size": 1, "maxBatchSize": 2}', "maxBatchSize", "'max_batch_size' is set twice"),
        ('{"max_batch_size": NaN}', "", "NaN is no JSON"),
    ],
)
def test_json_that_is_no_configuration_is_refused(text: str, path: str, message: str) -> None:
    parsed = read_model_config_json(text)
    assert parsed.config is None
    assert [(problem.path, problem.message) for problem in parsed.problems] == [(path, message)]


def test_text_that_is_no_json_is_refused_with_its_position() -> None:
    (problem,) = read_model_config_json('{\n  "name": }').problems
    assert (problem.message, problem.line, problem.column) == ("Expecting value", 2, 11)


def test_json_nested_without_end_is_refused() -> None:
    assert read_model_config_json("[" * 200_000).config is None


def test_every_mistake_in_json_is_reported_at_once() -> None:
    parsed = read_model_config_json('{"nmae": 1, "max_batch_size": "x", "input": [{"dims": 3}]}')
    assert [problem.path for problem in parsed.problems] == ["nmae", "max_batch_size", "input[0].dims"]
