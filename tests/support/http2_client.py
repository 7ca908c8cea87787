"""A client that sends the frames it is told to, whether HTTP/2 allows them or not, and reads what comes back."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from struct import pack
from typing import NamedTuple

import hpack

from cantata.runtime.frontends.grpc.http2.frames import (
    ACK,
    CLIENT_PREFACE,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    Setting,
    frame_header,
    settings_frame,
    unpack_frame_header,
)

HEAD = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/inference.GRPCInferenceService/ServerLive",
    ":authority": "localhost",
    "content-type": "application/grpc",
    "te": "trailers",
}


_FRAME_SIZE = 16 << 10


class Frame(NamedTuple):
    """One frame as it came."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Answer(NamedTuple):
    """What one call was answered: its headers and trailers together, and the bytes of its messages."""

    headers: dict[str, str]
    data: bytes
    frame_sizes: list[int]


class Http2Client:
    """One connection. `settings` are what it tells the server of itself."""

    def __init__(self, port: int, settings: Mapping[Setting, int]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = b""
        self.send(CLIENT_PREFACE + settings_frame(dict(settings)))

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def frame(self, kind: int, flags: int, stream_id: int, payload: bytes = b"") -> None:
        """Send one frame."""
        self.send(frame_header(len(payload), kind, flags, stream_id) + payload)

    def block(self, **changes: str) -> bytes:
        """The header block of a call; keywords replace or add headers, `path` for `:path`."""
        headers = dict(HEAD)
        for name, value in changes.items():
            pseudo = name in ("path", "method")
            headers[f":{name}" if pseudo else name.replace("_", "-")] = value
        encoded: bytes = self._encoder.encode(list(headers.items()))
        return encoded

    def call(self, stream_id: int, message: bytes | None = b"", *, flag: int = 0, **changes: str) -> None:
        """Begin a call and, unless `message` is None, send its only message and close the client's side."""
        self.frame(HEADERS, END_HEADERS, stream_id, self.block(**changes))
        if message is not None:
            whole = prefixed(message, flag)
            for start in range(0, len(whole), _FRAME_SIZE):
                self.frame(DATA, 0, stream_id, whole[start : start + _FRAME_SIZE])
            self.frame(DATA, END_STREAM, stream_id)

    def frames(self) -> Iterator[Frame]:
        """What comes, frame by frame, until the server closes."""
        while True:
            while len(self._received) >= 9:
                high, low, kind, flags, stream_id = unpack_frame_header(self._received)
                end = 9 + (high << 8 | low)
                if len(self._received) < end:
                    break
                payload, self._received = self._received[9:end], self._received[end:]
                yield Frame(kind, flags, stream_id, payload)
            try:
                more = self.socket.recv(65536)
            except ConnectionError:
                return
            if not more:
                return
            self._received += more

    def wait_for(self, kind: int, stream_id: int = 0) -> Frame:
        """The next frame of that kind, and no acknowledgement; raises AssertionError when the server closes before."""
        for frame in self.frames():
            if frame.kind == HEADERS:
                self._decoder.decode(frame.payload)
            is_ack = frame.kind == SETTINGS and frame.flags & ACK
            if (frame.kind, frame.stream_id) == (kind, stream_id) and not is_ack:
                return frame
        raise AssertionError(f"the connection closed before a frame of kind {kind} came")

    def answer(self, stream_id: int) -> Answer:
        """All of the answer to a call."""
        headers: dict[str, str] = {}
        data, sizes = b"", []
        for frame in self.frames():
            block = self._decoder.decode(frame.payload) if frame.kind == HEADERS else ()
            if frame.stream_id != stream_id:
                continue
            headers |= {str(name): str(value) for name, value in block}
            if frame.kind == DATA:
                data += frame.payload
                sizes.append(len(frame.payload))
            if frame.kind == RST_STREAM or (frame.kind == HEADERS and frame.flags & END_STREAM):
                return Answer(headers, data, sizes)
        raise AssertionError("the connection closed before the call was answered")

    def goaway(self) -> tuple[int, int, str]:
        """The last stream, the code and the text of the server's GOAWAY, and that the connection closes after it."""
        payload = self.wait_for(GOAWAY).payload
        assert list(self.frames()) == []
        return int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big"), payload[8:].decode()


def prefixed(message: bytes, flag: int = 0) -> bytes:
    """A message as it goes into DATA."""
    return pack(">BL", flag, len(message)) + message


@contextmanager
def http2_client(port: int, settings: Mapping[Setting, int] | None = None) -> Iterator[Http2Client]:
    """A client that is connected to `port`."""
    client = Http2Client(port, settings or {})
    try:
        yield client
    finally:
        client.socket.close()
