"""Messages over a socket pair: whole, in order, however large, and never waited for by those who must not wait."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from cantata.bls.worker.arena import ArenaReader, ArenaWriter, create_memory
from cantata.bls.worker.channel import Channel, ChannelClosedError, open_pair

CAPACITY = 1 << 20


class Ends:
    def __init__(self) -> None:
        self.memory = create_memory(CAPACITY)
        arena = (ArenaWriter(self.memory, CAPACITY), ArenaReader(self.memory, CAPACITY))
        near, self.far_socket = open_pair()
        self.near = Channel(near, *arena)
        self.far = Channel(self.far_socket, *arena)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.near.close()
    ends.far.close()
    os.close(ends.memory)


def test_a_message_arrives_as_it_was_sent(ends: Ends) -> None:
    message = (3, "text", b"bytes", 1.5, None, True, [("a", (1, 2))], {"key": -(1 << 40)})
    ends.near.send(message)
    assert ends.far.receive() == message


def test_a_large_message_arrives_too(ends: Ends) -> None:
    message = (3, "x" * 500_000)
    for _ in range(4):
        ends.near.send(message)
        assert ends.far.receive() == message


def test_messages_keep_their_order_when_nobody_reads_yet(ends: Ends) -> None:
    for number in range(5000):
        ends.near.send_soon((3, number))
    assert [ends.far.receive()[1] for _ in range(5000)] == list(range(5000))


def test_what_was_sent_before_the_end_is_received(ends: Ends) -> None:
    ends.near.send((3,))
    ends.near.shut_down()
    assert ends.far.receive() == (3,)
    with pytest.raises(ChannelClosedError):
        ends.far.receive()
    with pytest.raises(ChannelClosedError):
        ends.far.send((3,))


def test_the_end_wakes_who_waits(ends: Ends) -> None:
    woken = threading.Event()

    def wait() -> None:
        with pytest.raises(ChannelClosedError):
            ends.near.receive()
        woken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    ends.near.shut_down()
    waiting.join(10)
    assert woken.is_set()


@pytest.mark.parametrize("data", [b"\xff", b"N", b"(\x00\x00\x00\x00", b"i\x01\x00\x00\x00", b"("])
def test_what_is_no_message_ends_the_channel(ends: Ends, data: bytes) -> None:
    far: socket.socket = ends.far_socket
    far.send(data)
    with pytest.raises(ChannelClosedError):
        ends.near.receive()


def test_a_message_is_looked_for_until_it_is_there(ends: Ends) -> None:
    assert not ends.far.looks_for_message(1_000)
    sender = threading.Timer(0.01, ends.near.send, [(3, "text")])
    sender.start()
    assert ends.far.looks_for_message(20 * 10**9)
    sender.join()
    assert ends.far.receive() == (3, "text")


def test_the_end_of_the_channel_is_found_as_a_message_is(ends: Ends) -> None:
    ends.near.shut_down()
    assert ends.far.looks_for_message(20 * 10**9)
    with pytest.raises(ChannelClosedError):
        ends.far.receive()
