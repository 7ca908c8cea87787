"""What the metrics tell of the machine: its processors, memory and GPUs, measured when they are asked for.

Owns where the figures come from: Linux's /proc, and NVIDIA's NVML through the `nvidia-ml-py` package where that is
installed. Knows no format of metrics. What is not there is not told of.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.observe.metrics_options import MetricsOptions

_log = logging.getLogger("cantata.metrics")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CpuReading:
    """How busy the processors were since the last reading, 0 to 1; and bytes of memory."""

    utilization: float
    memory_used: int
    memory_total: int


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU; None for what it does not tell. Power in watts, energy in joules since the server started."""

    uuid: str
    utilization: float | None
    memory_used: int | None
    memory_total: int | None
    power_usage: float | None
    power_limit: float | None
    energy: float | None


class Measured(Generic[T]):
    """What `measure` returned last, measured anew when that is older than `interval_ms`. For one thread at a time."""

    def __init__(
        self, measure: Callable[[], T], interval_ms: int, clock: Callable[[], int] = monotonic_ns
    ) -> None:
        self._measure = measure
        self._interval_ns = interval_ms * 1_000_000
        self._clock = clock
        self._value: T | None = None
        self._measured_ns = 0

    def value(self) -> T:
        now_ns = self._clock()
        if self._value is None or now_ns - self._measured_ns >= self._interval_ns:
            self._value = self._measure()
            self._measured_ns = now_ns
        return self._value


class CpuFigures:
    """How busy the machine's processors and memory are, from Linux's /proc."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._stat = proc / "stat"
        self._meminfo = proc / "meminfo"
        self._busy, self._total = self._processor_ticks()

    @staticmethod
    def available(proc: Path = Path("/proc")) -> CpuFigures | None:
        """The figures, or None on a system that does not have them."""
        return CpuFigures(proc) if (proc / "stat").is_file() and (proc / "meminfo").is_file() else None

    def read(self) -> CpuReading:
        """The figures now."""
        busy, total = self._processor_ticks()
        spent, passed = busy - self._busy, total - self._total
        self._busy, self._total = busy, total
        return CpuReading(min(1.0, max(0.0, spent / passed)) if passed > 0 else 0.0, *self._memory_bytes())

    def _memory_bytes(self) -> tuple[int, int]:
        """Memory in use, and all there is."""
        sizes = {
            name: int(value.split()[0]) * 1024
            for name, _, value in (line.partition(":") for line in self._meminfo.read_text().splitlines())
        }
        return sizes["MemTotal"] - sizes["MemAvailable"], sizes["MemTotal"]

    def _processor_ticks(self) -> tuple[int, int]:
        """Ticks spent working, and all ticks, of all processors together."""
        first_line = self._stat.read_text().split("\n", 1)[0]
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted within user.
        ticks = [int(field) for field in first_line.split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


class GpuFigures:
    """The GPUs that NVML knows. `nvml` is the package's module; it stays open for as long as the process lives."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._uuids = [_text(nvml.nvmlDeviceGetUUID(device)) for device in self._devices]
        self._first_energy = [self._energy_mj(device) for device in self._devices]

    @staticmethod
    def available() -> GpuFigures | None:
        """The figures; None without the package, the driver or a GPU."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return None
        try:
            nvml.nvmlInit()
            found = GpuFigures(nvml)
        except nvml.NVMLError as error:
            _log.info("there are no metrics of GPUs: %s", error)
            return None
        return found if found._devices else None

    def read(self) -> list[GpuReading]:
        """The figures now, one for each GPU."""
        return [self._read(index) for index in range(len(self._devices))]

    def _read(self, index: int) -> GpuReading:
        nvml, device = self._nvml, self._devices[index]
        rates = self._told(lambda: nvml.nvmlDeviceGetUtilizationRates(device))
        memory = self._told(lambda: nvml.nvmlDeviceGetMemoryInfo(device))
        usage_mw = self._told(lambda: nvml.nvmlDeviceGetPowerUsage(device))
        limit_mw = self._told(lambda: nvml.nvmlDeviceGetPowerManagementLimit(device))
        energy_mj, first_mj = self._energy_mj(device), self._first_energy[index]
        return GpuReading(
            self._uuids[index],
            None if rates is None else rates.gpu / 100,
            None if memory is None else int(memory.used),
            None if memory is None else int(memory.total),
            None if usage_mw is None else usage_mw / 1000,
            None if limit_mw is None else limit_mw / 1000,
            None if energy_mj is None or first_mj is None else (energy_mj - first_mj) / 1000,
        )

    def _energy_mj(self, device: Any) -> int | None:
        told: int | None = self._told(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(device))
        return told

    def _told(self, ask: Callable[[], Any]) -> Any:
        """What the GPU answers; None where it cannot, as some cannot tell of their power."""
        try:
            return ask()
        except self._nvml.NVMLError:
            return None


@dataclass(frozen=True, slots=True)
class MachineFigures:
    """What is told of the machine: None stands for what is not."""

    cpu: Measured[CpuReading] | None
    gpus: Measured[list[GpuReading]] | None
    pinned_memory_pool_bytes: int

    @staticmethod
    def opened(options: MetricsOptions) -> MachineFigures:
        """What the options allow, as far as it is there."""
        cpu = CpuFigures.available() if options.allow_cpu else None
        gpus = GpuFigures.available() if options.allow_gpu else None
        return MachineFigures(
            None if cpu is None else Measured(cpu.read, options.interval_ms),
            None if gpus is None else Measured(gpus.read, options.interval_ms),
            options.pinned_memory_pool_bytes,
        )


def _text(value: str | bytes) -> str:
    """Older packages answer in bytes."""
    return value if isinstance(value, str) else value.decode()
