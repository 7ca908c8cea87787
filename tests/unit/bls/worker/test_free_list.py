"""The free list against a plain model of memory."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cantata.bls.worker.free_list import FreeList

CAPACITY = 64


class FreeListAgainstAMap(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.free_list = FreeList(CAPACITY)
        self.is_used = [False] * CAPACITY
        self.blocks: list[tuple[int, int]] = []

    @rule(size=st.integers(1, 20))
    def allocate(self, size: int) -> None:
        start = self.free_list.allocate(size)
        fits = [at for at in range(CAPACITY - size + 1) if not any(self.is_used[at : at + size])]
        assert start == (fits[0] if fits else None)
        if start is not None:
            self.is_used[start : start + size] = [True] * size
            self.blocks.append((start, size))

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        start, size = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
        self.free_list.free(start, size)
        self.is_used[start : start + size] = [False] * size

    @invariant()
    def it_knows_what_is_free(self) -> None:
        self.free_list.check_invariants()
        assert self.free_list.free_units == self.is_used.count(False)
        used = [at for at, is_used in enumerate(self.is_used) if is_used]
        assert self.free_list.tail_start == (used[-1] + 1 if used else 0)


TestFreeList = FreeListAgainstAMap.TestCase
