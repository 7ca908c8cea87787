"""Stock clients that call one model again and again; run as a program, the load in a process of its own.

    python benchmarks/calls.py grpc localhost:8001 identity --calls 1000 --clients 4

Owns the tritonclient calls of the benchmarks. Prints nothing but the median latency, in microseconds.
"""

from __future__ import annotations

import argparse
import importlib
import threading
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from models import ELEMENTS


def caller(protocol: str, url: str, model: str) -> Callable[[], None]:
    """A function that sends one request over a connection of its own and checks that it was answered."""
    api = importlib.import_module(f"tritonclient.{protocol}")
    client = api.InferenceServerClient(url)
    tensor = api.InferInput("INPUT", [1, ELEMENTS], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, ELEMENTS), np.float32))
    wanted = [api.InferRequestedOutput("OUTPUT")]

    def call() -> None:
        assert client.infer(model, [tensor], outputs=wanted).as_numpy("OUTPUT").shape == (1, ELEMENTS)

    return call


def latencies_us(call: Callable[[], object], calls: int, warm_up: int = 200) -> list[float]:
    """How long each of `calls` took, after `warm_up` that are not counted."""
    for _ in range(warm_up):
        call()
    taken = []
    for _ in range(calls):
        started = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - started) / 1e3)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", choices=("grpc", "http"))
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--calls", type=int, default=1_000, help="of each client")
    parser.add_argument("--clients", type=int, default=1)
    arguments = parser.parse_args()
    taken: list[float] = []

    def run_client() -> None:
        call = caller(arguments.protocol, arguments.url, arguments.model)
        taken.extend(latencies_us(call, arguments.calls, warm_up=0))

    threads = [threading.Thread(target=run_client) for _ in range(arguments.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{median(taken):.1f}")


if __name__ == "__main__":
    main()
