"""Memory that two processes share, for what is too large for a message: tensors, and messages that hold many.

One process writes into an arena, the other reads views of it. There is no name in any file system: the memory is a
file descriptor (memfd) that the reader inherits, and it is gone with the last process that has it. It is as large
as its limit from the start, but only pages that were written to exist.

A slot is a header and the data. The header's first byte says whether the slot is in use: the writer sets it, the
reader clears it when its last view is gone, and the writer finds it cleared when it next looks. So giving back needs
no message, and may happen on any thread, under any lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
import weakref
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from cantata.bls.worker.free_list import FreeList
from cantata.runtime.errors import InferenceError, StatusCode

# Where a slot's data begins, and its size in bytes.
Slot: TypeAlias = tuple[int, int]
Array: TypeAlias = npt.NDArray[Any]

# A slot's header, and what slots are aligned to; the data is as aligned as any numpy array.
_UNIT: Final = 64
_FREE, _IN_USE = 0, 1
# Pages beyond this much free memory at the arena's end go back to the system.
_KEPT_BYTES: Final = 64 << 20
# A slot this large gives its pages back as soon as it is free: the next one so large may be far away.
_LARGE_BYTES: Final = 128 << 20
# How few slots are looked at so cheaply that it is done every time.
_FEW_SLOTS: Final = 16


class ArenaFullError(InferenceError):
    """There is no room for a tensor."""


def create_memory(capacity: int) -> int:
    """A file descriptor of `capacity` bytes. Its size is sealed: no process can take memory from under another."""
    memory = os.memfd_create("cantata-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, capacity)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(memory)
        raise
    return memory


class ArenaWriter:
    """The side that fills slots. Any thread may call. `_lock` guards all attributes but the memory."""

    def __init__(self, memory: int, capacity: int) -> None:
        self._map: mmap.mmap | None = _map(memory, capacity)
        self._capacity = capacity
        self._lock = threading.Lock()
        self._free = FreeList(capacity // _UNIT)
        # The size of each slot that was in use when last looked at, by its start, in units.
        self._slots: dict[int, int] = {}
        # No page at or above this unit has been written to.
        self._top = 0
        self._sweep_at = _FEW_SLOTS

    def store(self, array: Array) -> Slot:
        """A copy of `array`, in row-major order; raises ArenaFullError."""
        memory, offset = self._allocate(array.nbytes)
        np.ndarray(array.shape, array.dtype, memory, offset)[...] = array
        return offset, array.nbytes

    def store_bytes(self, data: bytes | memoryview) -> Slot:
        """A copy of `data`; raises ArenaFullError."""
        memory, offset = self._allocate(len(data))
        memory[offset : offset + len(data)] = data
        return offset, len(data)

    def close(self) -> None:
        """Let go of the memory; nothing is stored any more."""
        with self._lock:
            memory, self._map = self._map, None
            self._slots.clear()
        _release(memory)

    def used_bytes(self) -> int:
        """What is in use now, headers included."""
        with self._lock:
            self._sweep()
            return sum(self._slots.values()) * _UNIT

    def _allocate(self, nbytes: int) -> tuple[mmap.mmap, int]:
        units = 1 + -(-nbytes // _UNIT)
        with self._lock:
            memory = self._map
            if memory is None:
                raise ArenaFullError(StatusCode.UNAVAILABLE, "the model's process has ended")
            if len(self._slots) >= self._sweep_at:
                self._sweep()
            start = self._free.allocate(units)
            if start is None or start + units > self._top:
                # Before untouched pages are used, or room runs out: what has been given back since?
                if start is not None:
                    self._free.free(start, units)
                self._sweep()
                start = self._free.allocate(units)
            if start is None:
                raise self._full(nbytes)
            self._slots[start] = units
            self._top = max(self._top, start + units)
            header = start * _UNIT
            memory[header] = _IN_USE
        return memory, header + _UNIT

    def _sweep(self) -> None:
        """Take back the slots that the reader has cleared; the caller holds the lock."""
        memory = self._map
        if memory is None:
            return
        cleared = [start for start in self._slots if memory[start * _UNIT] == _FREE]
        for start in cleared:
            self._free.free(start, self._slots.pop(start))
        self._sweep_at = max(_FEW_SLOTS, 2 * len(self._slots))
        kept = self._free.tail_start + _KEPT_BYTES // _UNIT
        if self._top > kept:
            _give_back_pages(memory, kept * _UNIT, self._top * _UNIT)
            self._top = kept

    def _full(self, nbytes: int) -> ArenaFullError:
        in_use = (self._free.capacity - self._free.free_units) * _UNIT
        return ArenaFullError(
            StatusCode.UNAVAILABLE,
            f"{nbytes} bytes do not fit into the memory shared with the model's process: {in_use} of "
            f"{self._capacity} bytes are in use. Give it more with "
            "--backend-config=python,arena-max-byte-size=<bytes>",
        )


class ArenaReader:
    """The side that looks at slots. Any thread may call.

    It copies where it already holds much of the arena: whoever keeps arrays for long must not starve the writer.
    """

    def __init__(self, memory: int, capacity: int) -> None:
        self._map: mmap.mmap | None = _map(memory, capacity)
        # Keeps the references alive whose callbacks clear slots; touched by single operations only.
        self._held: dict[int, _Clearing] = {}
        self._held_bytes = 0
        self._most_held_bytes = capacity // 4

    def array(self, slot: Slot, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The array in `slot`. The slot is cleared when nothing refers to its memory any more.

        Raises ValueError when there is no such array in the arena.
        """
        offset, nbytes = slot
        memory = self._memory()
        if not _UNIT <= offset <= len(memory) - nbytes or nbytes < 0:
            raise ValueError(f"a slot of {nbytes} bytes at {offset} is outside the arena")
        try:
            view = np.ndarray.__new__(_SlotArray, shape, dtype, memory, offset)
        except TypeError as error:
            raise ValueError(str(error)) from None
        if view.nbytes != nbytes:
            raise ValueError(f"an array of {view.nbytes} bytes in a slot of {nbytes}")
        if self._held_bytes + nbytes > self._most_held_bytes and self._holds_too_much(nbytes):
            copy = np.array(view, subok=False)
            self.clear(slot)
            return copy
        self._held_bytes += nbytes
        self._held[offset] = _Clearing(view, self, slot)
        return view.view(np.ndarray)

    def _holds_too_much(self, nbytes: int) -> bool:
        # Counted anew: the running sum has no lock, since slots may be released under any.
        self._held_bytes = sum(clearing.slot[1] for clearing in list(self._held.values()))
        return self._held_bytes + nbytes > self._most_held_bytes

    def bytes_of(self, slot: Slot) -> bytes:
        """A copy of the bytes in `slot`, which is cleared."""
        offset, nbytes = slot
        data = self._memory()[offset : offset + nbytes]
        if len(data) != nbytes:
            raise ValueError(f"a slot of {nbytes} bytes at {offset} is outside the arena")
        self.clear(slot)
        return data

    def clear(self, slot: Slot) -> None:
        """Give a slot back to the writer."""
        offset, nbytes = slot
        memory = self._map
        if memory is None:
            return
        if nbytes >= _LARGE_BYTES:
            _give_back_pages(memory, offset, offset + nbytes)
        memory[offset - _UNIT] = _FREE

    def close(self) -> None:
        """Let go of the memory, but for what views still refer to; nothing is read any more."""
        memory, self._map = self._map, None
        _release(memory)

    def _memory(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError("the other process has ended")
        return self._map

    def _released(self, clearing: _Clearing) -> None:
        # Forgotten first: once the slot is cleared, another array may come to lie at the same offset.
        self._held.pop(clearing.slot[0], None)
        self._held_bytes -= clearing.slot[1]
        self.clear(clearing.slot)


class _SlotArray(np.ndarray[Any, Any]):
    """What every view of a slot has as its base: a type of its own, so that numpy does not look through it."""


class _Clearing(weakref.ref[_SlotArray]):
    """Clears a slot when its array is gone."""

    __slots__ = ("reader", "slot")

    reader: ArenaReader
    slot: Slot

    def __new__(cls, view: _SlotArray, reader: ArenaReader, slot: Slot) -> _Clearing:
        self = super().__new__(cls, view, _clear)
        self.reader = reader
        self.slot = slot
        return self

    def __init__(self, view: _SlotArray, reader: ArenaReader, slot: Slot) -> None:
        super().__init__(view, _clear)  # type: ignore[call-arg]


def _clear(clearing: Any) -> None:
    clearing.reader._released(clearing)


def _map(memory: int, capacity: int) -> mmap.mmap:
    mapped = mmap.mmap(memory, capacity)
    # A crash report of a model should not hold all its tensors.
    mapped.madvise(mmap.MADV_DONTDUMP)
    return mapped


def _release(memory: mmap.mmap | None) -> None:
    if memory is not None:
        # Where arrays refer to it still, it goes with the last of them.
        with contextlib.suppress(BufferError):
            memory.close()


def _give_back_pages(memory: mmap.mmap, start: int, end: int) -> None:
    """Return the whole pages between `start` and `end` to the system; they read as zeros afterwards."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        memory.madvise(mmap.MADV_REMOVE, first, length)
