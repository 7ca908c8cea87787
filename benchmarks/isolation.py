"""What does a process of its own cost a Python model, and how does it compare with real Triton's?

The same repository with its models on the server's threads, with each in a process, and in real Triton; and a model
that computes in pure Python with one process and with four.

    python benchmarks/isolation.py [--repeat 3] [--seconds 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from load import requests_per_second, tool_for
from models import ELEMENTS, write_pipelines, write_python_model
from servers import COMMANDS, Ports, ours, running, why_no_peer

from cantata import Server

MODELS = ("identity", "ensemble", "bls")
PROTOCOLS = ("grpc", "http")
CONCURRENCIES = (1, 16)
LARGE_BYTES = 16 << 20
INSTANCES = 4
PROCESSES = "cantata, processes"

_COMPUTES = """
import numpy as np

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        total = 0
        for number in range(200_000):
            total += number % 7
        array = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy() + np.float32(total)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array)])
"""
_LARGE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", request.inputs()[0].as_numpy())])
            for request in requests
        ]
"""
_LARGE_CONFIG = """backend: "python"
input [ { name: "INPUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""


def processes(repository: Path, ports: Ports) -> list[str]:
    return [*ours(repository, ports), "--backend-config=python,execution-isolation=process"]


def compare_servers(repeat: int, seconds: float) -> None:
    names = ["cantata", PROCESSES]
    if why_no_peer():
        print(f"without real Triton: {why_no_peer()}")
    else:
        names.append("triton")
    figures: dict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        write_pipelines(repository)
        for _ in range(repeat):
            for name in names:
                with running(name, repository) as server:
                    for model in MODELS:
                        for protocol in filter(tool_for, PROTOCOLS):
                            for concurrency in CONCURRENCIES:
                                rate = requests_per_second(server, protocol, model, concurrency, seconds)
                                figures[model, protocol, concurrency, name].append(rate)
    print(f"{'requests/s':<28}" + "".join(f"{name:>22}" for name in names))
    for model, protocol, concurrency in dict.fromkeys(key[:3] for key in figures):
        row = [median(figures[model, protocol, concurrency, name]) for name in names]
        print(f"{model:<12}{protocol:<8}{concurrency:>8}" + "".join(f"{rate:>22.0f}" for rate in row))


def measure_large_tensors(repeat: int) -> None:
    tensor = np.zeros(LARGE_BYTES // 4, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "large")
        (directory / "1").mkdir(parents=True)
        (directory / "1" / "model.py").write_text(_LARGE.lstrip())
        (directory / "config.pbtxt").write_text(_LARGE_CONFIG)
        with Server(folder, backend_config={"python": {"execution-isolation": "process"}}) as server:
            times = []
            for _ in range(10 * repeat):
                began = time.perf_counter()
                server.infer("large", {"INPUT": tensor})
                times.append(time.perf_counter() - began)
    print(f"{LARGE_BYTES >> 20} MB there and back, embedded: {median(times) * 1e3:.1f} ms")


def measure_parallelism(seconds: float) -> None:
    rates = []
    for count in (1, INSTANCES):
        with tempfile.TemporaryDirectory() as folder:
            group = f"instance_group {{ kind: KIND_CPU count: {count} }}\n"
            write_python_model(Path(folder, "computes"), _COMPUTES, group)
            with (
                Server(folder, backend_config={"python": {"execution-isolation": "process"}}) as server,
                ThreadPoolExecutor(8) as clients,
            ):
                rates.append(rate_of(server, clients, seconds))
    print(
        f"pure Python, 1 process: {rates[0]:.0f}/s, {INSTANCES}: {rates[1]:.0f}/s ({rates[1] / rates[0]:.2f} x)"
    )


def rate_of(server: Server, clients: ThreadPoolExecutor, seconds: float) -> float:
    """Requests a second of 8 clients."""
    tensor = np.zeros((1, ELEMENTS), np.float32)

    def ask(until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            server.infer("computes", {"INPUT": tensor})
            count += 1
        return count

    began = time.perf_counter()
    counts = list(clients.map(ask, [began + seconds] * 8))
    return sum(counts) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    COMMANDS[PROCESSES] = processes
    measure_large_tensors(options.repeat)
    measure_parallelism(options.seconds)
    compare_servers(options.repeat, options.seconds)


if __name__ == "__main__":
    main()
