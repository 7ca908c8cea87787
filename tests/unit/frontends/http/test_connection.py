"""Bytes to requests and back, without a socket: the transport only keeps what it is given."""

from __future__ import annotations

import asyncio
from typing import cast

import numpy as np
import pytest

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.frontends.http.client_limits import LEAST_PROGRESS, ClientLimits
from cantata.runtime.frontends.http.connection import (
    MAX_CHUNKS,
    MAX_PIPELINED,
    MIN_PREALLOCATED,
    Connection,
    Connections,
    Exchange,
)


class RecordingTransport:
    """A transport that keeps what is written, and whether it is read and open."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False
        self.is_cut_off = False
        self.is_reading = True
        self.has_ended = False
        # Bytes that the client has not taken yet.
        self.unsent = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_cut_off = True

    def is_closing(self) -> bool:
        return self.is_closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_ended = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


class KeepingHandler:
    """A handler that keeps the requests for the test to answer."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.taken: list[Exchange] = []

    def body_limit(self, exchange: Exchange) -> int | None:
        return self.limit

    def handle(self, exchange: Exchange) -> None:
        self.taken.append(exchange)


class Client:
    """One end of a connection: what a test sends, and what came back."""

    def __init__(self, limit: int | None = None, connections: Connections | None = None) -> None:
        self.handler = KeepingHandler(limit)
        self.connections = connections or Connections()
        self.transport = RecordingTransport()
        self.connection = Connection(self.handler, self.connections)
        self.connection.connection_made(cast(asyncio.Transport, self.transport))

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    @property
    def taken(self) -> list[Exchange]:
        return self.handler.taken


@pytest.fixture
def client() -> Client:
    return Client()


GET = b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 2\r\n\r\nhi"


def post(body: bytes, headers: bytes = b"") -> bytes:
    return b"POST /p HTTP/1.1\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), headers, body)


def test_a_request_is_whole_when_it_is_handled(client: Client) -> None:
    client.send(post(b"body", b"X-Y: Z\r\n"))
    (exchange,) = client.taken
    assert (exchange.method, exchange.url, exchange.body) == (b"POST", b"/p", b"body")
    assert exchange.header(b"x-y") == b"Z"
    assert exchange.header_text("X-Y") == "Z"
    exchange.respond(200, b"A: b\r\n", b"hi")
    assert client.transport.written == OK
    assert not client.transport.is_closed


def test_a_request_may_come_byte_by_byte(client: Client) -> None:
    message = post(b"body", b"X-Y: Z\r\n")
    client.send(*(message[index : index + 1] for index in range(len(message))))
    assert [exchange.body for exchange in client.taken] == [b"body"]


def test_a_chunked_body_is_joined(client: Client) -> None:
    client.send(b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n")
    assert client.taken[0].body == b"abcde"


@pytest.mark.parametrize("size", [MIN_PREALLOCATED, MIN_PREALLOCATED + 1, 3 * MIN_PREALLOCATED])
def test_a_large_body_is_whole_however_it_comes(client: Client, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    message = post(body[:size])
    client.send(*(message[start : start + 65536] for start in range(0, len(message), 65536)), GET)
    assert client.taken[0].body == body[:size]
    client.taken[0].respond(200, b"", b"")
    assert client.taken[1].body == b""


def test_large_tensors_behind_json_are_aligned(client: Client) -> None:
    size = 2 * MIN_PREALLOCATED
    client.send(post(bytes(size), b"Inference-Header-Content-Length: 101\r\n"))
    body = client.taken[0].body
    assert len(body) == size
    assert np.frombuffer(body, np.uint8)[101:].ctypes.data % 64 == 0


def test_a_length_that_lies_takes_no_memory(client: Client) -> None:
    client.send(b"POST /p HTTP/1.1\r\nContent-Length: 1000000000000000\r\n\r\nx")
    client.connection.connection_lost(None)
    assert client.taken == []


def test_too_many_chunks_are_refused(client: Client) -> None:
    client.send(b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * (MAX_CHUNKS + 1))
    assert client.transport.written.startswith(b"HTTP/1.1 400 ")
    assert client.transport.has_ended
    assert client.taken == []


def test_a_body_over_the_limit_is_counted_but_not_kept() -> None:
    client = Client(limit=4)
    client.send(post(b"12345678")[:-3], b"678", GET)
    assert (client.taken[0].body, client.taken[0].body_size) == (b"", 8)
    assert client.taken[0].has_oversized_body
    client.taken[0].respond(400, b"", b"")
    assert client.taken[1].url == b"/v2"
    assert not client.taken[1].has_oversized_body


def test_requests_sent_ahead_are_answered_in_their_order(client: Client) -> None:
    client.send(post(b"1") + post(b"2") + post(b"3"))
    for number in (b"1", b"2", b"3"):
        exchange = client.taken[-1]
        assert exchange.body == number
        exchange.respond(200, b"", exchange.body)
    bodies = [answer[-1:] for answer in client.transport.written.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"1", b"2", b"3"]


def test_a_client_far_ahead_of_its_answers_is_not_read_until_it_has_them(client: Client) -> None:
    client.send(GET * (MAX_PIPELINED + 2))
    assert not client.transport.is_reading
    for _ in range(3):
        client.taken[-1].respond(200, b"", b"")
    assert client.transport.is_reading


def test_a_client_that_does_not_read_gets_no_further_request_handled(client: Client) -> None:
    client.send(GET + GET)
    client.connection.pause_writing()
    client.taken[0].respond(200, b"", b"")
    assert len(client.taken) == 1
    client.connection.resume_writing()
    assert len(client.taken) == 2


@pytest.mark.parametrize(
    "request_bytes",
    [b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET /v2 HTTP/1.0\r\n\r\n"],
)
def test_the_connection_closes_after_the_answer_when_the_client_says_so(
    client: Client, request_bytes: bytes
) -> None:
    client.send(request_bytes + GET, GET)
    (exchange,) = client.taken
    exchange.respond(200, b"", b"")
    assert client.transport.written == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert client.transport.is_closed
    assert len(client.taken) == 1


def test_head_gets_the_head_alone(client: Client) -> None:
    client.send(b"HEAD /v2 HTTP/1.1\r\n\r\n")
    client.taken[0].respond(200, b"", b"body")
    assert client.transport.written == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


def test_a_client_that_waits_to_send_its_body_is_told_to(client: Client) -> None:
    client.send(b"POST /p HTTP/1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
    assert client.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"x")
    assert client.taken[0].body == b"x"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /p HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * ClientLimits().max_header_size, b"431"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * ClientLimits().max_header_size + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 257 + b"\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2147483648\r\n\r\n", b"413"),
    ],
)
def test_what_is_not_a_request_is_refused_and_the_connection_closed(
    client: Client, data: bytes, status: bytes
) -> None:
    client.send(data)
    assert client.transport.written.startswith(b"HTTP/1.1 " + status)
    assert b'{"error":"' in client.transport.written
    assert client.transport.has_ended
    written = client.transport.written
    client.send(GET)
    assert (client.taken, client.transport.written) == ([], written)


def test_a_connection_cannot_become_something_else(client: Client) -> None:
    client.send(b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert client.transport.written.startswith(b"HTTP/1.1 400 ")
    assert client.transport.is_closed


def test_the_handler_learns_that_the_client_has_gone_and_its_answer_goes_nowhere(client: Client) -> None:
    client.send(GET)
    (exchange,) = client.taken
    gone: list[bool] = []
    exchange.on_disconnect = lambda: gone.append(exchange.is_disconnected)
    client.connection.connection_lost(None)
    assert gone == [True]
    exchange.respond(200, b"", b"")
    assert client.transport.written == b""


def test_garbage_behind_a_request_in_flight_cancels_it(client: Client) -> None:
    client.send(GET, b"\x00\x01garbage\r\n\r\n")
    gone: list[bool] = []
    client.taken[0].on_disconnect = lambda: gone.append(True)
    assert client.transport.is_closed
    client.connection.connection_lost(None)
    assert gone == [True]


def test_draining_closes_idle_connections_at_once_and_busy_ones_after_their_answer(client: Client) -> None:
    async def drain() -> None:
        busy = Client()
        busy.connections = client.connections
        busy.connection = Connection(busy.handler, client.connections)
        busy.connection.connection_made(cast(asyncio.Transport, busy.transport))
        busy.send(GET + GET)
        draining = asyncio.ensure_future(client.connections.drain())
        await asyncio.sleep(0)
        assert client.transport.is_closed
        assert not busy.transport.is_closed
        client.connection.connection_lost(None)
        busy.taken[0].respond(200, b"", b"")
        assert b"Connection: close" in busy.transport.written
        assert busy.transport.is_closed
        assert len(busy.taken) == 1
        busy.connection.connection_lost(None)
        await draining

    asyncio.run(drain())


def limited(**limits: int) -> Client:
    return Client(connections=Connections(ClientLimits(**limits)))


def look_at(client: Client, *after_s: float) -> None:
    """Look for slow clients now, and then so many seconds later each."""
    now_ms = monotonic_ns() // 1_000_000
    for seconds in (0, *after_s):
        client.connections.end_overdue(now_ms + int(seconds * 1000))


def test_a_chunked_body_that_goes_on_and_on_is_refused() -> None:
    client = limited(max_request_size=4)
    client.send(b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2\r\nde\r\n")
    assert client.transport.written.startswith(b"HTTP/1.1 413 ")
    assert client.taken == []


def test_a_client_too_many_is_told_so() -> None:
    first = limited(max_connections=1)
    second = Client(connections=first.connections)
    assert second.transport.written.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1\r\n" in second.transport.written
    second.connection.connection_lost(None)
    first.send(GET)
    assert len(first.taken) == 1
    first.connection.connection_lost(None)
    assert Client(connections=first.connections).transport.written == b""


@pytest.mark.parametrize(
    "sent",
    [b"GET /v2 HTTP/1.1\r\nX: ", b"POST /p HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"],
    ids=["headers", "body"],
)
def test_a_request_that_does_not_arrive_in_time_is_refused(sent: bytes) -> None:
    client = limited(header_timeout=5000, body_timeout=5000)
    client.send(sent)
    look_at(client, 4)
    assert client.transport.written == b""
    look_at(client, 4, 5)
    assert client.transport.written.startswith(b"HTTP/1.1 408 ")


def test_who_sends_nothing_at_all_is_left_without_an_answer() -> None:
    client = limited(header_timeout=5000)
    look_at(client, 5.1)
    assert (client.transport.written, client.transport.is_closed) == (b"", True)


def test_a_large_body_may_take_as_long_as_it_needs_while_it_gets_on() -> None:
    client = limited(body_timeout=5000)
    client.send(b"POST /p HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
    now_ms = monotonic_ns() // 1_000_000
    for second in range(0, 40, 4):
        client.send(bytes(LEAST_PROGRESS))
        client.connections.end_overdue(now_ms + second * 1000)
    for second in range(40, 46, 4):
        client.send(b"x")
        client.connections.end_overdue(now_ms + second * 1000)
    assert client.transport.written.startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed_after_its_time_and_not_while_it_is_served() -> None:
    client = limited(keepalive_timeout=5000, header_timeout=5000)
    client.send(GET)
    look_at(client, 100)
    assert not client.transport.is_closed
    client.taken[0].respond(200, b"", b"")
    look_at(client, 4)
    assert not client.transport.is_closed
    look_at(client, 5)
    assert client.transport.is_closed


def test_who_does_not_read_the_answer_is_cut_off() -> None:
    client = limited(write_timeout=5000)
    client.send(GET)
    client.taken[0].write(b"part")
    client.transport.unsent = 100_000
    look_at(client, 4)
    client.transport.unsent -= LEAST_PROGRESS
    look_at(client, 4)
    assert not client.transport.is_cut_off
    look_at(client, 5)
    assert client.transport.is_cut_off


def test_who_does_not_read_the_last_answer_is_cut_off_too() -> None:
    client = limited(write_timeout=5000)
    client.send(b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n")
    client.transport.unsent = 100_000
    client.taken[0].respond(200, b"", bytes(100_000))
    assert client.transport.is_closed
    look_at(client, 4)
    assert not client.transport.is_cut_off
    look_at(client, 5)
    assert client.transport.is_cut_off


def test_a_refused_client_has_some_seconds_to_read_why() -> None:
    client = limited()
    client.send(b"nonsense\r\n\r\n")
    look_at(client, 1)
    assert not client.transport.is_closed
    look_at(client, 2)
    assert client.transport.is_closed


def test_times_of_zero_are_no_limits() -> None:
    client = limited(header_timeout=0, body_timeout=0, write_timeout=0, keepalive_timeout=0)
    look_at(client, 10_000)
    client.send(GET[:10])
    look_at(client, 10_000)
    assert not client.transport.is_closed
