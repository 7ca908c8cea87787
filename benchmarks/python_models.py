"""How do models that call others, and models that answer many times, compare with real Triton's?

Serves one generated repository with each server in turn: a chain of three identity models as an ensemble and as BLS
calls, a decoupled model over one and four streams, and 16 MB tensors through an instance in a process of its own.
What a process of its own costs a model on the server's threads is `isolation.py`.

    python benchmarks/python_models.py [--repeat 3] [--seconds 3] [--only chain|decoupled|large]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from load import LoadFailed, requests_per_second, responses_per_second, tool_for
from models import write_large, write_pipelines, write_repeat
from servers import RunningServer, running, why_no_peer

QUESTIONS = ("chain", "decoupled", "large")
CONCURRENCIES = (1, 16)
STREAMS = (1, 4)
RESPONSES = 100
LARGE_BYTES = 16 << 20
CLIENT = Path(__file__).parent / "large_client.py"

# By the name of the row, the figures of each run.
Measurements = dict[str, list[float]]

GOALS = {
    "bls, 3 calls, 1 client": ">= 3",
    "bls, 3 calls, 16 clients": ">= 8",
    f"decoupled, 1 stream of {RESPONSES} a request": ">= 3",
    f"decoupled, 4 streams of {RESPONSES} a request": ">= 3",
    "16 MB through a process": ">= 1",
}


def measure_chain(server: RunningServer, seconds: float, into: Measurements) -> None:
    for model, name in (("bls", "bls, 3 calls"), ("ensemble", "ensemble, 3 steps")):
        for concurrency in CONCURRENCIES:
            requests_per_second(server, "grpc", model, concurrency, seconds=1)
            rate = requests_per_second(server, "grpc", model, concurrency, seconds)
            into[f"{name}, {concurrency} client{'s' * (concurrency > 1)}"].append(rate)


def measure_decoupled(server: RunningServer, seconds: float, into: Measurements) -> None:
    for streams in STREAMS:
        rate = responses_per_second(server, "repeat", streams, RESPONSES, seconds)
        into[f"decoupled, {streams} stream{'s' * (streams > 1)} of {RESPONSES} a request"].append(rate)


def measure_large(server: RunningServer, seconds: float, into: Measurements) -> None:
    into["16 MB through a process"].append(_large_tensors_per_second(server, seconds))


MEASURES: dict[str, Callable[[RunningServer, float, Measurements], None]] = {
    "chain": measure_chain,
    "decoupled": measure_decoupled,
    "large": measure_large,
}


def _large_tensors_per_second(server: RunningServer, seconds: float) -> float:
    """What the client, a process of its own, has counted a second."""
    arguments = ["grpc", server.grpc, "1", str(seconds)]
    done = subprocess.run(
        [sys.executable, str(CLIENT), *arguments], capture_output=True, text=True, timeout=seconds * 5 + 60
    )
    if done.returncode != 0:
        raise LoadFailed(done.stdout + done.stderr)
    return float(done.stdout)


def measure(name: str, questions: list[str], seconds: float, into: Measurements) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        write_pipelines(repository)
        write_repeat(repository / "repeat")
        write_large(repository / "large", LARGE_BYTES)
        with running(name, repository) as server:
            for question in questions:
                MEASURES[question](server, seconds, into)
    for row, figures in into.items():
        print(f"  {name:8} {row:45} {figures[-1]:10,.1f}", file=sys.stderr, flush=True)


def print_table(measured: dict[str, Measurements]) -> None:
    names = list(measured)
    print(
        f"\n{'a second':45}"
        + "".join(f"{name:>12}" for name in names)
        + ("   ratio  goal" * (len(names) > 1))
    )
    for row in measured[names[0]]:
        figures = [median(measured[name][row]) for name in names]
        line = f"{row:45}" + "".join(f"{figure:12,.1f}" for figure in figures)
        print(line + (f"{figures[0] / figures[1]:8.2f}  {GOALS.get(row, '')}" if len(names) > 1 else ""))
    ours = measured["cantata"]
    for concurrency in ("1 client", "16 clients"):
        if f"bls, 3 calls, {concurrency}" in ours:
            bls, ensemble = (
                median(ours[f"{name}, {concurrency}"]) for name in ("bls, 3 calls", "ensemble, 3 steps")
            )
            print(f"bls to ensemble, {concurrency}: {bls / ensemble:.2f}  (goal: 0.75 to 1.25)")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="medians of so many runs (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=3, help="how long each measurement takes (default: 3)"
    )
    parser.add_argument("--only", choices=QUESTIONS, action="append", help="only this; may be given again")
    arguments = parser.parse_args()
    servers = ["cantata", "triton"]
    if reason := why_no_peer():
        print(f"real Triton is skipped: {reason}", file=sys.stderr)
        servers.remove("triton")
    questions: list[str] = arguments.only or list(QUESTIONS)
    if tool_for("grpc") is None:
        print("only large tensors are measured: perf_analyzer is not installed", file=sys.stderr)
        questions = [question for question in questions if question == "large"]
    if not questions:
        return 1
    measured: dict[str, Measurements] = {name: defaultdict(list) for name in servers}
    try:
        for repetition in range(arguments.repeat):
            print(f"run {repetition + 1} of {arguments.repeat}", file=sys.stderr)
            for name in servers:
                measure(name, questions, arguments.seconds, measured[name])
    except LoadFailed as error:
        print(error, file=sys.stderr)
        return 1
    print_table(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
