"""What do statistics and metrics cost a request, and what does its own timeline?

Serves an identity model and an ensemble of three over gRPC and HTTP, and prints the server's CPU microseconds a
request: with all counting as it is, with none of it, and with a timeline asked for. The client is another process, and
not in the figures. The ways take turns in short rounds, and medians are told: a busy machine disturbs all of them
alike. Ends with status 1 when counting costs more than the bound.

    python benchmarks/observing.py [--bound 3] [--rounds 100]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models import ELEMENTS, write_pipelines

from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.observe.phases import EnsembleTimes
from cantata.runtime.observe.statistics import StatisticsCounter
from cantata.runtime.options import ServerOptions
from cantata.runtime.scheduling.ensemble_flight import StepSender
from cantata.runtime.server import Server

REQUESTS = 100
COUNTING = (
    (StatisticsCounter, "count_batch"),
    (EnsembleTimes, "count"),
)
# Sends as many requests to a model as each line of its input says, one after the other.
CLIENT = f"""
import importlib, sys
import numpy as np
api = importlib.import_module("tritonclient." + sys.argv[1])
client = api.InferenceServerClient("127.0.0.1:" + sys.argv[2])
tensor = api.InferInput("INPUT", [1, {ELEMENTS}], "FP32")
tensor.set_data_from_numpy(np.zeros((1, {ELEMENTS}), np.float32))
for line in sys.stdin:
    model, count, asks = line.split()
    parameters = {{"cantata_timeline": True}} if asks == "True" else None
    for _ in range(int(count)):
        client.infer(model, [tensor], parameters=parameters)
    print("done", flush=True)
"""


class Client:
    """A process that asks one protocol's port."""

    def __init__(self, protocol: str, port: int) -> None:
        command = [sys.executable, "-c", CLIENT, protocol, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def cpu_us(self, model: str, *, asks: bool = False) -> float:
        """The server's CPU time for one request, which `asks` for its timeline or not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        start = time.process_time_ns()
        self._process.stdin.write(f"{model} {REQUESTS} {asks}\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the client has failed")
        return (time.process_time_ns() - start) / REQUESTS / 1000

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def without_counting() -> Iterator[None]:
    """Inside the block nothing is counted, and no moment of a step is kept."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in COUNTING]
    send = StepSender.send
    for owner, name in COUNTING:
        setattr(owner, name, _nothing)
    StepSender.send = _send_on  # type: ignore[method-assign]
    try:
        yield
    finally:
        for owner, name, method in kept:
            setattr(owner, name, method)
        StepSender.send = send  # type: ignore[method-assign]


def _nothing(*_: object, **__: object) -> None:
    """Counts nothing."""


def _send_on(self: Any, response: Any, final: bool) -> None:
    run_step = self._run_step
    if final:
        self.request = self._run_step = self.times = None
    self._flight.step_answered(self, run_step, response, final, self.received_ns)


def measure(client: Client, model: str, rounds: int) -> dict[str, float]:
    """The medians by way; of the cost in percent, the median over rounds that follow each other."""
    counted, uncounted, asked, costs = [], [], [], []
    for _ in range(5):
        # Until its instances are known to be quick.
        client.cpu_us(model)
    for _ in range(rounds):
        with without_counting():
            before = client.cpu_us(model)
        as_it_is = (client.cpu_us(model) + client.cpu_us(model)) / 2
        with without_counting():
            after = client.cpu_us(model)
        counted.append(as_it_is)
        uncounted.append((before + after) / 2)
        costs.append(100 * (as_it_is / uncounted[-1] - 1))
        asked.append(client.cpu_us(model, asks=True))
    parts = {"counted": counted, "not counted": uncounted, "timeline": asked, "cost": costs}
    return {name: statistics.median(values) for name, values in parts.items()}


@contextmanager
def clients() -> Iterator[dict[str, Client]]:
    """A server's, by protocol."""
    with tempfile.TemporaryDirectory() as directory:
        write_pipelines(Path(directory))
        server = Server(ServerOptions(model_repository=(Path(directory),)))
        server.start()
        http = HttpServer(server, HttpOptions(address="127.0.0.1", port=0))
        grpc = GrpcServer(server, GrpcOptions(address="127.0.0.1", port=0))
        http.start()
        grpc.start()
        assert http.port is not None
        made = {"grpc": Client("grpc", grpc.port), "http": Client("http", http.port)}
        try:
            yield made
        finally:
            for client in made.values():
                client.close()
            grpc.close()
            server.close()
            http.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bound", type=float, default=3.0, help="percent that counting may cost (default 3)")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    worst = 0.0
    print(f"{'CPU us a request':18} {'counted':>10} {'not counted':>12} {'cost':>7} {'timeline':>10}")
    with clients() as served:
        for protocol, client in served.items():
            for model in ("identity", "ensemble"):
                figures = measure(client, model, arguments.rounds)
                worst = max(worst, figures["cost"])
                times = f"{figures['counted']:10.1f} {figures['not counted']:12.1f}"
                name = f"{protocol} {model}"
                print(f"{name:18} {times} {figures['cost']:6.1f}% {figures['timeline']:10.1f}", flush=True)
    return worst > arguments.bound


if __name__ == "__main__":
    sys.exit(main())
