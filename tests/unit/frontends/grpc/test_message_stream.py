"""A stream's queue: one send at a time, producers that wait, and ends that are told exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cantata.runtime.frontends.grpc import core_calls
from cantata.runtime.frontends.grpc.call_loop import CallLoop
from cantata.runtime.frontends.grpc.core_calls import Call, Event
from cantata.runtime.frontends.grpc.message_stream import MessageStream


class ManualCall:
    """A call whose operations end when the test says so."""

    def __init__(self) -> None:
        self.started: list[tuple[list[str], Callable[[Event], None]]] = []

    def start_server_batch(self, operations: Sequence[object], tag: Callable[[Event], None]) -> int:
        self.started.append(([type(operation).__name__ for operation in operations], tag))
        return 0

    def sends(self) -> list[list[str]]:
        return [names for names, _ in self.started if "Receive" not in names[0]]

    def end(self, index: int, *, success: bool = True, operation: object = None) -> None:
        event = SimpleNamespace(success=success, batch_operations=(operation,))
        self.started[index][1](cast(Event, event))


class ManualLoop:
    """The loop as a stream sees it; the test's thread is its thread if `is_current`."""

    def __init__(self) -> None:
        self.is_current = False
        self.ended = 0

    def is_current_thread(self) -> bool:
        return self.is_current

    def call_ended(self, _event: Event | None = None) -> None:
        self.ended += 1

    def message_of(self, event: Event) -> bytes | None:
        return core_calls.received_message(event)


class Reader:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def on_message(self, message: bytes) -> None:
        self.told.append(message)

    def on_half_close(self) -> None:
        self.told.append("half-closed")

    def on_closed(self, was_cancelled: bool) -> None:
        self.told.append(was_cancelled)


class Setting(SimpleNamespace):
    call: ManualCall
    loop: ManualLoop
    reader: Reader
    stream: MessageStream


START_AND_MESSAGE = ["SendInitialMetadataOperation", "SendMessageOperation"]
MESSAGE = ["SendMessageOperation"]
STATUS = ["SendStatusFromServerOperation"]
CLOSE, READ, FIRST_SEND = 0, 1, 2


@pytest.fixture
def setting() -> Iterator[Setting]:
    call, loop, reader = ManualCall(), ManualLoop(), Reader()
    stream = MessageStream(cast(CallLoop, loop), cast(Call, call), reader, compress=False)
    stream.start()
    yield Setting(call=call, loop=loop, reader=reader, stream=stream)
    assert loop.ended <= 1


def cancelled(setting: Setting, was_cancelled: bool = True) -> None:
    setting.call.end(CLOSE, operation=SimpleNamespace(cancelled=lambda: was_cancelled))


def received(setting: Setting, index: int, message: bytes | None) -> None:
    setting.call.end(index, operation=SimpleNamespace(message=lambda: message))


def test_one_message_is_sent_at_a_time(setting: Setting) -> None:
    setting.stream.send(b"1")
    setting.stream.send(b"2")
    assert setting.call.sends() == [START_AND_MESSAGE]
    setting.call.end(FIRST_SEND)
    assert setting.call.sends() == [START_AND_MESSAGE, MESSAGE]
    setting.call.end(FIRST_SEND + 1)
    assert len(setting.call.sends()) == 2


def test_the_status_follows_what_is_queued_and_ends_the_call(setting: Setting) -> None:
    setting.stream.send(b"1")
    setting.stream.finish()
    setting.stream.send(b"too late")
    setting.call.end(FIRST_SEND)
    assert setting.call.sends() == [START_AND_MESSAGE, STATUS]
    assert setting.loop.ended == 0
    setting.call.end(FIRST_SEND + 1)
    cancelled(setting, False)
    assert (setting.loop.ended, setting.reader.told) == (1, [False])


def test_a_stream_that_sent_nothing_ends_with_its_metadata(setting: Setting) -> None:
    setting.stream.finish(5, "gone")
    setting.stream.finish()
    assert setting.call.sends() == [["SendInitialMetadataOperation", *STATUS]]


def test_a_client_that_goes_away_while_nothing_is_sent_ends_the_call(setting: Setting) -> None:
    cancelled(setting)
    setting.stream.send(b"1")
    setting.stream.finish()
    assert (setting.call.sends(), setting.loop.ended, setting.reader.told) == ([], 1, [True])


@pytest.mark.parametrize("success", [True, False])
def test_a_client_that_goes_away_during_a_send_ends_the_call_with_it(setting: Setting, success: bool) -> None:
    setting.stream.send(b"1")
    setting.stream.send(b"2")
    cancelled(setting)
    assert setting.loop.ended == 0
    setting.call.end(FIRST_SEND, success=success)
    assert (len(setting.call.sends()), setting.loop.ended) == (1, 1)


def test_a_send_that_fails_ends_the_call_once(setting: Setting) -> None:
    setting.stream.send(b"1")
    setting.stream.finish()
    setting.call.end(FIRST_SEND, success=False)
    cancelled(setting)
    assert (len(setting.call.sends()), setting.loop.ended) == (1, 1)


def test_the_next_message_is_asked_for_before_the_last_is_handled(setting: Setting) -> None:
    received(setting, READ, b"a")
    assert setting.call.started[-1][0] == ["ReceiveMessageOperation"]
    received(setting, len(setting.call.started) - 1, None)
    assert setting.reader.told == [b"a", "half-closed"]


def fill(setting: Setting) -> None:
    for _ in range(65):
        setting.stream.send(b"x")


def waiting_producer(setting: Setting) -> threading.Thread:
    thread = threading.Thread(target=setting.stream.wait_until_ready, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    return thread


def release(setting: Setting, how: str) -> Any:
    match how:
        case "room":
            setting.call.end(FIRST_SEND)
        case "cancelled":
            cancelled(setting)
        case "finished":
            setting.stream.finish()


@pytest.mark.parametrize("how", ["room", "cancelled", "finished"])
def test_a_producer_waits_while_the_queue_is_long(setting: Setting, how: str) -> None:
    fill(setting)
    producer = waiting_producer(setting)
    release(setting, how)
    producer.join(10)
    assert not producer.is_alive()


def test_large_messages_fill_the_queue_sooner(setting: Setting) -> None:
    for _ in range(3):
        setting.stream.send(bytes(9 << 20))
    producer = waiting_producer(setting)
    setting.call.end(FIRST_SEND)
    producer.join(10)
    assert not producer.is_alive()


def test_the_loops_own_thread_never_waits(setting: Setting) -> None:
    fill(setting)
    setting.loop.is_current = True
    setting.stream.wait_until_ready()
