"""Memory of GPUs that another process has exported, opened and copied through NVIDIA's driver library.

Owns the calls of `libcuda` that this takes. The library comes with the driver; it is looked for when a client first
registers such memory, and nothing else needs it.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

_LIBRARY: Final = "libcuda.so.1"
# What `cudaIpcGetMemHandle` fills.
HANDLE_BYTES: Final = 64
_LAZY_PEER_ACCESS: Final = 1

Bytes = npt.NDArray[np.uint8]


class CudaError(Exception):
    """A call of the driver failed; the text is its own."""


class CudaDriver(Protocol):
    """What regions of GPUs' memory need. Any thread may call."""

    def open(self, device_id: int, handle: bytes) -> tuple[int, int]:
        """Map exported memory; its address and size. Raises CudaError."""

    def close(self, device_id: int, address: int) -> None:
        """End a mapping."""

    def read(self, device_id: int, address: int, into: Bytes) -> None:
        """Copy to memory of the host. Raises CudaError."""

    def write(self, device_id: int, address: int, data: Bytes) -> None:
        """Copy from memory of the host. Raises CudaError."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class LibraryDriver:
    """The driver library. A device's primary context, which other libraries share, is made current for each call.

    `_lock` guards `_contexts`.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def open(self, device_id: int, handle: bytes) -> tuple[int, int]:
        self._enter(device_id)
        address, size, base = ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_uint64()
        exported = _Handle.from_buffer_copy(handle)
        flags = ctypes.c_uint(_LAZY_PEER_ACCESS)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), exported, flags)
        self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
        return address.value, size.value - (address.value - base.value)

    def close(self, device_id: int, address: int) -> None:
        self._enter(device_id)
        self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def read(self, device_id: int, address: int, into: Bytes) -> None:
        self._enter(device_id)
        place = ctypes.c_void_p(into.ctypes.data)
        self._call("cuMemcpyDtoH_v2", place, ctypes.c_uint64(address), ctypes.c_size_t(into.nbytes))

    def write(self, device_id: int, address: int, data: Bytes) -> None:
        self._enter(device_id)
        place = ctypes.c_void_p(data.ctypes.data)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), place, ctypes.c_size_t(data.nbytes))

    def _enter(self, device_id: int) -> None:
        with self._lock:
            if device_id not in self._contexts:
                device, context = ctypes.c_int(), ctypes.c_void_p()
                self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(device_id))
                self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
                self._contexts[device_id] = context
            context = self._contexts[device_id]
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            raise CudaError((text.value or b"").decode(errors="replace") or f"{name} returned {status}")


@cache
def cuda_driver() -> CudaDriver | None:
    """The driver, None where there is no GPU that it could drive."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    count = ctypes.c_int()
    if library.cuInit(ctypes.c_uint(0)) or library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    return LibraryDriver(library)
