"""The shared-memory regions that clients have registered, and the requests that keep them registered.

Owns opening and mapping of POSIX segments, the regions of GPUs' memory, bounds, and the rule that a region in use is
unregistered only when its last request ends (reference, section 3, "Shared memory rules"). Knows no wire, and not
what a tensor means.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from cantata.runtime.cuda_driver import HANDLE_BYTES, CudaDriver, CudaError, cuda_driver
from cantata.runtime.errors import (
    InferenceError,
    StatusCode,
    internal_error,
    invalid_argument,
    not_found,
    unsupported,
)
from cantata.runtime.tensor import Tensor

# Where the system keeps POSIX shared memory: what `shm_open` opens.
_DIRECTORY: Final = "/dev/shm"
# Segments of this name belong to Triton's own processes.
_RESERVED_PREFIX: Final = "triton_python_backend_shm_region_"
_MAX_SIZE: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """A registered region as clients are told of it."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class CudaRegionStatus:
    """A registered region of a GPU's memory as clients are told of it."""

    name: str
    device_id: int
    byte_size: int


class _Region(ABC):
    """One region. `users` and `is_leaving` change under the registry's lock."""

    __slots__ = ("is_leaving", "status", "users")

    def __init__(self, status: RegionStatus | CudaRegionStatus) -> None:
        self.status = status
        self.users = 0
        self.is_leaving = False

    def check(self, offset: int, byte_size: int) -> None:
        """Raise InferenceError where a part does not lie within the region."""
        name = self.status.name
        if offset + byte_size > _MAX_SIZE:
            raise invalid_argument(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value "
                f"{_MAX_SIZE} for shared memory region: '{name}'"
            )
        if offset >= self.status.byte_size:
            raise invalid_argument(f"Invalid offset for shared memory region: '{name}'")
        if not byte_size or offset + byte_size > self.status.byte_size:
            raise invalid_argument(f"Invalid offset + byte size for shared memory region: '{name}'")

    @abstractmethod
    def read(self, offset: int, byte_size: int) -> memoryview:
        """A part's bytes, read-only, where the host can read them. Raises InferenceError."""

    @abstractmethod
    def write(self, offset: int, room: int, raw: bytes | memoryview) -> None:
        """Write to the beginning of a part of `room` bytes. Raises InferenceError."""

    @abstractmethod
    def close(self) -> None:
        """The region is registered no longer, and nobody uses it."""


class _SystemRegion(_Region):
    """A mapped segment. The mapping ends when nothing refers to it: neither the registry nor a tensor in it."""

    __slots__ = ("_mapping", "_start", "_view")

    def __init__(self, status: RegionStatus, mapping: mmap.mmap) -> None:
        super().__init__(status)
        self._mapping = mapping
        self._start = status.offset
        self._view = memoryview(mapping)[status.offset : status.offset + status.byte_size]

    def check(self, offset: int, byte_size: int) -> None:
        super().check(offset, byte_size)
        # The segment's owner may have made it shorter since: what is no longer there must not be touched.
        if self._start + offset + byte_size > self._mapping.size():
            raise invalid_argument(
                f"Invalid offset + byte size for shared memory region: '{self.status.name}'"
            )

    def read(self, offset: int, byte_size: int) -> memoryview:
        self.check(offset, byte_size)
        return self._view[offset : offset + byte_size].toreadonly()

    def write(self, offset: int, room: int, raw: bytes | memoryview) -> None:
        # Looked at again: the model may have taken long.
        self.check(offset, room)
        # numpy copies without the interpreter's lock.
        np.frombuffer(self._view, np.uint8)[offset : offset + len(raw)] = np.frombuffer(raw, np.uint8)

    def close(self) -> None:
        """The mapping ends with the last tensor in it, and not before."""


class _CudaRegion(_Region):
    """Memory of a GPU. Tensors are copied to the host and from it."""

    __slots__ = ("_address", "_device_id", "_driver")

    def __init__(self, status: CudaRegionStatus, driver: CudaDriver, address: int) -> None:
        super().__init__(status)
        self._driver = driver
        self._device_id = status.device_id
        self._address = address

    def read(self, offset: int, byte_size: int) -> memoryview:
        self.check(offset, byte_size)
        content = np.empty(byte_size, np.uint8)
        self._copied(lambda: self._driver.read(self._device_id, self._address + offset, content))
        return content.data.toreadonly()

    def write(self, offset: int, room: int, raw: bytes | memoryview) -> None:
        self.check(offset, room)
        data = np.frombuffer(raw, np.uint8)
        self._copied(lambda: self._driver.write(self._device_id, self._address + offset, data))

    def close(self) -> None:
        with contextlib.suppress(CudaError):
            self._driver.close(self._device_id, self._address)

    def _copied(self, copy: Callable[[], None]) -> None:
        try:
            copy()
        except CudaError as error:
            raise internal_error(
                f"failed to copy from or to CUDA shared memory region '{self.status.name}': {error}"
            ) from None


class SharedMemory:
    """All registered regions of one server. Any thread may call. `_lock` guards the table and the regions' users."""

    def __init__(
        self, allows_clients: bool, find_driver: Callable[[], CudaDriver | None] = cuda_driver
    ) -> None:
        self._allows_clients = allows_clients
        self._find_driver = find_driver
        self._lock = threading.Lock()
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Map `byte_size` bytes from `offset` of the segment `key`, and know them as `name` from now on."""
        self.check_allowed()
        if not name:
            raise invalid_argument("'region name' is necessary to register system shared memory region")
        _check_key(name, key)
        with self._lock:
            self._check_new(name)
            status = RegionStatus(name, key, offset, byte_size)
            self._regions[name] = _SystemRegion(status, _mapped(status))

    def cuda(self, name: str) -> CudaDriver:
        """What opens memory of GPUs for a region called `name`; raises InferenceError where nothing does."""
        self.check_allowed()
        driver = self._find_driver()
        if driver is None:
            raise invalid_argument(
                f"failed to register CUDA shared memory region: '{name}', GPUs not supported"
            )
        return driver

    def register_cuda(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """Open memory of a GPU that its owner has exported, and know it as `name` from now on."""
        driver = self.cuda(name)
        if not name:
            raise invalid_argument("'region name' is necessary to register cuda shared memory region")
        refusal = invalid_argument(f"failed to register CUDA shared memory region '{name}': invalid args")
        if len(raw_handle) != HANDLE_BYTES or not 0 <= device_id < 1 << 31 or not byte_size:
            raise refusal
        with self._lock:
            self._check_new(name)
            try:
                address, size = driver.open(device_id, raw_handle)
            except CudaError as error:
                raise invalid_argument(f"{refusal.message} ({error})") from None
            region = _CudaRegion(CudaRegionStatus(name, device_id, byte_size), driver, address)
            if byte_size > size:
                region.close()
                raise refusal
            self._regions[name] = region

    def unregister(self, name: str) -> None:
        """Forget a region, once no request uses it; nothing happens for an unknown one."""
        self.check_allowed()
        self._unregister(_SystemRegion, name)

    def unregister_all(self) -> None:
        """Forget every region, each once no request uses it."""
        self.check_allowed()
        self._unregister(_SystemRegion)

    def unregister_cuda(self, name: str = "") -> None:
        """Forget a region of a GPU's memory, or with no name all of them, each once no request uses it."""
        self.check_allowed()
        self._unregister(_CudaRegion, name)

    def status(self, name: str = "") -> list[RegionStatus]:
        """All regions of the system's memory, or one; raises InferenceError for one that there is not."""
        found = self._statuses(_SystemRegion, name, "system", "CUDA", "system")
        return [status for status in found if isinstance(status, RegionStatus)]

    def cuda_status(self, name: str = "") -> list[CudaRegionStatus]:
        """All regions of GPUs' memory, or one; raises InferenceError for one that there is not."""
        found = self._statuses(_CudaRegion, name, "cuda", "system", "CUDA")
        return [status for status in found if isinstance(status, CudaRegionStatus)]

    def check_allowed(self) -> None:
        """Raise InferenceError where clients may not register regions."""
        if not self._allows_clients:
            raise unsupported(
                "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
            )

    def take(self, name: str) -> _Region:
        """A region that stays registered until it is given back; raises InferenceError for an unknown one."""
        with self._lock:
            region = self._regions.get(name)
            if region is None:
                raise not_found(f"Unable to find shared memory region: '{name}'")
            region.users += 1
            return region

    def give_back(self, region: _Region) -> None:
        """End one use of a region that `take` gave."""
        with self._lock:
            region.users -= 1
            ends = region.is_leaving and not region.users
            if ends:
                del self._regions[region.status.name]
        if ends:
            region.close()

    def _check_new(self, name: str) -> None:
        if name in self._regions:
            raise InferenceError(
                StatusCode.ALREADY_EXISTS, f"shared memory region '{name}' already in manager"
            )

    def _unregister(self, kind: type[_Region], name: str = "") -> None:
        """Forget the regions of a kind, or the one of that name."""
        forgotten = []
        with self._lock:
            for region in tuple(self._regions.values()):
                if not isinstance(region, kind) or name not in ("", region.status.name):
                    continue
                if region.users:
                    region.is_leaving = True
                else:
                    forgotten.append(self._regions.pop(region.status.name))
        for region in forgotten:
            region.close()

    def _statuses(
        self, kind: type[_Region], name: str, called: str, other: str, wanted: str
    ) -> list[RegionStatus | CudaRegionStatus]:
        with self._lock:
            if not name:
                return [region.status for region in self._regions.values() if isinstance(region, kind)]
            region = self._regions.get(name)
        if region is None:
            raise not_found(f"Unable to find {called} shared memory region: '{name}'")
        if not isinstance(region, kind):
            raise not_found(
                f"The region named '{name}' is registered as {other} shared memory, not {wanted} shared memory"
            )
        return [region.status]


class RegionLease:
    """The regions that one request reads its inputs from and has its outputs written to, until `release`.

    Used by one thread at a time.
    """

    __slots__ = ("_memory", "_outputs", "_taken")

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._taken: list[_Region] = []
        self._outputs: dict[str, tuple[_Region, int, int]] = {}

    def input(self, region_name: str, offset: int, byte_size: int) -> memoryview:
        """The bytes of an input, read-only. Raises InferenceError."""
        return self._take(region_name).read(offset, byte_size)

    def place_output(self, output_name: str, region_name: str, offset: int, byte_size: int) -> None:
        """Have an output written there. Raises InferenceError."""
        region = self._take(region_name)
        region.check(offset, byte_size)
        self._outputs[output_name] = (region, offset, byte_size)

    def holds_output(self, name: str) -> bool:
        """Whether an output is to be written to a region."""
        return name in self._outputs

    def write_output(self, name: str, tensor: Tensor) -> None:
        """Write an output where `place_output` said. Raises InferenceError where it has no room, any more or at all."""
        region, offset, room = self._outputs[name]
        raw = tensor.raw_bytes()
        size = len(raw)
        if size > room:
            raise internal_error(
                f"shared memory size specified with the request for output '{name}' ({room} bytes) should be "
                f"at least {size} bytes to hold the results"
            )
        region.write(offset, room, raw)

    def release(self) -> None:
        """The request is over. Releasing twice does nothing."""
        self._outputs.clear()
        while self._taken:
            self._memory.give_back(self._taken.pop())

    def _take(self, region_name: str) -> _Region:
        region = self._memory.take(region_name)
        self._taken.append(region)
        return region


def _check_key(name: str, key: str) -> None:
    bare = key.lstrip("/")
    if not bare:
        raise invalid_argument(f"cannot register shared memory region '{name}' - invalid shm key '{key}'")
    if bare.startswith(_RESERVED_PREFIX):
        raise invalid_argument(
            f"cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved prefix "
            f"'{_RESERVED_PREFIX}'"
        )


def _mapped(status: RegionStatus) -> mmap.mmap:
    """The segment's memory up to the region's end; offsets of mappings would have to be whole pages."""
    bare = status.key.lstrip("/")
    refusal = internal_error(f"Unable to open shared memory region: '{status.key}'")
    # A segment's name has no directories: nothing outside can be named.
    if "/" in bare:
        raise refusal
    try:
        descriptor = os.open(f"{_DIRECTORY}/{bare}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        raise refusal from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise refusal
        end = status.offset + status.byte_size
        if not status.byte_size or end > found.st_size:
            raise invalid_argument(f"failed to register shared memory region '{status.name}': invalid args")
        return mmap.mmap(descriptor, end)
    except (OSError, ValueError, OverflowError):
        raise refusal from None
    finally:
        os.close(descriptor)
