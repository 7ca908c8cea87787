"""What the metrics tell of the machine, with a stand-in for NVIDIA's NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from cantata.runtime.observe.machine_metrics import GpuFigures, GpuReading, MachineFigures, Measured
from cantata.runtime.observe.metrics import MetricsText
from cantata.runtime.observe.metrics_options import MetricsOptions
from tests.unit.observe.test_metrics import scraped


class NVMLError(Exception):
    pass


class FakeNvml:
    """As the module `pynvml` of nvidia-ml-py: each GPU is a dictionary, and what it lacks it cannot tell."""

    NVMLError = NVMLError

    def __init__(self, *gpus: dict[str, object], has_driver: bool = True) -> None:
        self._gpus = gpus
        self._has_driver = has_driver

    def nvmlInit(self) -> None:
        if not self._has_driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, object]:
        return self._gpus[index]

    def __getattr__(self, name: str) -> object:
        def told(gpu: dict[str, object]) -> object:
            if name not in gpu:
                raise NVMLError("Not Supported")
            return gpu[name]

        return told


def gpu(uuid: str | bytes) -> dict[str, object]:
    return {
        "nvmlDeviceGetUUID": uuid,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=5),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=1 << 30, total=80 << 30, free=79 << 30),
        "nvmlDeviceGetPowerUsage": 70_500,
        "nvmlDeviceGetPowerManagementLimit": 700_000,
        "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
    }


def test_a_gpu_tells_of_itself_and_energy_is_counted_from_the_start() -> None:
    first = gpu("GPU-1")
    figures = GpuFigures(FakeNvml(first))
    first["nvmlDeviceGetTotalEnergyConsumption"] = 5_012_000
    assert figures.read() == [GpuReading("GPU-1", 0.37, 1 << 30, 80 << 30, 70.5, 700.0, 12.0)]


def test_what_a_gpu_cannot_tell_is_left_out() -> None:
    machine = MachineFigures(
        None, Measured(GpuFigures(FakeNvml(gpu("A"), {"nvmlDeviceGetUUID": b"B"})).read, 0), 0
    )
    a = (("gpu_uuid", "A"),)
    assert scraped(MetricsText(list, machine).render()) == {
        ("nv_gpu_utilization", a): 0.37,
        ("nv_gpu_memory_total_bytes", a): 80 << 30,
        ("nv_gpu_memory_used_bytes", a): 1 << 30,
        ("nv_gpu_power_usage", a): 70.5,
        ("nv_gpu_power_limit", a): 700,
        ("nv_energy_consumption", a): 0,
        ("nv_pinned_memory_pool_total_bytes", ()): 0,
        ("nv_pinned_memory_pool_used_bytes", ()): 0,
    }


@pytest.mark.parametrize(
    "module", [None, FakeNvml(gpu("A"), has_driver=False), FakeNvml()], ids=["package", "driver", "gpu"]
)
def test_without_the_package_the_driver_or_a_gpu_nothing_is_told(
    module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert GpuFigures.available() is None


def test_what_may_not_be_told_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu("A")))
    assert MachineFigures.opened(MetricsOptions()).gpus is not None
    forbidden = MachineFigures.opened(MetricsOptions(allow_cpu=False, allow_gpu=False))
    assert (forbidden.cpu, forbidden.gpus) == (None, None)


def test_the_machine_is_measured_once_in_an_interval() -> None:
    now_ns, count = 0, 0

    def measure() -> int:
        nonlocal count
        count += 1
        return count

    measured = Measured(measure, 2000, lambda: now_ns)
    assert [measured.value(), measured.value()] == [1, 1]
    now_ns = 1_999_999_999
    assert measured.value() == 1
    now_ns = 2_000_000_000
    assert [measured.value(), measured.value()] == [2, 2]


@pytest.mark.gpu
def test_a_real_gpu_tells_of_itself() -> None:
    pytest.importorskip("pynvml")
    figures = GpuFigures.available()
    if figures is None:
        pytest.skip("there is no NVIDIA GPU here")
    for reading in figures.read():
        assert reading.uuid.startswith(("GPU-", "MIG-"))
        assert reading.memory_total is not None
        assert reading.memory_used is not None
        assert 0 < reading.memory_used <= reading.memory_total
