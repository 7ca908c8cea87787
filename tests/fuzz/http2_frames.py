"""Connections of gRPC in frames that no client would send: real calls, with frames added, changed, cut and reordered.

Owns the making of the frames and what a server may answer: frames, whole ones, until it closes. That the server still
serves others is looked at elsewhere.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from struct import Struct
from typing import Final

from hpack import Encoder

from tests.fuzz.mutation import Mutator

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_KINDS: Final = (*range(10), 10, 255)
_END_STREAM, _END_HEADERS = 1, 4
_FRAME: Final = Struct(">HBBBL")
_MESSAGE: Final = Struct(">BL")
_LARGEST_FRAME: Final = 1 << 20
# How long bytes that may not be a whole call are given to be answered.
_PATIENCE_S: Final = 0.02
_LONGEST_S: Final = 30.0


def exchange_frames(port: int, path: str, message: bytes, mutator: Mutator) -> str:
    """Send a spoilt conversation; returns what was wrong with what came back, empty where nothing was."""
    data = _conversation(path, message, mutator)
    received = b""
    with socket.create_connection(("127.0.0.1", port), _LONGEST_S) as connection, suppress(ConnectionError):
        connection.sendall(data)
        if mutator.happens(0.2):
            return ""
        connection.settimeout(_PATIENCE_S)
        with suppress(TimeoutError):
            while len(received) < 1 << 16 and (more := connection.recv(65536)):
                received += more
    problem = _problem_of(received)
    return f"{problem} in {received[:200]!r} to {data[:2000]!r}" if problem else ""


def _conversation(path: str, message: bytes, mutator: Mutator) -> bytes:
    frames = [_frame(_SETTINGS, 0, 0, b"")]
    encoder = Encoder()
    for number in range(mutator.choice((1, 1, 2, 4))):
        frames += _call(path, message, 2 * number + 1, encoder, mutator)
    for _ in range(mutator.choice((0, 1, 1, 2, 5))):
        place = mutator.random.randrange(len(frames) + 1)
        match mutator.random.randrange(6):
            case 0:
                frames.insert(place, _any_frame(mutator))
            case 1 if place < len(frames):
                frames[place] = mutator.data(frames[place])
            case 2 if place < len(frames):
                frames.insert(place, frames[place])
            case 3 if place < len(frames):
                del frames[place]
            case 4:
                frames += [_any_frame(mutator)] * mutator.choice((1, 10, 1000))
            case _:
                mutator.random.shuffle(frames)
    data = _PREFACE + b"".join(frames)
    return mutator.data(data) if mutator.happens(0.2) else data


def _call(path: str, message: bytes, stream: int, encoder: Encoder, mutator: Mutator) -> list[bytes]:
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "h"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    for _ in range(mutator.choice((0, 0, 1, 3))):
        spoilt = (
            ("grpc-timeout", mutator.choice(("1S", "0n", "-1S", "99999999999S", "x", ""))),
            ("grpc-encoding", mutator.choice(("gzip", "identity", "br", ""))),
            ("content-type", "text/plain"),
            (mutator.name().lower()[:50] or "x", mutator.name()),
            (":path", mutator.choice(("", "/", "/x/y", path + "x"))),
            ("x-bin", mutator.choice(("", "AAAA", "!!"))),
            ("x", "y" * mutator.choice((1, 1000, 20000))),
        )
        headers.insert(mutator.random.randrange(len(headers) + 1), mutator.choice(spoilt))
    if mutator.happens(0.1):
        del headers[mutator.random.randrange(len(headers))]
    block = encoder.encode(headers)
    cut = mutator.random.randrange(len(block) + 1) if mutator.happens(0.2) else len(block)
    frames = [_frame(_HEADERS, 0 if cut < len(block) else _END_HEADERS, stream, block[:cut])]
    if cut < len(block):
        frames.append(_frame(_CONTINUATION, _END_HEADERS, stream, block[cut:]))
    size = len(message) if mutator.happens(0.8) else mutator.integer() % 2**32
    body = _MESSAGE.pack(mutator.choice((0, 0, 0, 0, 1, 255)), size) + message
    cut = mutator.random.randrange(len(body) + 1)
    frames.append(_frame(_DATA, 0, stream, body[:cut]))
    frames.append(_frame(_DATA, mutator.choice((_END_STREAM, _END_STREAM, 0)), stream, body[cut:]))
    return frames


def _any_frame(mutator: Mutator) -> bytes:
    payload = mutator.choice(
        (
            b"",
            bytes(4),
            bytes(8),
            b"\xff" * 4,
            (2**31 - 1).to_bytes(4, "big"),
            *(bytes((0, setting)) + (mutator.integer() % 2**32).to_bytes(4, "big") for setting in range(8)),
            mutator.noise(300),
        )
    )
    stream = mutator.choice((0, 0, 1, 1, 3, 2, 2**31 - 1, 2**31))
    return _frame(mutator.choice(_KINDS), mutator.choice((0, 1, 4, 5, 8, 0x20, 0xFF)), stream, payload)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _problem_of(received: bytes) -> str:
    """What is not as a server's frames must be; what was cut off is nobody's fault."""
    position = 0
    while len(received) - position >= _FRAME.size:
        high, low, kind, _, stream = _FRAME.unpack_from(received, position)
        if kind > _CONTINUATION or high << 8 > _LARGEST_FRAME:
            return f"no frame at byte {position}"
        if kind in (_PUSH, _PRIORITY) or (kind in (_DATA, _HEADERS, _RESET) and not stream & 1):
            return f"a frame of kind {kind} on stream {stream}"
        if kind == _GOAWAY and int.from_bytes(received[position + 13 : position + 17], "big") == 2:
            return "the connection ended with INTERNAL_ERROR"
        position += _FRAME.size + (high << 8 | low)
    return ""
