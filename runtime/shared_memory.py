"""The shared-memory regions that clients have registered, and the requests that keep them registered.

Owns opening and mapping of POSIX segments, bounds, and the rule that a region in use is unregistered only when its last
request ends (reference, section 3, "Shared memory rules"). Knows no wire and no tensor's meaning.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from dataclasses import dataclass
from typing import Final

import numpy as np

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


class _Region:
    """One mapped region. `users` and `is_leaving` change under the registry's lock.

    The mapping ends when nothing refers to it any more: neither the registry nor a tensor that lies in it.
    """

    __slots__ = ("_mapping", "_view", "is_leaving", "status", "users")

    def __init__(self, status: RegionStatus, mapping: mmap.mmap) -> None:
        self.status = status
        self._mapping = mapping
        self._view = memoryview(mapping)[status.offset : status.offset + status.byte_size]
        self.users = 0
        self.is_leaving = False

    def view(self, offset: int, byte_size: int) -> memoryview:
        """A part of the region, writable; raises InferenceError where it does not lie within."""
        name = self.status.name
        if offset + byte_size > _MAX_SIZE:
            raise invalid_argument(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value "
                f"{_MAX_SIZE} for shared memory region: '{name}'"
            )
        if offset >= self.status.byte_size:
            raise invalid_argument(f"Invalid offset for shared memory region: '{name}'")
        end = offset + byte_size
        # The segment's owner may have made it shorter since: what is no longer there must not be touched.
        if not byte_size or end > self.status.byte_size or self.status.offset + end > self._mapping.size():
            raise invalid_argument(f"Invalid offset + byte size for shared memory region: '{name}'")
        return self._view[offset:end]


class SharedMemory:
    """All registered regions of one server. Any thread may call. `_lock` guards the table and the regions' users."""

    def __init__(self, allows_clients: bool) -> None:
        self._allows_clients = allows_clients
        self._lock = threading.Lock()
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Map `byte_size` bytes from `offset` of the segment `key`, and know them as `name` from now on."""
        self.check_allowed()
        if not name:
            raise invalid_argument("'region name' is necessary to register system shared memory region")
        _check_key(name, key)
        with self._lock:
            if name in self._regions:
                raise InferenceError(
                    StatusCode.ALREADY_EXISTS, f"shared memory region '{name}' already in manager"
                )
            status = RegionStatus(name, key, offset, byte_size)
            self._regions[name] = _Region(status, _mapped(status))

    def register_cuda(self, name: str) -> None:
        """Refuse a region of a GPU's memory: always, as no such memory is mapped here."""
        self.check_allowed()
        raise invalid_argument(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")

    def unregister(self, name: str) -> None:
        """Forget a region, once no request uses it; nothing happens for an unknown one."""
        self.check_allowed()
        with self._lock:
            self._unregister(name)

    def unregister_all(self) -> None:
        """Forget every region, each once no request uses it."""
        self.check_allowed()
        with self._lock:
            for name in tuple(self._regions):
                self._unregister(name)

    def unregister_cuda(self) -> None:
        """Forget regions of GPUs' memory: there are none."""
        self.check_allowed()

    def status(self, name: str = "") -> list[RegionStatus]:
        """All regions, or one; raises InferenceError for one that there is not."""
        with self._lock:
            if not name:
                return [region.status for region in self._regions.values()]
            if name not in self._regions:
                raise not_found(f"Unable to find system shared memory region: '{name}'")
            return [self._regions[name].status]

    def check_no_cuda(self, name: str) -> None:
        """Raise InferenceError for a GPU's region that is asked for by name: there are none."""
        if not name:
            return
        with self._lock:
            is_system = name in self._regions
        if is_system:
            raise not_found(
                f"The region named '{name}' is registered as system shared memory, not CUDA shared memory"
            )
        raise not_found(f"Unable to find cuda shared memory region: '{name}'")

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
            if region.is_leaving and not region.users:
                del self._regions[region.status.name]

    def _unregister(self, name: str) -> None:
        region = self._regions.get(name)
        if region is None:
            return
        if region.users:
            region.is_leaving = True
        else:
            del self._regions[name]


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
        return self._take(region_name).view(offset, byte_size).toreadonly()

    def place_output(self, output_name: str, region_name: str, offset: int, byte_size: int) -> None:
        """Have an output written there. Raises InferenceError."""
        region = self._take(region_name)
        region.view(offset, byte_size)
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
        # Looked at again: the model may have taken long.
        place = region.view(offset, room)
        # numpy copies without the interpreter's lock.
        np.frombuffer(place, np.uint8)[:size] = np.frombuffer(raw, np.uint8)

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
