"""What is said of a broken config.pbtxt: one mistake a row, with its path, message, line and column."""

from __future__ import annotations

import pytest

from cantata.grammars.problems import Problem
from cantata.grammars.reading import read_model_config

# (label, text, path, message, line, column)
BROKEN = [
    ("unknown field", 'name: "m"\nplatfrm: "ensemble"\n', "platfrm", "unknown field 'platfrm'", 2, 1),
    (
        "unknown nested field",
        'input [\n  { name: "A" dtype: TYPE_FP32 }\n]\n',
        "input[0].dtype",
        "unknown field 'dtype'",
        2,
        15,
    ),
    ("camel case field", "maxBatchSize: 4\n", "maxBatchSize", "unknown field 'maxBatchSize'", 1, 1),
    (
        "field of another message",
        'output { name: "O" format: FORMAT_NHWC }\n',
        "output[0].format",
        "unknown field 'format'",
        1,
        20,
    ),
    (
        "string without quotes",
        "name: my_model\n",
        "name",
        "expected a string in quotes, found 'my_model'",
        1,
        7,
    ),
    ("number for a string", "name: 12\n", "name", "expected a string in quotes, found '12'", 1, 7),
    (
        "string for a number",
        'max_batch_size: "8"\n',
        "max_batch_size",
        'expected an integer, found the string "8"',
        1,
        17,
    ),
    (
        "fraction for an integer",
        "max_batch_size: 1.5\n",
        "max_batch_size",
        "expected an integer, found '1.5'",
        1,
        17,
    ),
    (
        "integer out of range",
        "max_batch_size: 2147483648\n",
        "max_batch_size",
        "expected a number from -2147483648 to 2147483647 (int32), found 2147483648",
        1,
        17,
    ),
    (
        "negative unsigned",
        "dynamic_batching {\n  max_queue_delay_microseconds: -1\n}\n",
        "dynamic_batching.max_queue_delay_microseconds",
        "expected a number from 0 to 18446744073709551615 (uint64), found -1",
        2,
        33,
    ),
    ("bad octal", "max_batch_size: 08\n", "max_batch_size", "expected an integer, found '08'", 1, 17),
    (
        "bad hexadecimal",
        "max_batch_size: 0xZZ\n",
        "max_batch_size",
        "expected an integer, found '0xZZ'",
        1,
        17,
    ),
    (
        "unknown datatype",
        'input { name: "A" data_type: TYPE_FLOAT32 dims: [ 1 ] }\n',
        "input[0].data_type",
        "expected a value of DataType, found 'TYPE_FLOAT32'",
        1,
        30,
    ),
    (
        "wire name of a datatype",
        'input { name: "A" data_type: FP32 dims: [ 1 ] }\n',
        "input[0].data_type",
        "expected a value of DataType, found 'FP32'",
        1,
        30,
    ),
    (
        "unknown enum number",
        'input { name: "A" data_type: 99 dims: [ 1 ] }\n',
        "input[0].data_type",
        "expected a value of DataType, found '99'",
        1,
        30,
    ),
    (
        "misspelt enum",
        "instance_group { kind: KIND_GPUS }\n",
        "instance_group[0].kind",
        "expected a value of InstanceKind, found 'KIND_GPUS'",
        1,
        24,
    ),
    (
        "quoted enum",
        'instance_group { kind: "KIND_GPU" }\n',
        "instance_group[0].kind",
        'expected a value of InstanceKind, found the string "KIND_GPU"',
        1,
        24,
    ),
    (
        "not a boolean",
        "response_cache { enable: yes }\n",
        "response_cache.enable",
        "expected true or false, found 'yes'",
        1,
        26,
    ),
    (
        "number that is no boolean",
        "response_cache { enable: 2 }\n",
        "response_cache.enable",
        "expected true or false, found '2'",
        1,
        26,
    ),
    (
        "not a float",
        "sequence_batching { direct { minimum_slot_utilization: half } }\n",
        "sequence_batching.direct.minimum_slot_utilization",
        "expected a number, found 'half'",
        1,
        56,
    ),
    (
        "octal float",
        "sequence_batching { direct { minimum_slot_utilization: 01.5 } }\n",
        "sequence_batching.direct.minimum_slot_utilization",
        "expected a number, found '01.5'",
        1,
        56,
    ),
    ("list for a single value", 'name: [ "a", "b" ]\n', "name", "expected one value, found a list", 1, 7),
    ("single value set twice", 'name: "a"\nname: "b"\n', "name", "'name' is set twice", 2, 1),
    (
        "message set twice",
        "response_cache { enable: true }\nresponse_cache { enable: true }\n",
        "response_cache",
        "'response_cache' is set twice",
        2,
        1,
    ),
    (
        "two of a oneof",
        "version_policy { latest { num_versions: 1 } all { } }\n",
        "version_policy.all",
        "'all' and 'latest' are members of oneof 'policy_choice'",
        1,
        45,
    ),
    (
        "two schedulers",
        "dynamic_batching { }\nensemble_scheduling { }\n",
        "ensemble_scheduling",
        "'ensemble_scheduling' and 'dynamic_batching' are members of oneof 'scheduling_choice'",
        2,
        1,
    ),
    ("message for a scalar", "name { }\n", "name", "expected ':', found a message", 1, 6),
    (
        "scalar for a message",
        "response_cache: true\n",
        "response_cache",
        "expected a message in braces, found 'true'",
        1,
        17,
    ),
    (
        "map entry that is a scalar",
        'metric_tags: "a"\n',
        "metric_tags",
        'expected { key: ... value: ... }, found the string "a"',
        1,
        14,
    ),
    (
        "unknown field of a map entry",
        'metric_tags { name: "a" value: "b" }\n',
        "metric_tags[''].name",
        "unknown field 'name'",
        1,
        15,
    ),
    (
        "number as a value of a map",
        'metric_tags { key: "a" value: 1 }\n',
        "metric_tags['a']",
        "expected a string in quotes, found '1'",
        1,
        31,
    ),
    (
        "nested map value",
        'parameters { key: "threads" value: "4" }\n',
        "parameters['threads']",
        'expected a message in braces, found the string "4"',
        1,
        36,
    ),
    ("missing colon before a scalar", 'name "m"\n', "name", "expected ':' or '{', found '\"m\"'", 1, 6),
    (
        "missing colon before a list of scalars",
        "input { dims [ 1 ] }\n",
        "input[0].dims",
        "expected ':', found a list",
        1,
        14,
    ),
    ("equals sign", 'name = "m"\n', "name", "expected ':' or '{', found '='", 1, 6),
    (
        "missing value",
        'name:\nbackend: "python"\n',
        "name",
        "expected a value, found the next field, 'backend'",
        2,
        1,
    ),
    (
        "missing value before a brace",
        "input { name: }\n",
        "input[0].name",
        "expected a value, found '}'",
        1,
        15,
    ),
    ("missing field name", ': "m"\n', "", "expected a field name, found ':'", 1, 1),
    ("string as a field name", '"name": "m"\n', "", "expected a field name, found '\"name\"'", 1, 1),
    ("number as a field name", '1: "m"\n', "", "expected a field name, found '1'", 1, 1),
    ("extension", "[some.extension]: 1\n", "", "expected a field name, found '['", 1, 1),
    (
        "unclosed string",
        'name: "m\nbackend: "python"\n',
        "name",
        "the string is not closed before the end of its line",
        1,
        7,
    ),
    ("unknown escape", 'name: "a\\qb"\n', "name", "\\q is no escape of a string", 1, 9),
    ("half of a surrogate pair", 'name: "\\ud800"\n', "name", "\\ud800 is no Unicode character", 1, 8),
    ("code point out of range", 'name: "\\U00110000"\n', "name", "\\U00110000 is no Unicode character", 1, 8),
    ("octal escape out of range", 'name: "\\777"\n', "name", "\\777 is no escape of a string", 1, 8),
    (
        "bytes that are no UTF-8",
        'name: "\\xff\\xfe"\n',
        "name",
        "expected a string in UTF-8, found bytes that are not",
        1,
        7,
    ),
    (
        "unclosed message",
        'input {\n  name: "A"\n',
        "input[0]",
        "expected a field name or '}', found the end of the text",
        3,
        1,
    ),
    (
        "unclosed list",
        'input [\n  { name: "A" }\n',
        "input[0]",
        "expected ',' or ']', found the end of the text",
        3,
        1,
    ),
    (
        "list closed by a brace",
        "input { dims: [ 1, 2 }\n",
        "input[0].dims[1]",
        "expected ',' or ']', found '}'",
        1,
        22,
    ),
    (
        "message closed by a bracket",
        'input [ { name: "A" ]\n',
        "input[0]",
        "expected a field name or '}', found ']'",
        1,
        21,
    ),
    (
        "brace closed by an angle bracket",
        'input { name: "A" >\n',
        "input[0]",
        "expected a field name or '}', found '>'",
        1,
        19,
    ),
    ("bracket too many", 'name: "m"\n}\n', "", "expected a field name, found '}'", 2, 1),
    (
        "missing comma between numbers",
        "input { dims: [ 1 2 ] }\n",
        "input[0].dims[0]",
        "expected ',' or ']', found '2'",
        1,
        19,
    ),
    (
        "missing comma between messages",
        'input [\n  { name: "A" }\n  { name: "B" }\n]\n',
        "input[0]",
        "expected ',' or ']', found '{'",
        3,
        3,
    ),
    (
        "trailing comma in a list",
        "input { dims: [ 1, 2, ] }\n",
        "input[0].dims[2]",
        "expected a value, found ']'",
        1,
        23,
    ),
    (
        "leading comma in a list",
        "input { dims: [ , 1 ] }\n",
        "input[0].dims[0]",
        "expected a value or ']', found ','",
        1,
        17,
    ),
    (
        "list in a list",
        "input { dims: [ [ 1 ] ] }\n",
        "input[0].dims[0]",
        "expected a value or ']', found '['",
        1,
        17,
    ),
    ("two separators", 'name: "m",, backend: "python"\n', "", "expected a field name, found ','", 1, 11),
    ("stray character", 'name: "m"\n@backend: "python"\n', "", "expected a field name, found '@'", 2, 1),
    ("C comment", '// a model\nname: "m"\n', "", "expected a field name, found '/'", 1, 1),
    ("JSON", '{ "name": "m" }\n', "", "expected a field name, found '{'", 1, 1),
    ("tab before the column", "\tname: 1\n", "name", "expected a string in quotes, found '1'", 1, 8),
    (
        "after a character outside the BMP",
        'name: "😀" backend: 1\n',
        "backend",
        "expected a string in quotes, found '1'",
        1,
        20,
    ),
    (
        "carriage returns",
        'name: "m"\r\nbackend: 1\r\n',
        "backend",
        "expected a string in quotes, found '1'",
        2,
        10,
    ),
]


@pytest.mark.parametrize(
    ("text", "path", "message", "line", "column"),
    [row[1:] for row in BROKEN],
    ids=[row[0] for row in BROKEN],
)
def test_a_broken_text_is_reported_where_it_is_broken(
    text: str, path: str, message: str, line: int, column: int
) -> None:
    parsed = read_model_config(text, "m/config.pbtxt")
    assert parsed.config is None
    assert [(p.path, p.message, p.line, p.column) for p in parsed.problems] == [(path, message, line, column)]
    assert parsed.problems[0].file == "m/config.pbtxt"


# (label, text, hint)
HINTS = [
    ("unknown field", 'platfrm: "ensemble"', "did you mean 'platform'?"),
    ("field of nothing near", "zzz: 1 ", None),
    ("unknown enum value", "instance_group { kind: KIND_GPUS }", "did you mean 'KIND_GPU'?"),
    ("another framework's datatype", "input { data_type: FLOAT }", "did you mean 'TYPE_FP32'?"),
    ("wire name of strings", "input { data_type: BYTES }", "did you mean 'TYPE_STRING'?"),
    ("nothing near", "instance_group { kind: 7 }", "one of KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL"),
    ("missing quotes", "name: resize", 'write "resize"'),
    ("set twice", 'name: "a"\nname: "b"', "first set at 1:1"),
    ("unclosed brace", "input {", "the '{' opened at 1:7 is not closed"),
    ("unclosed string", "name: 'a", "add the closing '"),
]


@pytest.mark.parametrize(("text", "hint"), [row[1:] for row in HINTS], ids=[row[0] for row in HINTS])
def test_a_mistake_comes_with_what_would_mend_it(text: str, hint: str | None) -> None:
    (problem,) = read_model_config(text).problems
    assert (
        problem.hint == hint if hint is not None else problem.hint.startswith("known fields: name, platform,")
    )


def places(text: str) -> list[tuple[int, int, str]]:
    return [(problem.line, problem.column, problem.path) for problem in read_model_config(text).problems]


def test_every_mistake_is_reported_in_the_order_of_the_text() -> None:
    text = """\
nam: "m"
max_batch_size "8"
input [
  { name: A data_type: TYPE_FLOAT dims: [ 1 2, x ] }
  { dtype: 3, optional: maybe }
]
output { name: "O" dims: [ 1, }
platform: = 3
ensemble_scheduling {
  step { model_name: "a" input_map { key: "X" value: 3 } }
  step { model_name: "b" model_version: 1.5
}
"""
    assert places(text) == [
        (1, 1, "nam"),
        (2, 16, "max_batch_size"),
        (2, 16, "max_batch_size"),
        (4, 11, "input[0].name"),
        (4, 24, "input[0].data_type"),
        (4, 45, "input[0].dims[0]"),
        (4, 48, "input[0].dims[2]"),
        (5, 3, "input[0]"),
        (5, 5, "input[1].dtype"),
        (5, 25, "input[1].optional"),
        (7, 31, "output[0].dims[1]"),
        (8, 11, "platform"),
        (10, 54, "ensemble_scheduling.step[0].input_map['X']"),
        (11, 41, "ensemble_scheduling.step[1].model_version"),
        (13, 1, "ensemble_scheduling"),
    ]


def test_parsing_goes_on_at_the_next_field_after_a_mistake() -> None:
    text = 'name @ "m"\nbackend: 1\n'
    assert places(text) == [(1, 6, "name"), (2, 10, "backend")]


def test_a_mistake_in_one_message_leaves_those_around_it_to_be_checked() -> None:
    text = "input [ { name: } , { name: 1 } ]\noutput { data_type: X }\n"
    assert places(text) == [
        (1, 17, "input[0].name"),
        (1, 29, "input[1].name"),
        (2, 21, "output[0].data_type"),
    ]


def test_a_problem_reads_as_a_compiler_says_it() -> None:
    (problem,) = read_model_config('name: "m"\nplatfrm: "x"\n', "models/m/config.pbtxt").problems
    assert problem == Problem(
        "unknown field 'platfrm'", "models/m/config.pbtxt", 2, 1, "platfrm", "did you mean 'platform'?"
    )
    assert str(problem) == (
        "models/m/config.pbtxt:2:1: platfrm: unknown field 'platfrm' (did you mean 'platform'?)"
    )
