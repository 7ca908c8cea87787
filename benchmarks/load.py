"""The clients that drive a server, the same for every server: perf_analyzer for gRPC, wrk for HTTP.

Owns their command lines and reading figures from what they print.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from models import ELEMENTS
from servers import PEER_HOME, PEER_SCRIPT, RunningServer


class LoadFailed(Exception):
    """The client could not measure, or some of its requests failed."""


class LoadFigures(NamedTuple):
    """What perf_analyzer saw."""

    requests_per_second: float
    p99_us: float


def perf_analyzer() -> list[str] | None:
    """How perf_analyzer is called here; None where it is not installed."""
    if PEER_SCRIPT.exists() and (PEER_HOME / "bin" / "perf_analyzer").exists():
        return [str(PEER_SCRIPT), "perf"]
    found = shutil.which("perf_analyzer")
    return None if found is None else [found]


def tool_for(protocol: str) -> str | None:
    """The name of the client that drives `protocol`; None where there is none."""
    if protocol == "http" and shutil.which("wrk"):
        return "wrk"
    return "perf_analyzer" if perf_analyzer() else None


def requests_per_second(
    server: RunningServer, protocol: str, model: str, concurrency: int, seconds: float
) -> float:
    """Completed requests a second of `concurrency` clients that each send the next one when the last is answered."""
    if tool_for(protocol) == "wrk":
        return _wrk(server.http, model, concurrency, seconds)
    return analyze(server, protocol, model, concurrency, seconds).requests_per_second


def analyze(
    server: RunningServer, protocol: str, model: str, concurrency: int, seconds: float
) -> LoadFigures:
    """What perf_analyzer sees of `concurrency` clients; of a sequence model each is one sequence after another."""
    address = {"grpc": server.grpc, "http": server.http}[protocol]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "table.csv")
        target = ["-m", model, "-i", protocol, "-u", address, "--shape", f"INPUT:{ELEMENTS}"]
        printed = _analyze([*target, "-f", str(table)], concurrency, seconds)
        if not table.exists():
            raise LoadFailed(printed)
        with table.open() as file:
            row = next(csv.DictReader(file))
    return LoadFigures(float(row["Inferences/Second"]), float(row["p99 latency"]))


def responses_per_second(
    server: RunningServer, model: str, streams: int, responses: int, seconds: float
) -> float:
    """Responses a second of a decoupled model that answers `responses` times, over so many `ModelStreamInfer` calls.

    perf_analyzer opens a stream for each client, and each asks again when it has its last response.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as data:
        json.dump({"data": [{"INPUT": {"content": [responses], "shape": [1]}}]}, data)
        data.flush()
        target = ["-m", model, "-i", "grpc", "-u", server.grpc, "--streaming", "--async", "--input-data"]
        printed = _analyze([*target, data.name], streams, seconds)
    found = re.search(r"Response Throughput:\s*([\d.]+)", printed)
    if found is None:
        raise LoadFailed(printed)
    return float(found[1])


def _analyze(arguments: list[str], concurrency: int, seconds: float) -> str:
    """What perf_analyzer prints of one measurement."""
    command = perf_analyzer()
    assert command is not None
    # Three windows in a row make one measurement; how steady they were is left to the repetitions.
    windows = ["--measurement-interval", str(round(seconds * 1_000 / 3)), "-r", "3", "-s", "999"]
    return _run([*command, *arguments, "--concurrency-range", str(concurrency), *windows], seconds)


def _wrk(address: str, model: str, concurrency: int, seconds: float) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_lua_script())
        script.flush()
        url = f"http://{address}/v2/models/{model}/infer"
        options = ["-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", "-s", script.name]
        printed = _run(["wrk", *options, url], seconds)
    if "Non-2xx" in printed or "Socket errors" in printed:
        raise LoadFailed(printed)
    found = re.search(r"Requests/sec:\s*([\d.]+)", printed)
    if found is None:
        raise LoadFailed(printed)
    return float(found[1])


def _lua_script() -> str:
    size = 4 * ELEMENTS
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "INPUT",
                    "shape": [1, ELEMENTS],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": size},
                }
            ],
            "outputs": [{"name": "OUTPUT", "parameters": {"binary_data": True}}],
        }
    ).encode()
    body = "".join(f"\\{byte:03d}" for byte in head + bytes(size))
    return (
        'wrk.method = "POST"\n'
        f'wrk.headers["Inference-Header-Content-Length"] = "{len(head)}"\n'
        'wrk.headers["Content-Type"] = "application/octet-stream"\n'
        f'wrk.body = "{body}"\n'
    )


def _run(command: list[str], seconds: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 5 + 60)
    if done.returncode != 0:
        raise LoadFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout
