"""Messages come out whole and once, however frames divide them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.frontends.grpc.message_assembly import PREFIX, MessageAssembly

MESSAGES = st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=6)


def wanted(_size: int) -> bool:
    return True


def on_the_wire(messages: list[tuple[bool, bytes]]) -> bytes:
    return b"".join(PREFIX.pack(int(flag), len(data)) + data for flag, data in messages)


@given(MESSAGES, st.lists(st.tuples(st.integers(1, 90), st.booleans()), min_size=1, max_size=40))
def test_messages_are_whole_however_they_are_divided(
    messages: list[tuple[bool, bytes]], cuts: list[tuple[int, bool]]
) -> None:
    assembly, wire, found = MessageAssembly(1000, wanted), on_the_wire(messages), []
    position = index = 0
    while position < len(wire):
        size, directly = cuts[index % len(cuts)]
        index += 1
        room = assembly.room()
        if directly and len(room):
            part = wire[position : position + min(size, len(room))]
            room[: len(part)] = part
            message = assembly.filled(len(part))
            found += [] if message is None else [message]
        else:
            part = wire[position : position + size]
            found += list(assembly.feed(part))
        position += len(part)
    assert [(message.is_compressed, bytes(message.data)) for message in found] == messages
    assert assembly.is_empty


def test_a_message_that_is_too_large_is_known_by_its_length() -> None:
    assembly = MessageAssembly(1000, wanted)
    (message,) = assembly.feed(PREFIX.pack(0, 1001))
    assert message.is_too_large


def test_a_message_that_is_not_wanted_gets_no_memory() -> None:
    asked: list[int] = []

    def is_wanted(size: int) -> bool:
        asked.append(size)
        return False

    assembly = MessageAssembly(1000, is_wanted)
    assert list(assembly.feed(PREFIX.pack(0, 900) + b"begin")) == []
    assert (asked, len(assembly.room())) == ([900], 0)


def test_the_end_of_a_message_is_aligned() -> None:
    assembly = MessageAssembly(1 << 20, wanted)
    assert list(assembly.feed(PREFIX.pack(0, 100_001))) == []
    room = assembly.room()
    assert len(room) == 100_001
    start = np.frombuffer(room, np.uint8).ctypes.data
    assert (start + 100_001) % 64 == 0
