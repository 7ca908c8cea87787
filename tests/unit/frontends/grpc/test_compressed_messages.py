"""Compressed messages are unpacked within bounds, and everything else is left as it came."""

from __future__ import annotations

import gzip
import zlib

import pytest

from cantata.grammars import messages
from cantata.runtime.frontends.grpc.compressed_messages import OversizedMessageError, unpacked

MESSAGE = messages.ModelInferRequest(model_name="m", raw_input_contents=[bytes(100)]).SerializeToString()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zlib.compress], ids=["plain", "gzip", "deflate"])
def test_a_message_is_what_was_packed(pack: object) -> None:
    assert callable(pack)
    assert unpacked(pack(MESSAGE), len(MESSAGE)) == MESSAGE


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_message_of_more_than_its_limit_is_refused(pack: object) -> None:
    assert callable(pack)
    with pytest.raises(OversizedMessageError, match=f"more than the {len(MESSAGE) - 1} bytes"):
        unpacked(pack(MESSAGE), len(MESSAGE) - 1)


@pytest.mark.parametrize(
    "message",
    [b"", b"\x1f", b"\x78\x01", b"\x78\x9c\x00", gzip.compress(MESSAGE)[:-9], gzip.compress(MESSAGE) + b"x"],
)
def test_what_only_begins_as_if_it_were_packed_is_left_as_it_is(message: bytes) -> None:
    assert unpacked(message, 1000) == message
