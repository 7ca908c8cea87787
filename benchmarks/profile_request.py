"""Where do the microseconds of one request go, stage by stage, through each front-end?

Runs the server in this process and a stock client in another. First without probes, for what a request costs in all:
CPU time of the process, by request. Then with a probe around each stage's functions: CPU time inside a function, less
what its own probed callees took, less what the probes themselves cost. What is left of the whole is spent outside
Python functions of ours: in the event loop, system calls and the hand-over between threads.

    python benchmarks/profile_request.py [--model ensemble] [--clients 4] [--calls 4000]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import models

from cantata import Server
from cantata.bls.instance import PythonInstance
from cantata.runtime.frontends.grpc import unary
from cantata.runtime.frontends.grpc.call import Call
from cantata.runtime.frontends.grpc.connection import Connection as GrpcConnection
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.frontends.http import infer
from cantata.runtime.frontends.http.connection import Connection, Exchange
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.ensemble_scheduler import EnsembleScheduler
from cantata.runtime.scheduling.model_scheduler import ModelScheduler

CALLS_FILE = Path(__file__).with_name("calls.py")
SWITCH_INTERVAL_S = 0.0005
WARM_UP_CALLS = 500


class Probe(NamedTuple):
    """A function that is part of a stage, by the class or module that callers find it in."""

    stage: str
    owner: Any
    name: str


EXECUTION = [
    Probe("validate, find the model's queue", ModelVersion, "accept"),
    Probe("enqueue", ModelScheduler, "enqueue"),
    Probe("ensemble: carry out the plan", EnsembleScheduler, "enqueue"),
    Probe("form the batch", ModelScheduler, "run_instance"),
    Probe("execute model.py", PythonInstance, "execute"),
    Probe("keep the statistics, free the instance", ModelScheduler, "_end_batch"),
    Probe("deliver", InferenceRequest, "respond"),
]
STAGES = {
    "grpc": [
        Probe("read frames", GrpcConnection, "buffer_updated"),
        Probe("take the message", unary.InferCall, "on_message"),
        Probe("decode", unary, "decode_infer_message"),
        Probe("decode", unary, "build_request"),
        *EXECUTION,
        Probe("encode", unary, "encode_infer_response"),
        Probe("frame the answer", Call, "answer"),
        Probe("write", GrpcConnection, "flush"),
    ],
    "http": [
        Probe("parse HTTP", Connection, "data_received"),
        Probe("submit what has arrived", infer.InferRoute, "_submit_arrived"),
        Probe("decode", infer, "decode_infer_request"),
        *EXECUTION,
        Probe("encode", infer, "encode_infer_response"),
        Probe("send", Exchange, "send"),
    ],
}


class Stopwatch:
    """CPU time by stage, each function's own: what it spends in other probed functions is theirs."""

    def __init__(self) -> None:
        self.own_ns: defaultdict[str, int] = defaultdict(int)
        self.calls: defaultdict[str, int] = defaultdict(int)
        # Of each thread: for every probed function that it is in, what its probed callees have taken so far.
        self._thread = threading.local()

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""
        thread, own_ns, calls, now_ns = self._thread, self.own_ns, self.calls, time.thread_time_ns

        def timed(*arguments: Any, **named: Any) -> Any:
            try:
                inner = thread.inner
            except AttributeError:
                inner = thread.inner = [0]
            inner.append(0)
            started = now_ns()
            try:
                return function(*arguments, **named)
            finally:
                taken = now_ns() - started
                own_ns[stage] += taken - inner.pop()
                calls[stage] += 1
                inner[-1] += taken

        return timed

    def clear(self) -> None:
        self.own_ns.clear()
        self.calls.clear()


def probe_cost_ns() -> tuple[float, float]:
    """What a probe adds to the time of its own stage, and to that of the stage around it."""
    stopwatch = Stopwatch()
    rounds = 20_000
    empty = stopwatch.around("inner", lambda: None)
    started = time.thread_time_ns()
    for _ in range(rounds):
        empty()
    whole = (time.thread_time_ns() - started) / rounds
    inside = stopwatch.own_ns["inner"] / rounds
    return inside, whole - inside


def call_from_outside(protocol: str, url: str, model: str, clients: int, calls: int) -> None:
    """`calls` requests in all, from `clients` connections of another process."""
    command = [sys.executable, CALLS_FILE, protocol, url, model]
    load = ["--clients", str(clients), "--calls", str(calls // clients)]
    subprocess.run([*command, *load], check=True, stdout=subprocess.DEVNULL)


def cpu_us() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) * 1e6


def profile(protocol: str, url: str, model: str, clients: int, calls: int) -> None:
    """Print the table of one front-end."""
    calls -= calls % clients
    call_from_outside(protocol, url, model, clients, WARM_UP_CALLS)
    before = cpu_us()
    call_from_outside(protocol, url, model, clients, calls)
    whole_us = (cpu_us() - before) / calls
    stopwatch = Stopwatch()
    with probes(STAGES[protocol], stopwatch):
        call_from_outside(protocol, url, model, clients, WARM_UP_CALLS)
        stopwatch.clear()
        call_from_outside(protocol, url, model, clients, calls)
    print(f"\n{model} over {protocol}, {clients} client{'s' if clients > 1 else ''}: microseconds a request")
    inside_ns, outside_ns = probe_cost_ns()
    known_us = 0.0
    for stage in dict.fromkeys(probe.stage for probe in STAGES[protocol]):
        if not (count := stopwatch.calls[stage]):
            continue
        # Each stage pays for its own probes; those of its callees are paid for on average over all stages.
        own_us = (stopwatch.own_ns[stage] - count * (inside_ns + outside_ns)) / calls / 1e3
        known_us += own_us
        print(f"  {stage:44}{own_us:8.1f}   {count / calls:5.2f} times")
    print(f"  {'event loop, system calls, threads':44}{whole_us - known_us:8.1f}")
    print(f"  {'CPU time in all':44}{whole_us:8.1f}", flush=True)


class probes:
    """Within the block, each probed function is timed."""

    def __init__(self, stages: list[Probe], stopwatch: Stopwatch) -> None:
        self._originals = [(probe, getattr(probe.owner, probe.name)) for probe in stages]
        self._stopwatch = stopwatch

    def __enter__(self) -> None:
        for probe, original in self._originals:
            setattr(probe.owner, probe.name, self._stopwatch.around(probe.stage, original))

    def __exit__(self, *_: object) -> None:
        for probe, original in self._originals:
            setattr(probe.owner, probe.name, original)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("identity", "ensemble", "bls"), default="identity")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--calls", type=int, default=4_000)
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        models.write_pipelines(repository)
        with Server(repository) as server:
            grpc = GrpcServer(server.core, GrpcOptions(address="127.0.0.1", port=0))
            http = HttpServer(server.core, HttpOptions(address="127.0.0.1", port=0, metrics_port=None))
            grpc.start()
            http.start()
            try:
                for protocol, port in (("grpc", grpc.port), ("http", http.port)):
                    target = (protocol, f"127.0.0.1:{port}", arguments.model)
                    profile(*target, arguments.clients, arguments.calls)
            finally:
                grpc.close()
                http.close()


if __name__ == "__main__":
    main()
