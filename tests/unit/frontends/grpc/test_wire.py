"""Varints and fields against protobuf's own encoder."""

from __future__ import annotations

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, UInt64Value
from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.frontends.grpc.wire import MalformedMessageError, field, read_varint, varint


@given(st.integers(1, 2**63 - 1))
def test_varints_are_protobufs(value: int) -> None:
    assert b"\x08" + varint(value) == UInt64Value(value=value).SerializeToString()
    assert read_varint(b"\x00" + varint(value), 1) == (value, len(varint(value)) + 1)


@given(st.binary(min_size=1, max_size=300))
def test_fields_are_protobufs(value: bytes) -> None:
    assert field(1, value) == BytesValue(value=value).SerializeToString()


@pytest.mark.parametrize("encoded", [b"", b"\x80", b"\xff" * 11], ids=["nothing", "unfinished", "endless"])
def test_what_is_no_varint_is_refused(encoded: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        read_varint(encoded, 0)
