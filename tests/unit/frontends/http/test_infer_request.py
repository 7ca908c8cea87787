"""Bodies of infer requests: JSON, binary, raw; and everything that is wrong with them."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.frontends.http.infer_request import InferBody, decode_infer_request
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START
from cantata.runtime.shared_memory import SharedMemory
from tests.support.fake_server import model_config

SPEC = ModelSpec(
    model_config("m", {"IN": (DataType.INT32, (-1, 2))}, {"OUT": (DataType.INT32, (-1, 2))}), model_version=1
)
LIMIT = 1000
MEMORY = SharedMemory(allows_clients=True)
INPUT = {"name": "IN", "shape": [1, 2], "datatype": "INT32", "data": [1, 2]}
BINARY_INPUT = {"name": "IN", "shape": [1, 2], "datatype": "INT32", "parameters": {"binary_data_size": 8}}
RAW = struct.pack("<ii", 1, 2)


def decode(document: object, binary: bytes = b"", spec: ModelSpec = SPEC) -> InferBody:
    text = json.dumps(document).encode()
    return decode_infer_request(text + binary, b"%d" % len(text) if binary else None, spec, LIMIT, MEMORY)


def refusal_of(
    body: bytes, header_length: bytes | None = None, spec: ModelSpec = SPEC
) -> tuple[StatusCode, str]:
    with pytest.raises(InferenceError) as caught:
        decode_infer_request(body, header_length, spec, LIMIT, MEMORY)
    return caught.value.code, caught.value.message


def request_with(**members: object) -> dict[str, object]:
    return {"inputs": [INPUT], **members}


def input_with(**members: object) -> dict[str, object]:
    return {"inputs": [{**INPUT, **members}]}


def input_without(member: str) -> dict[str, object]:
    return {"inputs": [{key: value for key, value in INPUT.items() if key != member}]}


def test_json_data_becomes_a_tensor() -> None:
    decoded = decode(request_with(id="7"))
    assert decoded.id == "7"
    assert decoded.inputs["IN"].array.tolist() == [[1, 2]]


@pytest.mark.parametrize("shift", range(4))
def test_binary_data_becomes_a_view_of_the_body_where_that_is_aligned(shift: int) -> None:
    text = json.dumps({"inputs": [BINARY_INPUT]}).encode()
    memory = np.frombuffer(bytearray(len(text) + len(RAW) + 8), np.uint8)
    start = -(memory.ctypes.data + len(text)) % 4 + shift
    body = memory.data[start : start + len(text) + len(RAW)]
    body[:] = text + RAW
    array = decode_infer_request(body, b"%d" % len(text), SPEC, LIMIT, MEMORY).inputs["IN"].array
    assert array.tolist() == [[1, 2]]
    assert array.flags.aligned
    assert array.flags.owndata is (shift != 0)


def test_binary_and_json_inputs_may_be_mixed_and_binary_ones_come_in_order() -> None:
    text_input = {"name": "S", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}
    decoded = decode(
        {"inputs": [text_input, {**INPUT, "name": "J"}, BINARY_INPUT]}, b"\x02\x00\x00\x00hi" + RAW
    )
    assert {name: tensor.array.tolist() for name, tensor in decoded.inputs.items()} == {
        "S": [b"hi"],
        "J": [[1, 2]],
        "IN": [[1, 2]],
    }


def test_parameters_with_a_meaning_are_taken_out_of_the_others() -> None:
    decoded = decode(
        request_with(
            parameters={
                "sequence_id": 5,
                "sequence_start": True,
                "sequence_end": True,
                "priority": 2,
                "timeout": 1000,
                "binary_data_output": True,
                "a": 1,
                "b": True,
                "c": "x",
                "d": 1.5,
            }
        )
    )
    assert decoded.correlation_id == 5
    assert decoded.flags == SEQUENCE_START | SEQUENCE_END
    assert (decoded.priority, decoded.timeout_us) == (2, 1000)
    assert decoded.default_form.is_binary
    assert decoded.parameters == {"a": 1, "b": True, "c": "x", "d": 1.5}


def test_a_sequence_may_be_called_by_text() -> None:
    assert decode(request_with(parameters={"sequence_id": "s"})).correlation_id == "s"


def test_outputs_say_their_own_form() -> None:
    outputs = [
        {"name": "A"},
        {"name": "B", "parameters": {"binary_data": True}},
        {"name": "C", "parameters": {"classification": 3, "binary_data": True}},
    ]
    decoded = decode(request_with(outputs=outputs, parameters={"binary_data_output": True}))
    forms = {name: (form.is_binary, form.class_count) for name, form in decoded.output_forms.items()}
    assert forms == {"A": (False, 0), "B": (True, 0), "C": (True, 3)}


def test_an_empty_list_of_outputs_asks_for_all() -> None:
    assert decode(request_with(outputs=[])).output_forms == {}


def test_nan_and_infinity_are_read_though_they_are_not_json() -> None:
    body = b'{"inputs":[{"name":"IN","shape":[2],"datatype":"FP32","data":[NaN,-Infinity]}]}'
    decoded = decode_infer_request(body, None, SPEC, LIMIT, MEMORY)
    assert str(decoded.inputs["IN"].array.tolist()) == "[nan, -inf]"


def no_member(name: str) -> str:
    return f"Unable to parse '{name}': attempt to access non-existing object member '{name}'"


def not_a(kind: str, name: str) -> str:
    return f"Unable to parse '{name}': attempt to access JSON non-{kind} as {kind}"


NO_SOURCE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)
TRITON_KEY = (
    "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
)
BAD_PARAMETER = "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, no_member("inputs")),
        ([], no_member("inputs")),
        (3, no_member("inputs")),
        ({"inputs": {}}, not_a("array", "inputs")),
        ({"inputs": None}, not_a("array", "inputs")),
        ({"inputs": [1]}, "Unable to parse 'inputs': attempt to access JSON non-object as object"),
        (input_without("name"), no_member("name")),
        (input_without("datatype"), no_member("datatype")),
        (input_without("shape"), no_member("shape")),
        (input_without("data"), NO_SOURCE + "no field is set"),
        (input_with(parameters={"binary_data_size": 8}), NO_SOURCE + "set 'data' 'binary_data_size'"),
        (input_with(name=1), not_a("string", "name")),
        (input_with(datatype=5), not_a("string", "datatype")),
        (input_with(datatype="FLOAT"), "invalid datatype for input IN"),
        (input_with(shape="a"), not_a("array", "shape")),
        (input_with(shape=[-1, 2]), not_a("unsigned-integer", "shape")),
        (input_with(shape=[1.0, 2]), not_a("unsigned-integer", "shape")),
        (input_with(shape=[True, 2]), not_a("unsigned-integer", "shape")),
        (
            input_with(shape=[2**40, 2**40]),
            "invalid shape for input 'IN': shape [1099511627776,1099511627776] causes total element count to exceed "
            "maximum size of 9223372036854775807",
        ),
        (
            input_with(shape=[0, 2**40, 2**40], data=[]),
            "invalid shape for input 'IN': shape [0,1099511627776,1099511627776] causes total element count to "
            "exceed maximum size of 9223372036854775807",
        ),
        (input_with(shape=[1] * 65, data=[1]), "invalid shape for input 'IN': more than 64 dimensions"),
        ({"inputs": [INPUT, INPUT]}, "[request id: <id_unknown>] input 'IN' already exists in request"),
        (request_with(id=3), not_a("string", "id")),
        (request_with(id=None), not_a("string", "id")),
        (request_with(outputs=None), not_a("array", "outputs")),
        (request_with(outputs=[{}]), no_member("name")),
        (request_with(outputs=[5]), no_member("name")),
        (
            request_with(id="x", outputs=[{"name": "O"}, {"name": "O"}]),
            "[request id: x] output 'O' already exists in request",
        ),
        (
            request_with(outputs=[{"name": "O", "parameters": {"binary_data": 1}}]),
            not_a("boolean", "binary_data"),
        ),
        (
            request_with(outputs=[{"name": "O", "parameters": {"classification": -1}}]),
            "Unable to set 'classification': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        (
            request_with(
                outputs=[{"name": "O", "parameters": {"classification": 1, "shared_memory_region": "r"}}]
            ),
            "Output can't set both 'shared_memory_region' and 'classification'",
        ),
        (
            request_with(
                outputs=[{"name": "O", "parameters": {"binary_data": True, "shared_memory_region": "r"}}]
            ),
            "Output can't set both 'shared_memory_region' and 'binary_data'",
        ),
        (
            request_with(parameters=[]),
            "Unable to parse 'parameters': attempt to access JSON non-object as object",
        ),
        (request_with(parameters={"a": None}), BAD_PARAMETER),
        (request_with(parameters={"a": [1]}), BAD_PARAMETER),
        (request_with(parameters={"triton_x": 1}), TRITON_KEY),
        (request_with(parameters={"triton_enable_empty_final_response": True}), TRITON_KEY),
        (request_with(parameters={"sequence_id": -1}), not_a("unsigned-integer", "sequence_id")),
        (request_with(parameters={"sequence_start": 1}), not_a("boolean", "sequence_start")),
        (request_with(parameters={"priority": "1"}), not_a("unsigned-integer", "priority")),
        (request_with(parameters={"timeout": -1}), not_a("unsigned-integer", "timeout")),
        (request_with(parameters={"binary_data_output": 1}), not_a("boolean", "binary_data_output")),
    ],
)
def test_wrong_documents_are_refused_with_the_members_name(document: object, message: str) -> None:
    assert refusal_of(json.dumps(document).encode()) == (StatusCode.INVALID_ARG, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "failed to parse the request JSON buffer: "),
        (b'{"inputs":[', " at 11"),
        (b'{"inputs":[}', " at 11"),
        (b'{"inputs":[]}xx', " at 13"),
        (b'{"inputs":[NaN}', " at "),
        (b'{"id":"\xff"}', "UTF-8"),
        (b"[" * 2000, "JSON nesting depth exceeds maximum allowed limit (100)"),
        (b"[" * 900 + b"NaN", " at "),
    ],
)
def test_what_is_not_json_is_refused_with_its_position(text: bytes, message: str) -> None:
    with pytest.raises(InferenceError) as caught:
        decode_infer_request(text, None, SPEC, 10_000, MEMORY)
    assert caught.value.code is StatusCode.INVALID_ARG
    assert message in caught.value.message


BINARY_TEXT = json.dumps({"inputs": [BINARY_INPUT]}).encode()


@pytest.mark.parametrize(
    ("body", "header_length", "message"),
    [
        (
            BINARY_TEXT + RAW[:5],
            b"%d" % len(BINARY_TEXT),
            "unexpected size for input 'IN', expecting 3 additional bytes for model 'm'",
        ),
        (
            BINARY_TEXT + RAW + b"x",
            b"%d" % len(BINARY_TEXT),
            "unexpected additional input data for model 'm'",
        ),
        (
            BINARY_TEXT,
            b"10000",
            f"inference header size should be in range (0, {len(BINARY_TEXT)}), got: 10000",
        ),
        (BINARY_TEXT, b"-1", f"inference header size should be in range (0, {len(BINARY_TEXT)}), got: -1"),
        (BINARY_TEXT, b"abc", "Unable to parse Inference-Header-Content-Length, got: abc"),
        (BINARY_TEXT, b"1_0", "Unable to parse Inference-Header-Content-Length, got: 1_0"),
    ],
)
def test_sizes_that_lie_are_refused(body: bytes, header_length: bytes, message: str) -> None:
    assert refusal_of(body, header_length) == (StatusCode.INVALID_ARG, message)


def test_a_binary_tensor_of_another_size_than_its_shape_is_refused() -> None:
    document = {"inputs": [{**BINARY_INPUT, "parameters": {"binary_data_size": 4}}]}
    text = json.dumps(document).encode()
    assert refusal_of(text + RAW[:4], b"%d" % len(text)) == (
        StatusCode.INVALID_ARG,
        "[request id: <id_unknown>] input byte size mismatch for input 'IN' for model 'm'. Expected 8, got 4",
    )


def test_strings_that_lie_about_their_length_are_refused() -> None:
    entry = {"name": "S", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}
    text = json.dumps({"inputs": [entry]}).encode()
    code, message = refusal_of(text + b"\xff\xff\xff\x7fhi", b"%d" % len(text))
    assert code is StatusCode.INVALID_ARG
    assert "for input 'S' for model 'm'" in message or "input 'S'" in message


def test_no_shared_memory_region_can_be_found() -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    entry = {"name": "IN", "shape": [1, 2], "datatype": "INT32", "parameters": region}
    expected = (StatusCode.NOT_FOUND, "Unable to find shared memory region: 'r'")
    assert refusal_of(json.dumps({"inputs": [entry]}).encode()) == expected
    outputs = [{"name": "OUT", "parameters": region}]
    assert refusal_of(json.dumps(request_with(outputs=outputs)).encode()) == expected


def test_json_over_the_limit_is_refused_but_binary_tensors_behind_it_are_not_counted() -> None:
    assert refusal_of(b" " * (LIMIT + 1)) == (
        StatusCode.INVALID_ARG,
        "request JSON size of 1001 bytes exceeds the maximum allowed input size of 1000 bytes. "
        "Use --http-max-input-size to increase the limit.",
    )
    entry = {"name": "IN", "shape": [1000], "datatype": "INT8", "parameters": {"binary_data_size": 1000}}
    assert decode({"inputs": [entry]}, bytes(1000)).inputs["IN"].shape == (1000,)


def raw_spec(datatype: DataType, dims: tuple[int, ...], max_batch_size: int = 0) -> ModelSpec:
    config = model_config(
        "m", {"IN": (datatype, dims)}, {"OUT": (datatype, dims)}, max_batch_size=max_batch_size
    )
    return ModelSpec(config, 1)


@pytest.mark.parametrize(
    ("spec", "body", "expected"),
    [
        (raw_spec(DataType.INT32, (2,)), RAW, [1, 2]),
        (raw_spec(DataType.INT32, (2,), max_batch_size=8), RAW, [[1, 2]]),
        (raw_spec(DataType.INT32, (2, -1)), RAW, [[1], [2]]),
        (raw_spec(DataType.INT32, (-1,), max_batch_size=8), RAW, [[1, 2]]),
        (raw_spec(DataType.BYTES, (1,)), b"hello", [b"hello"]),
        (raw_spec(DataType.BYTES, (-1,)), b"hello", [b"hello"]),
        (raw_spec(DataType.BYTES, (1,), max_batch_size=8), b"", [[b""]]),
    ],
)
def test_a_raw_body_is_the_one_input(spec: ModelSpec, body: bytes, expected: object) -> None:
    decoded = decode_infer_request(body, b"0", spec, LIMIT, MEMORY)
    assert decoded.inputs["IN"].array.tolist() == expected
    assert decoded.default_form.is_binary


TWO_INPUTS = ModelSpec(
    model_config("m", {"A": (DataType.INT32, (1,)), "B": (DataType.INT32, (1,))}, {}), model_version=1
)


@pytest.mark.parametrize(
    ("spec", "body", "message"),
    [
        (
            TWO_INPUTS,
            RAW,
            "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'm' model configuration",
        ),
        (
            raw_spec(DataType.INT32, (-1, -1)),
            RAW,
            "The shape of the raw input 'IN' can not be deduced because there are more than one variable-sized "
            "dimension",
        ),
        (
            raw_spec(DataType.BYTES, (2,)),
            RAW,
            "For BYTE datatype raw input 'IN', the model must have input shape [1]",
        ),
        (
            raw_spec(DataType.INT32, (2,)),
            RAW[:5],
            "input byte size mismatch for input 'IN' for model 'm'. Expected 8, got 5",
        ),
        (
            raw_spec(DataType.INT32, (-1,)),
            RAW[:5],
            "input byte size mismatch for input 'IN' for model 'm'. Expected 4, got 5",
        ),
        (
            raw_spec(DataType.INT32, (0, -1)),
            RAW,
            "input byte size mismatch for input 'IN' for model 'm'. Expected 0, got 8",
        ),
    ],
)
def test_a_raw_body_whose_shape_cannot_be_deduced_is_refused(
    spec: ModelSpec, body: bytes, message: str
) -> None:
    assert refusal_of(body, b"0", spec) == (StatusCode.INVALID_ARG, "[request id: <id_unknown>] " + message)
