"""Does the server stand ten times the load that it can carry?

A model takes 200 ms for each request of 200 KB. First its capacity is measured, with a few clients that each wait for
their answer. Then requests come at ten times that rate for some minutes, with a queue policy that rejects what has
waited for a second, and a budget of bytes (`--max-queue-bytes`). Printed for each protocol: answers a second beside
the capacity (goal: within 10%), the 99th percentile of the answered requests' latency (goal: the queue's timeout and
one execution, with 20% for a client on the same processors), and by how much the server's memory grew at most (goal:
the budget, and 16 MB for hundreds of connections and what is on its way).

    python benchmarks/overload.py [--minutes 5] [--protocol http|grpc]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from servers import RunningServer, running

TIMES = 10
SIZE = 200_000
EXECUTION_MS = 200
TIMEOUT_MS = 1_000
BUDGET = 8_000_000
CAPACITY_S = 10.0
LARGEST_P99_MS = 1.2 * (TIMEOUT_MS + EXECUTION_MS)
SMALLEST_SHARE = 0.9
LARGEST_GROWTH_MB = BUDGET / 1e6 + 16

MODEL = f"""
import time

import numpy as np

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep({EXECUTION_MS / 1000})
        size = np.array([[0]], np.int32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", size)]) for _ in requests]
"""

CONFIG = f"""
backend: "python"
max_batch_size: 1
input [ {{ name: "INPUT" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] }} ]
dynamic_batching {{
  default_queue_policy {{ timeout_action: REJECT default_timeout_microseconds: {TIMEOUT_MS * 1000} }}
}}
"""


def client(server: RunningServer, protocol: str, rate: float, seconds: float) -> list[str]:
    address = {"http": server.http, "grpc": server.grpc}[protocol]
    script = Path(__file__).with_name("overload_client.py")
    return [sys.executable, str(script), protocol, address, "slow", str(SIZE), str(rate), str(seconds)]


def measured(
    server: RunningServer, protocol: str, rate: float, seconds: float
) -> tuple[dict[str, Any], float]:
    """The client's figures, and the most memory that the server had meanwhile."""
    most_mb = server.memory_mb()
    with subprocess.Popen(
        client(server, protocol, rate, seconds), stdout=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            most_mb = max(most_mb, server.memory_mb())
            time.sleep(0.05)
        assert process.stdout is not None
        return json.loads(process.stdout.read()), most_mb


def overload(protocol: str, seconds: float) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "slow")
        (directory / "1").mkdir(parents=True)
        (directory / "config.pbtxt").write_text(CONFIG)
        (directory / "1" / "model.py").write_text(MODEL.lstrip())
        with running("cantata", Path(folder), [f"--max-queue-bytes={BUDGET}"]) as server:
            calm, _ = measured(server, protocol, 0, CAPACITY_S)
            capacity = calm["answered_per_s"]
            before_mb = server.memory_mb()
            figures, most_mb = measured(server, protocol, TIMES * capacity, seconds)
    share, p99_ms = figures["answered_per_s"] / capacity, figures["answered_p99_ms"]
    growth_mb = most_mb - before_mb
    print(
        f"{protocol}: capacity {capacity:.1f}/s; sent {figures['sent_per_s']:.1f}/s for {seconds:.0f} s: answered "
        f"{figures['answered_per_s']:.1f}/s ({share:.0%}), p99 {p99_ms:.0f} ms; refused {figures['refused']}, p99 "
        f"{figures['refused_p99_ms']:.0f} ms; failed {figures['failed'] or 'none'}; memory {before_mb:.0f} MB, at most "
        f"{growth_mb:+.0f} MB (budget {BUDGET / 1e6:.0f} MB)",
        flush=True,
    )
    is_bounded = p99_ms <= LARGEST_P99_MS and growth_mb <= LARGEST_GROWTH_MB
    return share >= SMALLEST_SHARE and is_bounded and not figures["failed"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--protocol", choices=("http", "grpc"))
    arguments = parser.parse_args()
    protocols = (arguments.protocol,) if arguments.protocol else ("http", "grpc")
    results = [overload(protocol, arguments.minutes * 60) for protocol in protocols]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
