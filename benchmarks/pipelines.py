"""How does cantata compare with real Triton on the same pipelines?

Serves one generated repository with each server in turn and drives both with the same clients: perf_analyzer for
gRPC, wrk for HTTP. Repetitions alternate between the servers, so that both meet the same minutes of the machine.

    python benchmarks/pipelines.py [--repeat 3] [--seconds 3] [--only ensemble]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

from load import LoadFailed, requests_per_second, tool_for
from models import write_identities, write_pipelines
from servers import running, why_no_peer

MODELS = ("identity", "ensemble", "bls")
# What each can be driven by.
CLIENTS = {"grpc": ("perf_analyzer",), "http": ("wrk", "perf_analyzer")}
CONCURRENCIES = (1, 16)
PYTHON_MODELS = 5
# How long a server is left alone before its memory is read.
SETTLING_S = 2.0


class Row(NamedTuple):
    """One line of the table."""

    name: str
    protocol: str
    concurrency: int


READY = Row(f"ready, {PYTHON_MODELS} python models", "", 0)
MEMORY = Row(f"idle memory, {PYTHON_MODELS} python models", "", 0)
UNITS = {READY: "s", MEMORY: "MB"}

Measurements = dict[Row, list[float]]


def goal_of(row: Row) -> str:
    """What the ratio, ours to the peer's, should reach."""
    if row == READY:
        return "<= 0.5"
    if row == MEMORY:
        return "ours <= 100 MB"
    if row.name == "bls":
        return ">= 3" if row.concurrency == 1 else ">= 5"
    if row.name == "ensemble":
        return ">= 1.8" if (row.protocol, row.concurrency) == ("grpc", 1) else ">= 2"
    return ">= 1"


def measure_throughput(server_name: str, rows: list[Row], seconds: float, into: Measurements) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        write_pipelines(repository)
        with running(server_name, repository) as server:
            for row in rows:
                target = (server, row.protocol, row.name, row.concurrency)
                requests_per_second(*target, seconds=1)
                figure = requests_per_second(*target, seconds)
                into[row].append(figure)
                where = f"{row.name} {row.protocol} concurrency {row.concurrency}"
                print(f"  {server_name:8} {where:32} {figure:10.0f} requests/s", file=sys.stderr, flush=True)


def measure_idle(server_name: str, into: Measurements) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        write_identities(repository, PYTHON_MODELS)
        with running(server_name, repository) as server:
            time.sleep(SETTLING_S)
            into[READY].append(server.ready_s)
            into[MEMORY].append(server.memory_mb())
            figures = f"ready after {server.ready_s:.2f} s, {server.memory_mb():.0f} MB"
            print(f"  {server_name:8} {figures}", file=sys.stderr, flush=True)


def print_table(rows: list[Row], measured: dict[str, Measurements]) -> None:
    names = list(measured)
    print(f"\n{'':32}{'protocol':>9}{'clients':>8}" + "".join(f"{name:>12}" for name in names), end="")
    print(f"{'ratio':>8}  goal" if len(names) > 1 else "")
    for row in rows:
        figures = [median(measured[name][row]) for name in names]
        digits = 2 if row == READY else 0
        line = (
            f"{row.name + ' ' + UNITS.get(row, 'requests/s'):32}{row.protocol:>9}{row.concurrency or '':>8}"
        )
        line += "".join(f"{figure:12,.{digits}f}" for figure in figures)
        print(line + (f"{figures[0] / figures[1]:8.2f}  {goal_of(row)}" if len(names) > 1 else ""))


def rows_of(models: list[str]) -> list[Row]:
    """What can be measured here, with a word on what cannot."""
    protocols = []
    for protocol in CLIENTS:
        if tool := tool_for(protocol):
            print(f"{protocol} is driven by {tool}", file=sys.stderr)
            protocols.append(protocol)
        else:
            print(f"{protocol} is skipped: {' and '.join(CLIENTS[protocol])} not found", file=sys.stderr)
    return [
        Row(model, protocol, concurrency)
        for model in models
        for protocol in protocols
        for concurrency in CONCURRENCIES
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="medians of so many runs (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=3, help="how long each measurement takes (default: 3)"
    )
    parser.add_argument(
        "--only", choices=MODELS, action="append", help="only this pipeline; may be given again"
    )
    arguments = parser.parse_args()
    servers = ["cantata", "triton"]
    if reason := why_no_peer():
        print(f"real Triton is skipped: {reason}", file=sys.stderr)
        servers.remove("triton")
    rows = rows_of(arguments.only or list(MODELS))
    measured: dict[str, Measurements] = {name: defaultdict(list) for name in servers}
    try:
        for repetition in range(arguments.repeat):
            print(f"run {repetition + 1} of {arguments.repeat}", file=sys.stderr)
            for name in servers:
                measure_idle(name, measured[name])
                measure_throughput(name, rows, arguments.seconds, measured[name])
    except LoadFailed as error:
        print(error, file=sys.stderr)
        return 1
    print_table([*rows, READY, MEMORY], measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
