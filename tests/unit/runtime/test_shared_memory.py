"""Regions of shared memory: what may be registered, where tensors may lie, and when a region is forgotten."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory as Segment
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.shared_memory import CudaRegionStatus, RegionLease, RegionStatus, SharedMemory
from cantata.runtime.tensor import Tensor
from tests.support.fake_driver import HANDLE, FakeDriver


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment(create=True, size=64)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(allows_clients=True, find_driver=lambda: None)


def refusal(action: Callable[[], object]) -> tuple[StatusCode, str]:
    with pytest.raises(InferenceError) as refused:
        action()
    return refused.value.code, refused.value.message


def four_bytes(value: int) -> Tensor:
    return Tensor(DataType.INT32, np.array([value], np.int32))


def test_a_registered_region_is_listed_until_it_is_unregistered(
    memory: SharedMemory, segment: Segment
) -> None:
    memory.register("r", "/" + segment.name, 8, 16)
    status = RegionStatus("r", "/" + segment.name, 8, 16)
    assert (memory.status(), memory.status("r")) == ([status], [status])
    memory.unregister("r")
    assert memory.status() == []
    memory.unregister("r")


def test_tensors_lie_where_the_request_says(memory: SharedMemory, segment: Segment) -> None:
    segment.buf[8:12] = b"abcd"
    memory.register("r", segment.name, 8, 16)
    lease = RegionLease(memory)
    assert bytes(lease.input("r", 0, 4)) == b"abcd"
    assert lease.input("r", 0, 4).readonly
    lease.place_output("OUT", "r", 4, 8)
    assert (lease.holds_output("OUT"), lease.holds_output("IN")) == (True, False)
    lease.write_output("OUT", four_bytes(7))
    assert bytes(segment.buf[12:20]) == b"\x07\0\0\0\0\0\0\0"
    lease.release()


def test_an_output_without_room_is_refused_before_a_byte_is_written(
    memory: SharedMemory, segment: Segment
) -> None:
    memory.register("r", segment.name, 0, 16)
    lease = RegionLease(memory)
    lease.place_output("OUT", "r", 0, 3)
    assert refusal(lambda: lease.write_output("OUT", four_bytes(-1))) == (
        StatusCode.INTERNAL,
        "shared memory size specified with the request for output 'OUT' (3 bytes) should be at least 4 bytes to "
        "hold the results",
    )
    assert bytes(segment.buf[:4]) == bytes(4)
    lease.release()


def test_a_region_in_use_is_unregistered_when_its_last_request_ends(
    memory: SharedMemory, segment: Segment
) -> None:
    memory.register("r", segment.name, 0, 16)
    first, second = RegionLease(memory), RegionLease(memory)
    first.input("r", 0, 4)
    memory.unregister_all()
    second.input("r", 0, 4)
    first.release()
    first.release()
    assert [region.name for region in memory.status()] == ["r"]
    second.release()
    assert memory.status() == []


def test_a_tensor_that_a_model_keeps_outlives_its_region(memory: SharedMemory, segment: Segment) -> None:
    segment.buf[:4] = b"kept"
    memory.register("r", segment.name, 0, 16)
    lease = RegionLease(memory)
    kept = lease.input("r", 0, 4)
    memory.unregister("r")
    lease.release()
    assert bytes(kept) == b"kept"


def test_unregistered_memory_is_unmapped(memory: SharedMemory) -> None:
    segment = Segment(create=True, size=4096)
    memory.register("r", segment.name, 0, 4096)
    memory.unregister("r")
    segment.close()
    segment.unlink()
    assert segment.name not in Path("/proc/self/maps").read_text()


def test_memory_that_its_owner_took_away_is_not_touched(memory: SharedMemory, segment: Segment) -> None:
    memory.register("r", segment.name, 0, 64)
    os.truncate(f"/dev/shm/{segment.name}", 16)
    lease = RegionLease(memory)
    assert refusal(lambda: lease.input("r", 0, 64)) == (
        StatusCode.INVALID_ARG,
        "Invalid offset + byte size for shared memory region: 'r'",
    )
    lease.release()


def test_an_output_is_not_written_to_memory_that_was_taken_away_meanwhile(
    memory: SharedMemory, segment: Segment
) -> None:
    memory.register("r", segment.name, 0, 64)
    lease = RegionLease(memory)
    lease.place_output("OUT", "r", 60, 4)
    os.truncate(f"/dev/shm/{segment.name}", 16)
    assert refusal(lambda: lease.write_output("OUT", four_bytes(1)))[0] is StatusCode.INVALID_ARG
    lease.release()


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(max_size=8),
    key=st.text(max_size=8) | st.sampled_from(["/", "..", "a/b", "SEGMENT", "/SEGMENT"]),
    offset=st.integers(0, 2**64 - 1) | st.integers(0, 65),
    byte_size=st.integers(0, 2**64 - 1) | st.integers(0, 65),
    at=st.integers(0, 2**64 - 1) | st.integers(0, 65),
    size=st.integers(0, 2**64 - 1) | st.integers(0, 65),
)
def test_whatever_is_registered_and_used_is_within_bounds_or_refused(
    name: str, key: str, offset: int, byte_size: int, at: int, size: int
) -> None:
    memory = SharedMemory(allows_clients=True)
    segment = Segment(create=True, size=64)
    lease = RegionLease(memory)
    try:
        with suppress(InferenceError):
            memory.register(name, key.replace("SEGMENT", segment.name), offset, byte_size)
            assert offset + byte_size <= 64
            assert len(lease.input(name, at, size)) == size
            assert at + size <= byte_size
    finally:
        lease.release()
        memory.unregister_all()
        segment.close()
        segment.unlink()
    assert memory.status() == []


@pytest.mark.parametrize(
    ("label", "offset", "byte_size", "message"),
    [
        ("offset at the end", 16, 1, "Invalid offset for shared memory region: 'r'"),
        ("end beyond the end", 15, 2, "Invalid offset + byte size for shared memory region: 'r'"),
        ("longer than the region", 0, 17, "Invalid offset + byte size for shared memory region: 'r'"),
        (
            "beyond all numbers",
            2**63,
            2**63,
            "Integer overflow detected: byte_size (9223372036854775808) + offset (9223372036854775808) exceeds "
            "maximum value 18446744073709551615 for shared memory region: 'r'",
        ),
    ],
)
def test_a_tensor_lies_within_its_region(
    memory: SharedMemory, segment: Segment, label: str, offset: int, byte_size: int, message: str
) -> None:
    memory.register("r", segment.name, 0, 16)
    lease = RegionLease(memory)
    assert refusal(lambda: lease.input("r", offset, byte_size)) == (StatusCode.INVALID_ARG, message), label
    lease.release()
    memory.unregister("r")
    assert memory.status() == []


@pytest.mark.parametrize(
    ("key", "offset", "byte_size", "code", "message"),
    [
        (
            "//",
            0,
            1,
            StatusCode.INVALID_ARG,
            "cannot register shared memory region 'r' - invalid shm key '//'",
        ),
        (
            "/triton_python_backend_shm_region_1",
            0,
            1,
            StatusCode.INVALID_ARG,
            "cannot register shared memory region 'r' with key '/triton_python_backend_shm_region_1' as the key "
            "contains the reserved prefix 'triton_python_backend_shm_region_'",
        ),
        ("no_such_key", 0, 1, StatusCode.INTERNAL, "Unable to open shared memory region: 'no_such_key'"),
        (
            "../../etc/passwd",
            0,
            1,
            StatusCode.INTERNAL,
            "Unable to open shared memory region: '../../etc/passwd'",
        ),
        (".", 0, 1, StatusCode.INTERNAL, "Unable to open shared memory region: '.'"),
        ("a\0b", 0, 1, StatusCode.INTERNAL, "Unable to open shared memory region: 'a\0b'"),
        (
            "SEGMENT",
            0,
            65,
            StatusCode.INVALID_ARG,
            "failed to register shared memory region 'r': invalid args",
        ),
        (
            "SEGMENT",
            64,
            1,
            StatusCode.INVALID_ARG,
            "failed to register shared memory region 'r': invalid args",
        ),
        (
            "SEGMENT",
            0,
            0,
            StatusCode.INVALID_ARG,
            "failed to register shared memory region 'r': invalid args",
        ),
        (
            "SEGMENT",
            2**64,
            2**64,
            StatusCode.INVALID_ARG,
            "failed to register shared memory region 'r': invalid args",
        ),
    ],
)
def test_what_is_no_region_is_not_registered(
    memory: SharedMemory,
    segment: Segment,
    key: str,
    offset: int,
    byte_size: int,
    code: StatusCode,
    message: str,
) -> None:
    key = segment.name if key == "SEGMENT" else key
    assert refusal(lambda: memory.register("r", key, offset, byte_size)) == (code, message)
    assert memory.status() == []


def test_a_name_is_registered_once(memory: SharedMemory, segment: Segment) -> None:
    memory.register("r", segment.name, 0, 16)
    assert refusal(lambda: memory.register("r", segment.name, 0, 8)) == (
        StatusCode.ALREADY_EXISTS,
        "shared memory region 'r' already in manager",
    )


def test_a_region_needs_a_name(memory: SharedMemory) -> None:
    assert refusal(lambda: memory.register("", "k", 0, 1)) == (
        StatusCode.INVALID_ARG,
        "'region name' is necessary to register system shared memory region",
    )


def test_unknown_regions_are_not_found(memory: SharedMemory) -> None:
    assert refusal(lambda: memory.status("r")) == (
        StatusCode.NOT_FOUND,
        "Unable to find system shared memory region: 'r'",
    )
    assert refusal(lambda: RegionLease(memory).input("r", 0, 1)) == (
        StatusCode.NOT_FOUND,
        "Unable to find shared memory region: 'r'",
    )


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def with_gpu(driver: FakeDriver) -> SharedMemory:
    return SharedMemory(allows_clients=True, find_driver=lambda: driver)


def test_tensors_are_copied_from_the_memory_of_gpus_and_to_it(
    with_gpu: SharedMemory, driver: FakeDriver
) -> None:
    with_gpu.register_cuda("c", HANDLE, 1, 32)
    assert with_gpu.cuda_status("c") == with_gpu.cuda_status() == [CudaRegionStatus("c", 1, 32)]
    driver.memory[8:16] = 7
    lease = RegionLease(with_gpu)
    assert bytes(lease.input("c", 8, 8)) == b"\x07" * 8
    lease.place_output("OUT", "c", 16, 8)
    lease.write_output("OUT", Tensor(DataType.INT32, np.array([1, 2], np.int32)))
    assert driver.memory[16:24].view(np.int32).tolist() == [1, 2]
    with_gpu.unregister_cuda("c")
    assert (driver.open_count, len(with_gpu.cuda_status())) == (1, 1)
    lease.release()
    assert (driver.open_count, with_gpu.cuda_status()) == (0, [])


def test_regions_of_either_kind_are_told_apart(with_gpu: SharedMemory, segment: Segment) -> None:
    with_gpu.register_cuda("c", HANDLE, 1, 32)
    with_gpu.register("r", segment.name, 0, 16)
    assert [region.name for region in with_gpu.status()] == ["r"]
    assert refusal(lambda: with_gpu.status("c")) == (
        StatusCode.NOT_FOUND,
        "The region named 'c' is registered as CUDA shared memory, not system shared memory",
    )
    with_gpu.unregister("c")
    with_gpu.unregister_cuda("r")
    assert (len(with_gpu.status()), len(with_gpu.cuda_status())) == (1, 1)
    with_gpu.unregister_all()
    with_gpu.unregister_cuda()
    assert (with_gpu.status(), with_gpu.cuda_status()) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", HANDLE, 1, 8), "'region name' is necessary to register cuda shared memory region"),
        (("d", b"short", 1, 8), "failed to register CUDA shared memory region 'd': invalid args"),
        (("d", HANDLE, -1, 8), "failed to register CUDA shared memory region 'd': invalid args"),
        (("d", HANDLE, 1, 0), "failed to register CUDA shared memory region 'd': invalid args"),
        (("d", HANDLE, 1, 65), "failed to register CUDA shared memory region 'd': invalid args"),
        (("d", HANDLE, 0, 8), "'d': invalid args (invalid device context)"),
        (("c", HANDLE, 1, 8), "shared memory region 'c' already in manager"),
    ],
)
def test_memory_of_gpus_that_cannot_be_is_refused(
    with_gpu: SharedMemory, driver: FakeDriver, arguments: tuple[str, bytes, int, int], message: str
) -> None:
    with_gpu.register_cuda("c", HANDLE, 1, 32)
    assert message in refusal(lambda: with_gpu.register_cuda(*arguments))[1]
    assert driver.open_count == 1


def test_a_copy_that_fails_is_the_requests_error(with_gpu: SharedMemory, driver: FakeDriver) -> None:
    with_gpu.register_cuda("c", HANDLE, 1, 32)
    driver.fails = True
    lease = RegionLease(with_gpu)
    assert "'c': an illegal memory access" in refusal(lambda: lease.input("c", 0, 8))[1]
    assert "Invalid offset" in refusal(lambda: lease.input("c", 32, 8))[1]


def test_there_is_no_memory_of_gpus(memory: SharedMemory, segment: Segment) -> None:
    memory.register("r", segment.name, 0, 16)
    assert memory.cuda_status() == []
    memory.unregister_cuda()
    memory.unregister_cuda("r")
    assert refusal(lambda: memory.register_cuda("c", HANDLE, 0, 16)) == (
        StatusCode.INVALID_ARG,
        "failed to register CUDA shared memory region: 'c', GPUs not supported",
    )
    assert refusal(lambda: memory.cuda_status("c")) == (
        StatusCode.NOT_FOUND,
        "Unable to find cuda shared memory region: 'c'",
    )
    assert refusal(lambda: memory.cuda_status("r")) == (
        StatusCode.NOT_FOUND,
        "The region named 'r' is registered as system shared memory, not CUDA shared memory",
    )


def test_clients_register_nothing_unless_they_are_allowed_to(segment: Segment) -> None:
    closed = SharedMemory(allows_clients=False)
    disabled = (
        StatusCode.UNSUPPORTED,
        "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
    )
    for action in (
        lambda: closed.register("r", segment.name, 0, 16),
        lambda: closed.register_cuda("r", HANDLE, 0, 16),
        lambda: closed.unregister("r"),
        closed.unregister_all,
        closed.unregister_cuda,
    ):
        assert refusal(action) == disabled
    assert closed.status() == []
