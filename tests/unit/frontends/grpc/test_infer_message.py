"""Taking a ModelInferRequest apart, against protobuf's own parser."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars import messages
from cantata.runtime.frontends.grpc.infer_message import decode_infer_message
from cantata.runtime.frontends.grpc.wire import MalformedMessageError

texts = st.text(max_size=8)
shapes = st.lists(st.integers(-1, 2**40), max_size=4)
parameters = st.dictionaries(texts, st.integers(-(2**63), 2**63 - 1), max_size=3)


@st.composite
def requests(draw: st.DrawFn) -> messages.ModelInferRequest:
    request = messages.ModelInferRequest(
        model_name=draw(texts),
        model_version=draw(texts),
        id=draw(texts),
        raw_input_contents=draw(st.lists(st.binary(max_size=20) | st.just(b"x" * 20_000), max_size=3)),
    )
    for name, value in draw(parameters).items():
        request.parameters[name].int64_param = value
    for _ in range(draw(st.integers(0, 3))):
        tensor = request.inputs.add(
            name=draw(texts), datatype=draw(st.sampled_from(["FP32", "no"])), shape=draw(shapes)
        )
        for name, value in draw(parameters).items():
            tensor.parameters[name].int64_param = value
        tensor.contents.int_contents.extend(draw(st.lists(st.integers(-5, 5), max_size=2)))
    for _ in range(draw(st.integers(0, 2))):
        request.outputs.add(name=draw(texts))
    return request


def assert_same(encoded: bytes, request: messages.ModelInferRequest) -> None:
    decoded = decode_infer_message(encoded)
    assert (decoded.model_name, decoded.model_version, decoded.id) == (
        request.model_name,
        request.model_version,
        request.id,
    )
    assert dict((decoded.parameters or {}).items()) == dict(request.parameters.items())
    assert [bytes(raw) for raw in decoded.raw_contents] == list(request.raw_input_contents)
    assert [(tensor.name, tensor.datatype_name, list(tensor.shape)) for tensor in decoded.inputs] == [
        (tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs
    ]
    assert [tensor.contents for tensor in decoded.inputs] == [
        tensor.contents if tensor.HasField("contents") else None for tensor in request.inputs
    ]
    assert [output.name for output in decoded.outputs] == [output.name for output in request.outputs]


@given(requests())
def test_every_field_is_what_protobuf_reads(request: messages.ModelInferRequest) -> None:
    assert_same(request.SerializeToString(), request)


@given(requests(), requests())
def test_fields_may_come_twice_and_in_any_order(
    first: messages.ModelInferRequest, second: messages.ModelInferRequest
) -> None:
    encoded = first.SerializeToString() + second.SerializeToString()
    assert_same(encoded, messages.ModelInferRequest.FromString(encoded))


@given(requests())
def test_fields_of_later_versions_of_the_protocol_are_passed_over(
    request: messages.ModelInferRequest,
) -> None:
    later = b"\x78\x05" + b"\xa2\x06\x03abc"
    assert_same(later + request.SerializeToString() + later, request)


@given(requests(), st.data())
def test_a_truncated_message_is_refused_exactly_when_protobuf_refuses_it(
    request: messages.ModelInferRequest, data: st.DataObject
) -> None:
    encoded = request.SerializeToString()
    encoded = encoded[: data.draw(st.integers(0, len(encoded)))]
    try:
        expected = messages.ModelInferRequest.FromString(encoded)
    except DecodeError:
        with pytest.raises(MalformedMessageError):
            decode_infer_message(encoded)
    else:
        assert_same(encoded, expected)


@given(st.binary(max_size=60))
def test_no_bytes_do_harm(encoded: bytes) -> None:
    try:
        expected = messages.ModelInferRequest.FromString(encoded)
    except DecodeError:
        with pytest.raises(MalformedMessageError):
            decode_infer_message(encoded)
    else:
        assert_same(encoded, expected)


def test_large_contents_are_views_and_small_ones_are_not() -> None:
    request = messages.ModelInferRequest(raw_input_contents=[b"x" * 100_000, b"y"])
    decoded = decode_infer_message(request.SerializeToString())
    assert [type(raw) for raw in decoded.raw_contents] == [memoryview, bytes]
