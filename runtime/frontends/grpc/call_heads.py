"""The heads of one connection's calls: header blocks, however they are divided, to what they say.

Owns the connection's HPACK table, and the memory of blocks that mean what they meant before.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cantata.runtime.frontends.grpc.http2.frame_reader import MAX_BLOCK_SIZE
from cantata.runtime.frontends.grpc.http2.frames import (
    END_HEADERS,
    HAS_PRIORITY,
    PADDED,
    ConnectionFailure,
    ErrorCode,
)
from cantata.runtime.frontends.grpc.http2.header_blocks import (
    HeaderBlockError,
    HeaderDecoder,
    HeaderListTooLargeError,
)
from cantata.runtime.frontends.grpc.request_head import RequestHead, request_head

# Heads that are remembered by their blocks' bytes.
_REMEMBERED: Final = 64


class Block(NamedTuple):
    """A whole header block, with the flags of the frame that began it."""

    stream_id: int
    flags: int
    data: bytes


class CallHeads:
    """Blocks in, heads out. Everything may raise ConnectionFailure: a block that is lost takes the table with it."""

    __slots__ = ("_changes", "_decoder", "_heads", "_open", "_parts")

    def __init__(self, max_metadata_size: int) -> None:
        self._decoder = HeaderDecoder(max_metadata_size)
        # Good for as long as the decoder's table stays as it is.
        self._heads: dict[bytes, RequestHead] = {}
        self._changes = 0
        # The stream and flags of a block whose end has not come, and its bytes so far.
        self._open: tuple[int, int] | None = None
        self._parts = bytearray()

    @property
    def has_open_block(self) -> bool:
        """Whether a block has begun and not ended: nothing else may come meanwhile."""
        return self._open is not None

    def begin(self, stream_id: int, flags: int, payload: bytes) -> Block | None:
        """A frame of HEADERS; its block, unless that goes on."""
        start, stop = 0, len(payload)
        if flags & PADDED:
            start, stop = 1, stop - (payload[0] if payload else stop + 1)
        if flags & HAS_PRIORITY:
            start += 5
        if start > stop:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "HEADERS is all padding")
        if flags & END_HEADERS:
            return Block(stream_id, flags, payload[start:stop])
        self._open = (stream_id, flags)
        self._parts = bytearray(payload[start:stop])
        return None

    def go_on(self, stream_id: int, flags: int, payload: bytes) -> Block | None:
        """A frame of CONTINUATION; its block, unless that goes on."""
        if self._open is None or self._open[0] != stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._parts += payload
        # An empty part brings nothing nearer its end; no client has a reason to send one.
        if len(self._parts) > MAX_BLOCK_SIZE or not payload:
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too long")
        if not flags & END_HEADERS:
            return None
        _, first_flags = self._open
        self._open = None
        return Block(stream_id, first_flags, bytes(self._parts))

    def head(self, block: bytes) -> RequestHead:
        """What a call's block says. Raises MalformedHeadError and HeaderListTooLargeError, which end that call only."""
        head = self._heads.get(block)
        if head is not None:
            return head
        decoder = self._decoder
        before = decoder.changes
        try:
            headers = decoder.decode(block)
        except HeaderBlockError as error:
            raise ConnectionFailure(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        finally:
            if decoder.changes != self._changes or len(self._heads) >= _REMEMBERED:
                self._heads.clear()
                self._changes = decoder.changes
        head = request_head(headers)
        if decoder.changes == before:
            self._heads[block] = head
        return head

    def skip(self, block: bytes) -> None:
        """A block that says nothing here, read for the table's sake: trailers."""
        try:
            self._decoder.decode(block)
        except HeaderListTooLargeError:
            pass
        except HeaderBlockError as error:
            raise ConnectionFailure(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        if self._decoder.changes != self._changes:
            self._heads.clear()
            self._changes = self._decoder.changes
