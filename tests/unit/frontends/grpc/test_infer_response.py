"""Responses on the wire, read back by protobuf's own parser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars import messages
from cantata.runtime.datatypes import DataType
from cantata.runtime.frontends.grpc.infer_response import (
    encode_empty_final,
    encode_infer_response,
    encode_stream_error,
    encode_stream_failure,
    encode_stream_response,
)
from cantata.runtime.response import InferenceResponse, ParameterValue
from cantata.runtime.tensor import Tensor

ARRAYS = {
    "A": Tensor(DataType.FP32, np.arange(6, dtype=np.float32).reshape(2, 3)),
    "B": Tensor(DataType.BYTES, np.array([b"x", b""], dtype=object)),
    "EMPTY": Tensor(DataType.INT64, np.zeros((0, 4), np.int64)),
    "STRIDED": Tensor(DataType.UINT8, np.arange(6, dtype=np.uint8).reshape(2, 3).T),
    "SCALAR": Tensor(DataType.BF16, np.array(7, np.uint16)),
}


def response(**fields: Any) -> InferenceResponse:
    return InferenceResponse("m", 3, fields.pop("id", "7"), fields.pop("outputs", dict(ARRAYS)), **fields)


def expected(**fields: Any) -> Any:
    made = messages.ModelInferResponse(model_name="m", model_version="3", id="7", **fields)
    for name, tensor in ARRAYS.items():
        made.outputs.add(name=name, datatype=tensor.datatype.name, shape=tensor.shape)
        made.raw_output_contents.append(bytes(tensor.raw_bytes()))
    return made


def marked(made: Any, final: bool) -> Any:
    made.parameters["triton_final_response"].bool_param = final
    return made


def test_outputs_are_in_raw_contents_index_for_index() -> None:
    assert messages.ModelInferResponse.FromString(encode_infer_response(response())) == expected()


def test_an_empty_id_is_left_out() -> None:
    read = messages.ModelInferResponse.FromString(encode_infer_response(response(id="", outputs={})))
    assert read == messages.ModelInferResponse(model_name="m", model_version="3")


@pytest.mark.parametrize("final", [True, False])
def test_a_streams_message_wraps_the_response_and_says_whether_it_is_the_last(final: bool) -> None:
    read = messages.ModelStreamInferResponse.FromString(encode_stream_response(response(), final))
    assert read == messages.ModelStreamInferResponse(infer_response=marked(expected(), final))


def test_an_empty_final_names_the_request() -> None:
    inner = messages.ModelInferResponse(model_name="m", model_version="", id="7")
    read = messages.ModelStreamInferResponse.FromString(encode_empty_final("m", "", "7"))
    assert read == messages.ModelStreamInferResponse(infer_response=marked(inner, True))


def test_an_error_before_the_request_was_queued_has_only_its_id() -> None:
    read = messages.ModelStreamInferResponse.FromString(encode_stream_error("bad é", "7"))
    assert read == messages.ModelStreamInferResponse(
        error_message="bad é", infer_response=messages.ModelInferResponse(id="7")
    )


def test_an_error_without_an_id_still_has_a_response() -> None:
    read = messages.ModelStreamInferResponse.FromString(encode_stream_error("bad", ""))
    assert read.HasField("infer_response")


def test_a_failure_names_the_model() -> None:
    inner = messages.ModelInferResponse(model_name="m", model_version="1", id="7")
    read = messages.ModelStreamInferResponse.FromString(encode_stream_failure("bad", "m", "1", "7", True))
    assert read == messages.ModelStreamInferResponse(error_message="bad", infer_response=marked(inner, True))


values = st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=10)


@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_parameters_keep_their_types(parameters: dict[str, ParameterValue]) -> None:
    read: Any = messages.ModelInferResponse.FromString(encode_infer_response(response(parameters=parameters)))
    got = {
        name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in read.parameters.items()
    }
    assert got == parameters
    assert {name: type(value) for name, value in got.items()} == {
        name: type(value) for name, value in parameters.items()
    }
