"""Where a model prefers the outputs of a call to lie. Values only."""

from __future__ import annotations

import enum


class MemoryType(enum.IntEnum):
    """TRITONSERVER_MemoryType, as far as models name it."""

    TRITONSERVER_MEMORY_CPU = 0
    TRITONSERVER_MEMORY_CPU_PINNED = 1
    TRITONSERVER_MEMORY_GPU = 2


TRITONSERVER_MEMORY_CPU = MemoryType.TRITONSERVER_MEMORY_CPU
TRITONSERVER_MEMORY_GPU = MemoryType.TRITONSERVER_MEMORY_GPU


class PreferredMemory:
    """A wish, not a rule: outputs stay where the called model made them."""

    __slots__ = ("preferred_device_id", "preferred_memory_type")

    def __init__(
        self, preferred_memory_type: MemoryType = TRITONSERVER_MEMORY_CPU, preferred_device_id: int = 0
    ) -> None:
        self.preferred_memory_type = MemoryType(preferred_memory_type)
        self.preferred_device_id = preferred_device_id
