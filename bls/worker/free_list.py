"""Which parts of a range of memory are free: first fit, neighbours joined again. Pure; knows no memory."""

from __future__ import annotations

from bisect import bisect_left


class FreeList:
    """The free blocks of `capacity` units.

    Invariants, for `check_invariants`: blocks are in ascending order, not empty, and no two of them touch.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._starts = [0]
        self._sizes = [capacity]

    def allocate(self, size: int) -> int | None:
        """The start of `size` units that are free no more, as low as possible; None where no block is so large."""
        for index, block in enumerate(self._sizes):
            if block < size:
                continue
            start = self._starts[index]
            if block == size:
                del self._starts[index], self._sizes[index]
            else:
                self._starts[index] += size
                self._sizes[index] -= size
            return start
        return None

    def free(self, start: int, size: int) -> None:
        """Give back what `allocate` gave."""
        starts, sizes = self._starts, self._sizes
        index = bisect_left(starts, start)
        joins_before = index > 0 and starts[index - 1] + sizes[index - 1] == start
        joins_after = index < len(starts) and start + size == starts[index]
        if joins_before and joins_after:
            sizes[index - 1] += size + sizes[index]
            del starts[index], sizes[index]
        elif joins_before:
            sizes[index - 1] += size
        elif joins_after:
            starts[index] = start
            sizes[index] += size
        else:
            starts.insert(index, start)
            sizes.insert(index, size)

    @property
    def tail_start(self) -> int:
        """Where the free block at the end of the range begins; `capacity` when its end is in use."""
        if self._starts and self._starts[-1] + self._sizes[-1] == self.capacity:
            return self._starts[-1]
        return self.capacity

    @property
    def free_units(self) -> int:
        return sum(self._sizes)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state is not what the class promises; for tests."""
        end = -1
        for start, size in zip(self._starts, self._sizes, strict=True):
            assert start > end or (end == -1 and start == 0)
            assert size > 0
            end = start + size
        assert end <= self.capacity
