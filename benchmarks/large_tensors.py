"""How fast do tensors of 16 MB pass, over each protocol and in shared memory, and how much memory does one take?

An identity model in Python, served by both servers in turn; the client is `large_client.py`. Memory is what the server
and its processes hold at most while the clients run, less what they held before, for each client: in copies of the
tensor. The clients' own segments of shared memory, which a server maps, are not counted.

    python benchmarks/large_tensors.py [--repeat 5] [--seconds 3] [--clients 1 --clients 4] [--only http]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import defaultdict
from pathlib import Path
from statistics import median

from large_client import SIZE, WAYS
from models import write_identity_of
from servers import RunningServer, running, why_no_peer

CLIENT = Path(__file__).parent / "large_client.py"
GOAL_RATIO = 1.5
GOAL_COPIES = 3.0
_SAMPLE_S = 0.005
# How many tensors of each client lie in memory that is its own: one in and one out.
_MAPPED = {"memory": 2}

# By way and number of clients: round trips a second, and copies for each request.
Measurements = dict[tuple[str, int], list[tuple[float, float]]]


class PeakMemory:
    """The most that a server holds while the block runs, in MB; `grown` is that less what it held before."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._before = self._most = server.memory_mb()

    @property
    def grown(self) -> float:
        return self._most - self._before

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._has_ended.wait(_SAMPLE_S):
            self._most = max(self._most, self._server.memory_mb())


def measure(name: str, ways: list[str], clients: list[int], seconds: float, into: Measurements) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        write_identity_of(repository / "large", SIZE)
        for way in ways:
            for count in clients:
                # A server of its own each: what one measurement has left in allocators is not the next one's.
                with running(name, repository) as server:
                    _warm(server)
                    with PeakMemory(server) as memory:
                        rate = _client(way, server, count, seconds)
                copies = memory.grown * 1e6 / SIZE / count - _MAPPED.get(way, 0)
                into[way, count].append((rate, copies))
                print(
                    f"  {name:8} {way:7} {count} clients {rate:8.1f}/s {copies:6.2f} copies", file=sys.stderr
                )


def _warm(server: RunningServer) -> None:
    """Have a server load what it loads at its first request."""
    tensor = {"name": "INPUT", "shape": [1], "datatype": "FP32", "data": [1]}
    url = f"http://{server.http}/v2/models/large/infer"
    request = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode())
    for _ in range(20):
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()


def _client(way: str, server: RunningServer, clients: int, seconds: float) -> float:
    """What the client, a process of its own, has counted a second."""
    address = server.grpc if way == "grpc" else server.http
    arguments = [sys.executable, str(CLIENT), way, address, str(clients), str(seconds)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds * 10 + 120)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return float(done.stdout)


def print_table(measured: dict[str, Measurements]) -> None:
    names = list(measured)
    heads = "".join(f"{name:>10}/s{'copies':>8}" for name in names)
    print(f"\n{'16 MB there and back':26}{heads}   ratio (goal {GOAL_RATIO}; copies {GOAL_COPIES})")
    for way, count in measured[names[0]]:
        line = f"{way:12}{count} clients    "
        rates = []
        for name in names:
            rate, copies = (median(each) for each in zip(*measured[name][way, count], strict=True))
            rates.append(rate)
            line += f"{rate:12.1f}{copies:8.2f}"
        print(line + (f"{rates[0] / rates[1]:8.2f}" if len(rates) > 1 else ""))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5, help="medians of so many runs (default: 5)")
    parser.add_argument("--seconds", type=float, default=3, help="how long each measurement takes")
    parser.add_argument("--clients", type=int, action="append", help="1 and 4, unless given")
    parser.add_argument("--only", choices=list(WAYS), action="append", help="only this; may be given again")
    arguments = parser.parse_args()
    names = ["cantata", "triton"]
    if reason := why_no_peer():
        print(f"real Triton is skipped: {reason}", file=sys.stderr)
        names.remove("triton")
    measured: dict[str, Measurements] = {name: defaultdict(list) for name in names}
    for repetition in range(arguments.repeat):
        print(f"run {repetition + 1} of {arguments.repeat}", file=sys.stderr)
        for way in arguments.only or list(WAYS):
            for name in names:
                measure(name, [way], arguments.clients or [1, 4], arguments.seconds, measured[name])
    print_table(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
