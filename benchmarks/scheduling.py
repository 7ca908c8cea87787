"""How do batches, latency and throughput compare with real Triton's, for each way to schedule?

Serves one generated repository with each server in turn and drives both with the same clients: perf_analyzer for
dynamic batching and for sequences, `priority_client.py` for two classes of clients that together send twice what the
model can do. Repetitions alternate between the servers. Batches are those of the servers' own statistics; CPU time is
of the server and all its processes.

    python benchmarks/scheduling.py [--repeat 3] [--seconds 3] [--only dynamic] [--rows PATTERN]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from load import LoadFailed, analyze, perf_analyzer
from models import ELEMENTS
from servers import RunningServer, running, why_no_peer

QUESTIONS = ("dynamic", "direct", "oldest", "priorities")
# How long the model takes for a batch, of any size: as an accelerator would, it leaves the processor alone meanwhile.
COSTS_MS = {"quick": 0.0, "2 ms": 2.0}
MAX_BATCH_SIZE = 16
DYNAMIC_CLIENTS = 32
DYNAMIC = {
    "no delay": "",
    "delay 100 us": "max_queue_delay_microseconds: 100",
    "delay 1 ms": "max_queue_delay_microseconds: 1000",
    "delay 5 ms": "max_queue_delay_microseconds: 5000",
    "preferred 4, 8": "preferred_batch_size: [ 4, 8 ]",
    "preferred 8, delay 1 ms": "preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 1000",
}
SEQUENCES = (4, 64)
ATTEMPTS = 3
STRATEGIES = {"direct": "direct { }", "oldest": "oldest { max_candidate_sequences: 64 }"}
OVERLOAD_COST_MS = 5.0
OVERLOAD_BATCH_SIZE = 2
# Twice what the model can do, a quarter of it urgent.
OVERLOAD_RATE = 2 * OVERLOAD_BATCH_SIZE * 1000 / OVERLOAD_COST_MS
PRIORITY_CLIENT = Path(__file__).parent / "priority_client.py"

_MODEL = """
import json
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.seconds = float(parameters["MILLISECONDS"]["string_value"]) / 1000

    def execute(self, requests):
        if self.seconds:
            time.sleep(self.seconds)
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        array = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array)])
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One model and its load; `clients` 0 is the overload of two classes."""

    question: str
    name: str
    cost_ms: float
    scheduling: str
    clients: int
    max_batch_size: int = MAX_BATCH_SIZE

    @property
    def model(self) -> str:
        return "".join(letter if letter.isalnum() else "_" for letter in f"{self.question} {self.name}")


class Figures(NamedTuple):
    """What one measurement found; `p99_ms` is of the urgent class where there are two."""

    throughput: float
    p99_ms: float
    mean_batch: float
    cpu_us: float


# By row, the figures of each run.
Measurements = dict[Row, list[Figures]]


def all_rows() -> list[Row]:
    rows: list[Row] = []
    for cost, cost_ms in COSTS_MS.items():
        for name, fields in DYNAMIC.items():
            batching = f"dynamic_batching {{ {fields} }}"
            rows.append(Row("dynamic", f"{cost}, {name}", cost_ms, batching, DYNAMIC_CLIENTS))
        for strategy, fields in STRATEGIES.items():
            # Long enough for clients that the machine does not let run.
            idle = "max_sequence_idle_microseconds: 10000000"
            batching = f"sequence_batching {{ {fields} {idle} {_controls()} }}"
            rows += [
                Row(strategy, f"{cost}, {count} sequences", cost_ms, batching, count) for count in SEQUENCES
            ]
    policy = "default_queue_policy { max_queue_size: 64 }"
    levels = f"dynamic_batching {{ priority_levels: 2 default_priority_level: 2 {policy} }}"
    rows.append(Row("priorities", "5 ms, twice the load", OVERLOAD_COST_MS, levels, 0, OVERLOAD_BATCH_SIZE))
    return sorted(rows, key=lambda row: QUESTIONS.index(row.question))


def _controls() -> str:
    kinds = ("START", "END", "READY")
    return " ".join(
        f'control_input {{ name: "{kind}" control {{ kind: CONTROL_SEQUENCE_{kind} int32_false_true: [ 0, 1 ] }} }}'
        for kind in kinds
    )


def write_model(repository: Path, row: Row) -> None:
    directory = repository / row.model
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(_MODEL.lstrip())
    (directory / "config.pbtxt").write_text(
        f'backend: "python"\nmax_batch_size: {row.max_batch_size}\n'
        f'input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: [ {ELEMENTS} ] }} ]\n'
        f'output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ {ELEMENTS} ] }} ]\n'
        f'parameters {{ key: "MILLISECONDS" value {{ string_value: "{row.cost_ms}" }} }}\n'
        f"instance_group {{ count: 1 kind: KIND_CPU }}\n{row.scheduling}\n"
    )


def measure(server: RunningServer, row: Row, seconds: float) -> Figures:
    inferences, executions = counts(server, row.model)
    cpu_s = server.cpu_seconds()
    if row.clients:
        throughput, p99_us = analyze(server, "grpc", row.model, row.clients, seconds)
    else:
        throughput, p99_us = overload(server, row.model, seconds)
    inferences_after, executions_after = counts(server, row.model)
    done = inferences_after - inferences
    mean_batch = done / (executions_after - executions)
    return Figures(throughput, p99_us / 1000, mean_batch, (server.cpu_seconds() - cpu_s) * 1e6 / done)


def measure_again(server: RunningServer, row: Row, seconds: float) -> Figures:
    """As `measure`; on a busy machine perf_analyzer may see a window without any answer, and gives up."""
    for _ in range(ATTEMPTS - 1):
        try:
            return measure(server, row, seconds)
        except LoadFailed as error:
            print(f"  {server.name:8} {row.question}: {row.name} once more: {error}", file=sys.stderr)
    return measure(server, row, seconds)


def counts(server: RunningServer, model: str) -> tuple[int, int]:
    """How many inferences and executions there have been."""
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/stats", timeout=10) as answer:
        figures = json.load(answer)["model_stats"][0]
    return int(figures["inference_count"]), int(figures["execution_count"])


def overload(server: RunningServer, model: str, seconds: float) -> tuple[float, float]:
    """Requests that were answered a second, of both classes, and the 99th percentile of the urgent class."""
    command = [sys.executable, str(PRIORITY_CLIENT), server.grpc, model, str(OVERLOAD_RATE), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 5 + 60)
    if done.returncode != 0:
        raise LoadFailed(done.stdout + done.stderr)
    throughput, p99_us = map(float, done.stdout.split())
    return throughput, p99_us


def print_table(rows: list[Row], measured: dict[str, Measurements]) -> None:
    names = list(measured)
    heads = ("mean batch", "p99 ms", "requests/s", "CPU us")
    print(f"\n{'':42}" + "".join(f"{head:>{10 * len(names)}}" for head in heads) + "   missed")
    print(f"{'':42}" + "".join(f"{name:>10}" for name in names) * len(heads))
    for row in rows:
        found = {name: medians(measured[name][row]) for name in names}
        line = f"{row.question + ': ' + row.name:42}"
        for field, digits in (("mean_batch", 2), ("p99_ms", 2), ("throughput", 0), ("cpu_us", 0)):
            line += "".join(f"{getattr(found[name], field):10,.{digits}f}" for name in names)
        print(line + "   " + ", ".join(missed(*found.values())) if len(names) == 2 else line)


def medians(runs: list[Figures]) -> Figures:
    return Figures(*(median(values) for values in zip(*runs, strict=True)))


def missed(ours: Figures, peer: Figures) -> list[str]:
    """The goals that a row misses: batches at least as large, p99 at most equal, throughput at least equal.

    Within 2%: batches that are equal by construction come out a little apart.
    """
    goals = {
        "batch": ours.mean_batch >= 0.98 * peer.mean_batch,
        "p99": ours.p99_ms <= 1.02 * peer.p99_ms,
        "throughput": ours.throughput >= 0.98 * peer.throughput,
    }
    return [goal for goal, is_reached in goals.items() if not is_reached]


def measure_all(name: str, rows: list[Row], seconds: float, into: Measurements) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        for row in rows:
            write_model(repository, row)
        with running(name, repository) as server:
            for row in rows:
                measure_again(server, row, 1)
                figures = measure_again(server, row, seconds)
                into[row].append(figures)
                text = " ".join(f"{field} {value:.2f}" for field, value in figures._asdict().items())
                print(f"  {name:8} {row.question}: {row.name:28} {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="medians of so many runs (default: 3)")
    parser.add_argument("--seconds", type=float, default=3, help="how long each measurement takes")
    parser.add_argument("--only", choices=QUESTIONS, action="append", help="only this; may be given again")
    parser.add_argument("--rows", default="*", help="only rows whose name matches, as in a shell")
    arguments = parser.parse_args()
    if perf_analyzer() is None:
        print("perf_analyzer is not found", file=sys.stderr)
        return 1
    servers = ["cantata", "triton"]
    if reason := why_no_peer():
        print(f"real Triton is skipped: {reason}", file=sys.stderr)
        servers.remove("triton")
    wanted = arguments.only or QUESTIONS
    rows = [row for row in all_rows() if row.question in wanted and fnmatch.fnmatch(row.name, arguments.rows)]
    measured: dict[str, Measurements] = {name: defaultdict(list) for name in servers}
    try:
        for _ in range(arguments.repeat):
            for name in servers:
                measure_all(name, rows, arguments.seconds, measured[name])
    except LoadFailed as error:
        print(error, file=sys.stderr)
        return 1
    print_table(rows, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
