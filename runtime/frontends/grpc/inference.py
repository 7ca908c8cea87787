"""What the inference calls share: the server that they ask, the loop that reads them, and whether they are welcome."""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

from cantata.runtime.errors import unavailable
from cantata.runtime.frontends.grpc.call import Call
from cantata.runtime.frontends.grpc.call_loop import CallLoop
from cantata.runtime.frontends.grpc.compression import chosen_encoding, compressed
from cantata.runtime.frontends.grpc.http2.header_blocks import Header
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.request_head import Metadata
from cantata.runtime.frontends.header_forwarding import header_forwarding
from cantata.runtime.request import InferenceRequest
from cantata.runtime.server import Server

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."


# The trailer by which gRPC clients are told when to try again, in milliseconds.
_RETRY_PUSHBACK: Final = b"grpc-retry-pushback-ms"


class StoppableStream(Protocol):
    """An open stream, as whoever stops the server sees it."""

    def stop(self) -> None: ...


class InferenceService:
    """Shared by all ModelInfer and ModelStreamInfer calls."""

    __slots__ = (
        "_compression_level",
        "byte_budget",
        "compresses",
        "forwarding",
        "is_stopping",
        "loop",
        "server",
        "streams",
    )

    def __init__(self, server: Server, loop: CallLoop, options: GrpcOptions) -> None:
        self.server = server
        self.loop = loop
        self.compresses = options.compresses
        self._compression_level = options.zlib_level
        self.forwarding = header_forwarding(options.header_forward_pattern)
        self.byte_budget = server.admission.server
        # Set once, by whoever stops the server; calls in flight go on.
        self.is_stopping = False
        # The open streams; the loop's thread alone touches this.
        self.streams: set[StoppableStream] = set()

    def compress(self, call: Call) -> None:
        """Have the call's answers compressed, if its client can read that."""
        encoding = chosen_encoding(call.head.accepted_encodings)
        if encoding:
            call.compress_with(
                encoding, partial(compressed, encoding=encoding, level=self._compression_level)
            )

    def stop_streams(self) -> None:
        """Have every open stream end when its requests in flight are answered; on the loop's thread."""
        for stream in tuple(self.streams):
            stream.stop()

    def forward_headers(self, request: InferenceRequest, metadata: Metadata) -> None:
        """Make parameters of the call's metadata that is to be forwarded. Raises InferenceError for reserved names."""
        if self.forwarding is not None:
            texts = ((name, value) for name, value in metadata if isinstance(value, str))
            request.parameters = self.forwarding.added_to(request.parameters, texts)

    def check_accepting(self) -> None:
        """Raise InferenceError (UNAVAILABLE) when the server takes no new requests."""
        if self.is_stopping:
            raise unavailable(SHUTTING_DOWN)


def retry_trailers(retry_after_s: int) -> tuple[Header, ...]:
    """What tells clients that try again by themselves to wait so long first; nothing for 0."""
    return ((_RETRY_PUSHBACK, b"%d" % (retry_after_s * 1000)),) if retry_after_s else ()
