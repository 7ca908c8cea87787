"""A GPU whose memory is the host's, for what talks to one through `CudaDriver`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cantata.runtime.cuda_driver import HANDLE_BYTES, CudaError

# What the one allocation of the one device is exported as.
HANDLE = bytes(range(HANDLE_BYTES))


class FakeDriver:
    """A GPU whose memory is the host's: one exported allocation of 64 bytes, known by HANDLE."""

    def __init__(self) -> None:
        self.memory = np.zeros(64, np.uint8)
        self.open_count = 0
        self.fails = False

    def open(self, device_id: int, handle: bytes) -> tuple[int, int]:
        if handle != HANDLE or device_id != 1:
            raise CudaError("invalid device context")
        self.open_count += 1
        return 1000, 64

    def close(self, device_id: int, address: int) -> None:
        self.open_count -= 1

    def read(self, device_id: int, address: int, into: npt.NDArray[np.uint8]) -> None:
        if self.fails:
            raise CudaError("an illegal memory access was encountered")
        into[:] = self.memory[address - 1000 : address - 1000 + into.nbytes]

    def write(self, device_id: int, address: int, data: npt.NDArray[np.uint8]) -> None:
        self.memory[address - 1000 : address - 1000 + data.nbytes] = data
