"""From messages to requests: parameters, typed contents, and the texts for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cantata.grammars import messages
from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.calls import WaitingSender
from cantata.runtime.frontends.grpc.infer_message import decode_infer_message
from cantata.runtime.frontends.grpc.infer_request import (
    UnknownDatatypeError,
    build_request,
    parse_model_version,
    wants_empty_final,
)
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.shared_memory import SharedMemory
from tests.support.fake_server import model_config

MEMORY = SharedMemory(allows_clients=True)
Change = Callable[[Any], object]


def message(**fields: Any) -> Any:
    return messages.ModelInferRequest(model_name="m", id="7", **fields)


def request_of(made: Any) -> InferenceRequest:
    return build_request(
        decode_infer_message(made.SerializeToString()), -1, WaitingSender(), 1, 0, None, MEMORY
    )


def refusal(made: Any) -> tuple[StatusCode, str]:
    with pytest.raises(InferenceError) as raised:
        request_of(made)
    return raised.value.code, raised.value.message


def with_input(
    datatype: str = "INT32", shape: tuple[int, ...] = (2,), name: str = "IN", **contents: Any
) -> Any:
    made = message()
    tensor = made.inputs.add(name=name, datatype=datatype, shape=shape)
    if contents:
        tensor.contents.MergeFrom(messages.InferTensorContents(**contents))
    return made


@pytest.mark.parametrize(
    ("datatype", "field", "elements", "expected"),
    [
        ("BOOL", "bool_contents", [True, False], [True, False]),
        ("INT8", "int_contents", [-1, 300], [-1, 44]),
        ("INT16", "int_contents", [-1, 70000], [-1, 4464]),
        ("INT32", "int_contents", [-1, 2], [-1, 2]),
        ("INT64", "int64_contents", [-(2**40), 2], [-(2**40), 2]),
        ("UINT8", "uint_contents", [255, 256], [255, 0]),
        ("UINT16", "uint_contents", [1, 65537], [1, 1]),
        ("UINT32", "uint_contents", [1, 2**32 - 1], [1, 2**32 - 1]),
        ("UINT64", "uint64_contents", [1, 2**64 - 1], [1, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -1.0], [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.1, 1e300], [0.1, 1e300]),
        ("BYTES", "bytes_contents", [b"", b"\xff\x00"], [b"", b"\xff\x00"]),
    ],
)
def test_typed_contents_are_read_in_every_datatype(
    datatype: str, field: str, elements: list[Any], expected: list[Any]
) -> None:
    tensor = request_of(with_input(datatype, **{field: elements})).inputs["IN"]
    assert tensor.datatype is DataType[datatype]
    assert tensor.array.tolist() == expected


def test_raw_contents_are_for_the_inputs_in_order_and_extra_ones_are_ignored() -> None:
    made = with_input("UINT8", (1,), "A")
    made.inputs.add(name="B", datatype="UINT8", shape=[2])
    made.raw_input_contents.extend([b"\x01", b"\x02\x03", b"more"])
    assert {name: tensor.array.tolist() for name, tensor in request_of(made).inputs.items()} == {
        "A": [1],
        "B": [2, 3],
    }


def test_a_tensor_without_elements_needs_no_typed_contents() -> None:
    made = with_input("FP32", (0, 3))
    made.inputs[0].contents.SetInParent()
    assert request_of(made).inputs["IN"].shape == (0, 3)


def test_reserved_parameters_set_the_requests_fields_and_others_are_passed_on() -> None:
    made = message()
    made.parameters["sequence_id"].int64_param = -1
    made.parameters["sequence_start"].bool_param = True
    made.parameters["sequence_end"].bool_param = True
    made.parameters["priority"].uint64_param = 3
    made.parameters["timeout"].int64_param = 250
    made.parameters["triton_enable_empty_final_response"].bool_param = True
    made.parameters["binary_data_output"].bool_param = False
    made.parameters["ratio"].double_param = 0.5
    request = request_of(made)
    assert (
        request.correlation_id,
        request.flags,
        request.priority,
        request.timeout_us,
        request.parameters,
    ) == (
        2**64 - 1,
        3,
        3,
        250,
        {"binary_data_output": False, "ratio": 0.5},
    )
    assert wants_empty_final(decode_infer_message(made.SerializeToString()))


def test_a_sequence_may_be_named_by_text() -> None:
    made = message()
    made.parameters["sequence_id"].string_param = "a"
    assert request_of(made).correlation_id == "a"


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (
            "sequence_id",
            lambda p: setattr(p, "bool_param", True),
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
        ),
        (
            "sequence_start",
            lambda p: setattr(p, "int64_param", 1),
            "invalid value type for 'sequence_start' parameter, expected bool_param.",
        ),
        (
            "sequence_end",
            lambda p: setattr(p, "int64_param", 1),
            "invalid value type for 'sequence_end' parameter, expected bool_param.",
        ),
        (
            "priority",
            lambda p: setattr(p, "string_param", "1"),
            "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
        ),
        (
            "priority",
            lambda p: setattr(p, "int64_param", -1),
            "invalid value for 'priority', expected value >= 0.",
        ),
        (
            "timeout",
            lambda p: setattr(p, "uint64_param", 1),
            "invalid value type for 'timeout' parameter, expected int64_param.",
        ),
        (
            "mine",
            lambda p: setattr(p, "uint64_param", 1),
            "invalid value type for 'mine' parameter, expected int64_param, bool_param, or string_param.",
        ),
        (
            "triton_mine",
            lambda p: setattr(p, "int64_param", 1),
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting "
            "with 'triton_' are allowed: triton_enable_empty_final_response",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_parameters_of_the_wrong_type_are_refused(name: str, change: Change, text: str) -> None:
    made = message()
    change(made.parameters[name])
    assert refusal(made) == (StatusCode.INVALID_ARG, text)


def both_kinds_of_contents() -> Any:
    made = with_input(int_contents=[1, 2])
    made.raw_input_contents.append(bytes(8))
    return made


def the_same_input_twice() -> Any:
    made = with_input(int_contents=[1, 2])
    made.inputs.append(made.inputs[0])
    return made


def the_same_output_twice() -> Any:
    return message(outputs=[{"name": "O"}, {"name": "O"}])


def in_shared_memory(**contents: Any) -> Any:
    made = with_input(**contents)
    made.inputs[0].parameters["shared_memory_region"].string_param = "r"
    made.inputs[0].parameters["shared_memory_byte_size"].int64_param = 8
    return made


def without_size() -> Any:
    made = in_shared_memory()
    del made.inputs[0].parameters["shared_memory_byte_size"]
    return made


def truncated_raw() -> Any:
    made = with_input()
    made.raw_input_contents.append(b"\x01")
    return made


def many_dimensions() -> Any:
    made = with_input("UINT8", (1,) * 100)
    made.raw_input_contents.append(b"\x01")
    return made


INPUT = "input tensor 'IN' for model 'm'"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (with_input(), f"unable to find data for {INPUT} in request."),
        (
            both_kinds_of_contents(),
            "contents field must not be specified when using raw_input_contents for 'IN' for model 'm'",
        ),
        (
            with_input(fp32_contents=[1.0, 2.0]),
            f"unexpected explicit tensor data for {INPUT} of type 'FP32', expected datatype 'INT32'",
        ),
        (
            with_input("FP16", fp32_contents=[1.0, 2.0]),
            f"unexpected explicit tensor data for {INPUT} of type 'FP32', expected datatype 'FP16'",
        ),
        (
            with_input(int_contents=[1, 2], int64_contents=[1]),
            f"unexpected explicit tensor data for {INPUT}, binary data was already supplied.",
        ),
        (
            in_shared_memory(int_contents=[1]),
            f"unexpected 'content' provided when using shared memory for {INPUT}",
        ),
        (the_same_input_twice(), "[request id: 7] input 'IN' already exists in request"),
        (the_same_output_twice(), "[request id: 7] output 'O' already exists in request"),
        (
            with_input(int_contents=[1]),
            "[request id: 7] input byte size mismatch for input 'IN' for model 'm'. Expected 8, got 4",
        ),
        (
            truncated_raw(),
            "[request id: 7] input byte size mismatch for input 'IN' for model 'm'. Expected 8, got 1",
        ),
        (
            with_input("BYTES", bytes_contents=[b"a"]),
            "[request id: 7] expected 2 string elements for inference input 'IN' for model 'm', got 1",
        ),
        (
            with_input(shape=(-1,), int_contents=[1]),
            "[request id: 7] All input dimensions should be specified for input 'IN' for model 'm', got [-1]",
        ),
        (
            with_input("FP33", int_contents=[1]),
            f"unexpected explicit tensor data for {INPUT} of type 'INT32', expected datatype '<invalid>'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_an_input_is_told(made: Any, text: str) -> None:
    assert refusal(made) == (StatusCode.INVALID_ARG, text)


def test_an_unknown_datatype_is_told_with_what_the_model_expects() -> None:
    made = with_input("FP33")
    made.raw_input_contents.append(bytes(8))
    with pytest.raises(UnknownDatatypeError) as refused:
        request_of(made)
    config = model_config("m", {"IN": (DataType.INT32, (2,))}, {})
    assert refused.value.for_model(ModelSpec(config, 1)).message == (
        "[request id: 7] inference input 'IN' data-type is '<invalid>', but model 'm' expects 'INT32'"
    )


def test_a_place_in_shared_memory_needs_a_size() -> None:
    assert refusal(without_size()) == (
        StatusCode.INVALID_ARG,
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'IN'",
    )


def test_an_unknown_shared_memory_region_is_not_found() -> None:
    assert refusal(in_shared_memory()) == (
        StatusCode.NOT_FOUND,
        "Unable to find shared memory region: 'r'",
    )


def test_a_shape_that_no_array_can_have_is_refused() -> None:
    code, text = refusal(many_dimensions())
    assert code is StatusCode.INVALID_ARG
    assert text.startswith("[request id: 7] invalid shape for input 'IN': shape [1,1,")


@pytest.mark.parametrize(("text", "version"), [("", -1), ("1", 1), ("0", 0), ("12", 12)])
def test_versions_are_read(text: str, version: int) -> None:
    assert parse_model_version(text) == version


@pytest.mark.parametrize("text", ["x", "-1", str(2**63)])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InferenceError, match="version should be an integral value > 0"):
        parse_model_version(text)


def test_raw_tensors_share_the_memory_of_the_message() -> None:
    made = with_input("UINT8", (100_000,))
    made.raw_input_contents.append(bytes(100_000))
    encoded = made.SerializeToString()
    request = build_request(decode_infer_message(encoded), -1, WaitingSender(), 1, 0, None, MEMORY)
    assert np.shares_memory(request.inputs["IN"].array, np.frombuffer(encoded, np.uint8))
