"""A stream's queue: emptied in order by the loop's thread, producers that wait, and ends that are told once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from cantata.runtime.frontends.grpc.call import Call
from cantata.runtime.frontends.grpc.call_loop import CallLoop
from cantata.runtime.frontends.grpc.message_stream import MessageStream


class RecordingCall:
    """A call that takes everything at once, or with `is_sending` nothing more."""

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.is_sending = False

    def send(self, messages: Sequence[bytes]) -> None:
        self.sent += messages

    def caught_up(self) -> None:
        self.sent.append("caught up")

    def finish(self) -> None:
        self.sent.append("finish")

    def fail(self, code: int, details: str) -> None:
        self.sent.append((code, details))


class ManualLoop:
    """The loop as a stream sees it: what is to run on its thread runs when the test says so."""

    def __init__(self) -> None:
        self.is_current = False
        self.posted: list[Callable[[], None]] = []

    def is_current_thread(self) -> bool:
        return self.is_current

    def run_here(self, action: Callable[[], None]) -> None:
        self.posted.append(action)

    def run(self) -> None:
        posted, self.posted = self.posted, []
        for action in posted:
            action()


class Reader:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def on_message(self, message: bytes | memoryview) -> None:
        self.told.append(message)

    def on_half_close(self) -> None:
        self.told.append("half-closed")

    def on_closed(self, was_cancelled: bool) -> None:
        self.told.append(was_cancelled)


class Setting(SimpleNamespace):
    call: RecordingCall
    loop: ManualLoop
    reader: Reader
    stream: MessageStream


@pytest.fixture
def setting() -> Setting:
    call, loop, reader = RecordingCall(), ManualLoop(), Reader()
    stream = MessageStream(cast(CallLoop, loop), cast(Call, call), reader)
    return Setting(call=call, loop=loop, reader=reader, stream=stream)


def test_messages_leave_in_their_order_and_the_loop_is_asked_once(setting: Setting) -> None:
    setting.stream.send(b"1")
    setting.stream.send(b"2")
    assert (setting.call.sent, len(setting.loop.posted)) == ([], 1)
    setting.loop.run()
    setting.stream.send(b"3")
    setting.loop.run()
    assert setting.call.sent == [b"1", b"2", "caught up", b"3", "caught up"]


def test_the_status_follows_what_is_queued_and_nothing_follows_it(setting: Setting) -> None:
    setting.stream.send(b"1")
    setting.stream.finish()
    setting.stream.send(b"too late")
    setting.stream.finish(5, "too late")
    setting.loop.run()
    assert setting.call.sent == [b"1", "caught up", "finish"]


def test_a_stream_that_sent_nothing_ends_with_its_status(setting: Setting) -> None:
    setting.stream.finish(5, "gone")
    setting.loop.run()
    assert setting.call.sent == [(5, "gone")]


def test_what_the_call_cannot_send_stays_queued_until_it_can(setting: Setting) -> None:
    setting.call.is_sending = True
    setting.stream.send(b"1")
    setting.stream.finish()
    setting.loop.run()
    assert setting.call.sent == []
    setting.call.is_sending = False
    setting.stream.on_writable()
    assert setting.call.sent == [b"1", "caught up", "finish"]


def test_what_comes_after_the_end_of_the_call_is_dropped(setting: Setting) -> None:
    setting.stream.send(b"1")
    setting.stream.on_closed(True)
    setting.stream.send(b"2")
    setting.stream.finish()
    setting.loop.run()
    assert (setting.call.sent, setting.reader.told) == ([], [True])


def test_the_reader_is_told_of_messages_and_of_their_end(setting: Setting) -> None:
    setting.stream.on_message(b"a")
    setting.stream.on_half_close()
    assert setting.reader.told == [b"a", "half-closed"]


def waiting_producer(setting: Setting) -> threading.Thread:
    thread = threading.Thread(target=setting.stream.wait_until_ready, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    return thread


@pytest.mark.parametrize("how", ["room", "cancelled", "finished"])
@pytest.mark.parametrize(("count", "size"), [(65, 1), (2, 9 << 20)], ids=["many", "large"])
def test_a_producer_waits_while_the_queue_is_long(setting: Setting, how: str, count: int, size: int) -> None:
    for _ in range(count):
        setting.stream.send(bytes(size))
    producer = waiting_producer(setting)
    match how:
        case "room":
            setting.loop.run()
        case "cancelled":
            setting.stream.on_closed(True)
        case "finished":
            setting.stream.finish()
    producer.join(10)
    assert not producer.is_alive()


def test_the_loops_own_thread_never_waits(setting: Setting) -> None:
    for _ in range(65):
        setting.stream.send(b"x")
    setting.loop.is_current = True
    setting.stream.wait_until_ready()
    assert setting.call.sent == []
