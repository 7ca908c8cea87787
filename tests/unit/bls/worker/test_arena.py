"""Two ends of an arena: what is written is what is read, and memory comes back when nobody looks any more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from cantata.bls.worker.arena import ArenaFullError, ArenaReader, ArenaWriter, create_memory
from cantata.runtime.errors import StatusCode

MIB = 1 << 20
FP32 = np.dtype(np.float32)


class Ends:
    """Both ends of one arena, in one process."""

    def __init__(self, capacity: int) -> None:
        self.memory = create_memory(capacity)
        self.writer = ArenaWriter(self.memory, capacity)
        self.reader = ArenaReader(self.memory, capacity)

    def resident_bytes(self) -> int:
        """How much memory the arena really has."""
        return os.fstat(self.memory).st_blocks * 512


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(512 * MIB)
    yield ends
    os.close(ends.memory)


@pytest.fixture
def small_ends() -> Iterator[Ends]:
    ends = Ends(MIB)
    yield ends
    os.close(ends.memory)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int64).reshape(2, 3, 4),
        np.arange(24, dtype=np.float32).reshape(4, 6).T,
        np.arange(100, dtype=np.uint8)[::-3],
        np.array(True),
    ],
    ids=["plain", "transposed", "strided", "scalar"],
)
def test_an_array_is_read_as_it_was_written(ends: Ends, array: np.ndarray) -> None:
    read = ends.reader.array(ends.writer.store(array), array.dtype, array.shape)
    assert np.array_equal(read, array)
    assert type(read) is np.ndarray


def test_bytes_are_read_once(ends: Ends) -> None:
    slot = ends.writer.store_bytes(b"some text")
    assert ends.reader.bytes_of(slot) == b"some text"
    assert ends.writer.used_bytes() == 0


def test_a_slot_is_in_use_for_as_long_as_a_view_of_it_lives(ends: Ends) -> None:
    read = ends.reader.array(ends.writer.store(np.arange(1000, dtype=np.float32)), FP32, (10, 100))
    part = read[3:5].reshape(-1)[::2]
    del read
    assert ends.writer.used_bytes() > 0
    assert part[0] == 300
    del part
    assert ends.writer.used_bytes() == 0


def test_slots_do_not_meet(ends: Ends) -> None:
    views = []
    for value in range(200):
        array = np.full(1 + value * 7, value, np.float32)
        views.append(ends.reader.array(ends.writer.store(array), FP32, array.shape))
        if value % 3 == 0:
            del views[value // 6]
    assert all((view == len(view) // 7).all() for view in views)


def test_memory_is_used_again(ends: Ends) -> None:
    array = np.ones(MIB // 4, np.float32)
    for _ in range(300):
        ends.reader.array(ends.writer.store(array), FP32, array.shape)
    assert ends.resident_bytes() < 3 * MIB


def test_a_large_slot_gives_its_pages_back(ends: Ends) -> None:
    array = np.ones(160 * MIB // 4, np.float32)
    ends.reader.array(ends.writer.store(array), FP32, array.shape)
    assert ends.resident_bytes() < MIB
    assert ends.reader.array(ends.writer.store(array), FP32, array.shape)[-1] == 1


def test_many_slots_give_the_pages_back_that_are_not_needed_soon(ends: Ends) -> None:
    array = np.ones(10 * MIB // 4, np.float32)
    views = [ends.reader.array(ends.writer.store(array), FP32, array.shape) for _ in range(12)]
    assert ends.resident_bytes() > 100 * MIB
    views.clear()
    assert ends.writer.used_bytes() == 0
    assert ends.resident_bytes() <= 65 * MIB


def test_what_finds_no_room_is_an_error_that_says_so(small_ends: Ends) -> None:
    slot = small_ends.writer.store(np.zeros(600_000, np.uint8))
    with pytest.raises(ArenaFullError) as failure:
        small_ends.writer.store(np.zeros(500_000, np.uint8))
    assert failure.value.code is StatusCode.UNAVAILABLE
    assert failure.value.message == (
        "500000 bytes do not fit into the memory shared with the model's process: 600064 of 1048576 bytes are in "
        "use. Give it more with --backend-config=python,arena-max-byte-size=<bytes>"
    )
    small_ends.reader.clear(slot)
    small_ends.writer.store(np.zeros(500_000, np.uint8))


def test_a_reader_that_keeps_much_does_not_starve_the_writer(small_ends: Ends) -> None:
    array = np.arange(50_000, dtype=np.uint8)
    kept = [
        small_ends.reader.array(small_ends.writer.store(array), array.dtype, array.shape) for _ in range(100)
    ]
    assert all(np.array_equal(view, array) for view in kept)


@pytest.mark.parametrize(
    ("slot", "shape"),
    [((64, 40), (100,)), ((0, 40), (10,)), ((MIB, 40), (10,)), ((64, -1), (1,)), ((MIB - 8, 40), (10,))],
)
def test_a_slot_that_cannot_be_is_refused(
    small_ends: Ends, slot: tuple[int, int], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"slot|bytes|buffer"):
        small_ends.reader.array(slot, FP32, shape)


def test_the_memory_cannot_be_made_smaller(small_ends: Ends) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(small_ends.memory, 0)
