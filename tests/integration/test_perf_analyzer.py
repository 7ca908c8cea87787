"""perf_analyzer measures this server in each of its ways, and what it reads from the server is true.

It is not part of this project: CANTATA_PERF_ANALYZER names the program. Without it there is nothing to run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client_models import write_client_models
from tests.support.wire_servers import Ports, wire_server

PROGRAM = os.environ.get("CANTATA_PERF_ANALYZER", "")

pytestmark = [
    pytest.mark.skipif(not PROGRAM, reason="CANTATA_PERF_ANALYZER names no perf_analyzer"),
    pytest.mark.slow,
]

# Short windows, and whatever they show is stable enough: this asks whether it works, not how fast it is.
BRIEFLY = ["-p", "500", "-r", "8", "-s", "999"]
HTTP, GRPC = ["-i", "http"], ["-i", "grpc"]
# Microseconds between requests.
INTERVALS = "5000\n10000\n5000\n"
REPEATS = {
    "IN": {"content": [1, 2, 3, 4], "shape": [4]},
    "DELAY": {"content": [1, 1, 1, 1], "shape": [4]},
    "WAIT": [0],
}

WAYS = {
    "requests one by one over HTTP": ["-m", "simple", *HTTP, "--concurrency-range", "2"],
    "asynchronous requests over HTTP": ["-m", "simple", *HTTP, "-a", "--concurrency-range", "4"],
    "requests one by one over gRPC": ["-m", "simple", *GRPC, "--sync", "--concurrency-range", "2"],
    "asynchronous requests over gRPC": ["-m", "simple", *GRPC, "-a", "--concurrency-range", "4"],
    "a gRPC stream": ["-m", "simple", *GRPC, "--streaming", "--concurrency-range", "4"],
    "batches": ["-m", "simple", *HTTP, "-b", "4"],
    "JSON": ["-m", "simple", *HTTP, "--input-tensor-format", "json", "--output-tensor-format", "json"],
    "compressed messages": ["-m", "simple", *GRPC, "--grpc-compression-algorithm", "gzip"],
    "strings": ["-m", "simple_string", *HTTP, "--string-data", "12"],
    "a request rate over HTTP": ["-m", "simple", *HTTP, "--request-rate-range", "50"],
    "a Poisson rate over gRPC": [
        *["-m", "simple", *GRPC, "--request-rate-range", "50", "--request-distribution", "poisson"]
    ],
    "a request rate in a stream": ["-m", "simple", *GRPC, "--streaming", "--request-rate-range", "50"],
    "intervals over HTTP": ["-m", "simple", *HTTP, "--request-intervals", "INTERVALS"],
    "intervals over gRPC": ["-m", "simple", *GRPC, "-a", "--request-intervals", "INTERVALS"],
    "shared memory over HTTP": ["-m", "simple", *HTTP, "--shared-memory", "system"],
    "shared memory over gRPC": ["-m", "simple", *GRPC, "--shared-memory", "system"],
    "shared memory in a stream": ["-m", "simple", *GRPC, "--streaming", "--shared-memory", "system"],
    "sequences over HTTP": ["-m", "simple_sequence", *HTTP, "--concurrency-range", "4"],
    "sequences over gRPC": ["-m", "simple_dyna_sequence", *GRPC, "--concurrency-range", "4"],
    "sequences in a stream": [
        *["-m", "simple_dyna_sequence", *GRPC, "--streaming", "--concurrency-range", "4"],
        *["--sequence-id-range", "100:200"],
    ],
    "sequences at a rate": ["-m", "simple_sequence", *GRPC, "--request-rate-range", "50"],
    "sequences one after the other": [
        *["-m", "simple_sequence", *GRPC, "--streaming", "--request-rate-range", "50", "--serial-sequences"]
    ],
    "decoupled responses": ["-m", "repeat_int32", *GRPC, "--streaming", "--input-data", "REPEATS"],
    "metrics of the server": ["-m", "simple", *GRPC, "--collect-metrics", "--metrics-url", "METRICS"],
}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    repository = tmp_path_factory.mktemp("models")
    write_client_models(repository)
    with wire_server(repository, allow_client_shm=True) as ports:
        yield ports


def run(ports: Ports, directory: Path, arguments: list[str]) -> str:
    """What it printed; words in capitals stand for files and addresses."""
    (directory / "intervals").write_text(INTERVALS)
    (directory / "repeats.json").write_text(json.dumps({"data": [REPEATS]}))
    stands_for = {
        "INTERVALS": str(directory / "intervals"),
        "REPEATS": str(directory / "repeats.json"),
        "EXPORT": str(directory / "export.json"),
        "METRICS": f"localhost:{ports.metrics}/metrics",
    }
    port = ports.http if "http" in arguments else ports.grpc
    command = [PROGRAM, *(stands_for.get(word, word) for word in arguments), "-u", f"localhost:{port}"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=directory)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def number(label: str, text: str) -> float:
    found = re.search(rf"{label}: (\d+(?:\.\d+)?)", text)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize("way", WAYS)
def test_perf_analyzer_measures(ports: Ports, tmp_path: Path, way: str) -> None:
    text = run(ports, tmp_path, [*WAYS[way], *BRIEFLY])
    client, _, server = text.partition("  Server: ")
    requests = number("Request count", client)
    assert number("Throughput", client) > 0
    # The server's windows begin and end a little before and after the client's.
    batch_size = 4 if way == "batches" else 1
    inferences = number("Inference count", server)
    assert requests * batch_size <= inferences * 1.05 + 20
    assert inferences <= requests * batch_size * 1.5 + 50
    assert 0 < number("Execution count", server) <= inferences


def test_perf_analyzer_raises_the_concurrency_of_decoupled_requests(ports: Ports, tmp_path: Path) -> None:
    periodic = ["--periodic-concurrency-range", "2:6:2", "--request-period", "3"]
    arguments = ["-m", "repeat_int32", *GRPC, "--streaming", "-a", "--input-data", "REPEATS"]
    run(ports, tmp_path, [*arguments, *periodic, "--profile-export-file", "EXPORT"])
    [experiment] = json.loads((tmp_path / "export.json").read_text())["experiments"]
    assert len(experiment["requests"]) >= 6
    # Four, and the empty one that ends them.
    assert {len(request["response_timestamps"]) for request in experiment["requests"]} == {5}
