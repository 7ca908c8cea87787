"""What the front-end takes from grpc's private parts is there and behaves as it relies on.

When this fails after an upgrade of grpcio, `core_calls.py` is what must be looked at before anything else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib.metadata import version

import grpc
import pytest
from grpc._cython import cygrpc

from cantata.runtime.frontends.grpc import core_calls
from cantata.runtime.frontends.grpc.core_calls import REQUIRED_NAMES, CompletionQueue, Event, Server

IGNORED = "ignored"


@pytest.mark.parametrize(("owner", "names"), REQUIRED_NAMES.items(), ids=REQUIRED_NAMES)
def test_every_private_name_exists(owner: str, names: tuple[str, ...]) -> None:
    found = getattr(cygrpc, owner, None)
    assert found is not None, f"grpcio {version('grpcio')} has no cygrpc.{owner}"
    missing = [name for name in names if not hasattr(found, name)]
    assert missing == [], f"grpcio {version('grpcio')} has no {missing} in cygrpc.{owner}"


@pytest.fixture
def queue() -> CompletionQueue:
    return core_calls.create_completion_queue()


@pytest.fixture
def listening(queue: CompletionQueue) -> Iterator[tuple[Server, int]]:
    server = core_calls.create_server([("grpc.so_reuseport", 0)], queue)
    port = server.add_http2_port(b"127.0.0.1:0")
    server.start()
    yield server, port
    ended: list[Event] = []
    server.shutdown(queue, ended.append)
    while not ended:
        event = queue.poll()
        if event.tag is not IGNORED:
            event.tag(event)
    queue.shutdown()
    while queue.poll().completion_type != core_calls.QUEUE_SHUTDOWN:
        pass
    server.destroy()


def call_in_background(port: int, *, timeout: float) -> tuple[threading.Thread, list[object]]:
    """A unary call from another thread; what it got is in the list when the thread has ended."""
    got: list[object] = []

    def run() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                got.append(channel.unary_unary("/a/b")(b"ping", timeout=timeout, metadata=(("k", "v"),)))
            except grpc.RpcError as error:
                got.append((error.code(), error.details()))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def test_a_poll_with_a_deadline_in_the_past_returns_at_once(queue: CompletionQueue) -> None:
    assert queue.poll(0).completion_type == core_calls.QUEUE_TIMEOUT
    queue.shutdown()
    assert queue.poll().completion_type == core_calls.QUEUE_SHUTDOWN


def test_a_call_is_read_and_answered_with_one_batch_each(
    queue: CompletionQueue, listening: tuple[Server, int]
) -> None:
    server, port = listening
    server.request_call(queue, queue, IGNORED)
    thread, got = call_in_background(port, timeout=10)
    new = queue.poll()
    assert (new.success, new.call_details.method) == (True, b"/a/b")
    assert ("k", "v") in [tuple(pair) for pair in new.invocation_metadata]
    assert core_calls.deadline_ns_of(new.call_details) > 0
    events: list[Event] = []
    core_calls.receive_message(new.call, events.append)
    read = queue.poll()
    assert core_calls.received_message(read) == b"ping"
    core_calls.reply(new.call, b"pong", events.append, closes=True, compress=False)
    assert queue.poll().success
    thread.join(10)
    assert got == [b"pong"]


def test_the_end_of_a_call_is_reported_with_whether_it_was_cancelled(
    queue: CompletionQueue, listening: tuple[Server, int]
) -> None:
    server, port = listening
    server.request_call(queue, queue, IGNORED)
    thread, got = call_in_background(port, timeout=0.2)
    new = queue.poll()
    core_calls.watch_close(new.call, lambda _: None)
    closed = queue.poll()
    assert core_calls.was_cancelled(closed)
    core_calls.reply_status(new.call, 13, "too late", lambda _: None, starts=True, closes=False)
    queue.poll()
    thread.join(10)
    assert got[0][0] is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[index]


def test_a_status_carries_its_code_and_text(queue: CompletionQueue, listening: tuple[Server, int]) -> None:
    server, port = listening
    server.request_call(queue, queue, IGNORED)
    thread, got = call_in_background(port, timeout=10)
    new = queue.poll()
    core_calls.reply_status(new.call, 5, "wo ist é?", lambda _: None, starts=True, closes=True)
    assert queue.poll().success
    thread.join(10)
    assert got == [(grpc.StatusCode.NOT_FOUND, "wo ist é?")]


def test_an_outstanding_request_for_a_call_fails_when_the_server_stops(queue: CompletionQueue) -> None:
    server = core_calls.create_server([], queue)
    server.add_http2_port(b"127.0.0.1:0")
    server.start()
    server.request_call(queue, queue, "wanted")
    server.shutdown(queue, "stopped")
    assert {(event.tag, event.success) for event in (queue.poll(), queue.poll())} == {
        ("wanted", False),
        ("stopped", True),
    }
    server.destroy()


def test_the_codes_are_grpcs() -> None:
    names = ("OK", "CANCELLED", "INTERNAL", "UNIMPLEMENTED", "UNAVAILABLE", "NOT_FOUND")
    assert {name: getattr(core_calls, name) for name in names} == {
        name: grpc.StatusCode[name].value[0] for name in names
    }
