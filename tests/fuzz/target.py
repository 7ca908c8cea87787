"""The server that is fuzzed: a real `cantata serve` in a process of its own, watched from outside.

Owns its models, its start and end, and what it holds: descriptors, threads, memory, mapped segments.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from tests.support.model_files import (
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_model,
)

_LONGEST_ANSWER_S: Final = 30

_ECHO: Final = """
def execute(self, requests):
    return [
        pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(request, "IN").as_numpy())]
        )
        for request in requests
    ]
"""
_REPEAT: Final = """
def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        for _ in range(3):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.zeros(1, np.float32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
# Loaded and unloaded by some cases; all others are there from start to end.
CONTROLLED: Final = "spare"


def write_fuzzed_repository(repository: Path) -> None:
    """Models of each kind that a request is read for: batching, text, decoupled, an ensemble, and one to reload."""
    one, other = [tensor_text("IN")], [tensor_text("OUT")]
    batching = python_config(one, other, max_batch_size=4, extra="dynamic_batching { }")
    write_model(repository, "echo", batching, _ECHO)
    write_model(
        repository,
        "text",
        python_config([tensor_text("IN", "STRING")], [tensor_text("OUT", "STRING")]),
        _ECHO,
    )
    write_model(repository, "repeat", python_config(one, other, decoupled=True), _REPEAT)
    write_model(repository, CONTROLLED, python_config(one, other), _ECHO)
    step = step_text(CONTROLLED, {"IN": "IN"}, {"OUT": "OUT"})
    write_model(repository, "chain", ensemble_config(one, other, [step]))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the server's process holds."""

    descriptors: int
    threads: int
    memory_mb: float
    mapped_segments: int


class FuzzedServer:
    """A running server. `problems` are lines of its log that tell of a bug."""

    def __init__(self, process: subprocess.Popen[str], segments: str) -> None:
        self._process = process
        self._segments = segments
        self._watched = psutil.Process(process.pid)
        self.ports: dict[str, int] = {}
        self.problems: list[str] = []
        self._is_listening = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the server and the reading of its log."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def wait_until_listening(self) -> None:
        if not self._is_listening.wait(60):
            raise RuntimeError("the server does not start")

    def end_reason(self) -> str:
        """Why the server is gone; empty while it runs."""
        status = self._process.poll()
        return "" if status is None else f"the server ended with status {status}"

    def is_answering(self) -> bool:
        """Whether a new client is served in time."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["HTTP"], timeout=_LONGEST_ANSWER_S)
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def holdings(self) -> Holdings:
        return Holdings(
            self._watched.num_fds(),
            self._watched.num_threads(),
            self._watched.memory_info().rss / 1e6,
            Path(f"/proc/{self._process.pid}/maps").read_text().count(self._segments),
        )

    def settled_holdings(self, wanted: Holdings) -> Holdings:
        """What it holds once it has let go of all that it will, or after some seconds."""
        end = time.monotonic() + 20
        while True:
            found = self.holdings()
            is_down = found.descriptors <= wanted.descriptors and found.mapped_segments == 0
            if (is_down and found.threads <= wanted.threads) or time.monotonic() > end:
                return found
            time.sleep(0.1)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if not line.startswith("{"):
                # Libraries may write there too; an interpreter that dies does.
                if "Traceback" in line or "Fatal" in line:
                    self.problems.append(line.strip())
                continue
            event = json.loads(line)
            if ": listening at " in event["message"]:
                self.ports[event["message"].split(":")[0]] = int(event["message"].rsplit(":", 1)[1])
                if len(self.ports) == 3:
                    self._is_listening.set()
            if "Traceback" in line:
                self.problems.append(line.strip())
        self._is_listening.set()


@contextmanager
def fuzzed_server(repository: Path, segments: str) -> Iterator[FuzzedServer]:
    """Serve `repository` inside the block; `segments` is what the names of shared segments begin with."""
    write_fuzzed_repository(repository)
    command = [
        *(sys.executable, "-X", "faulthandler", "-m", "cantata", "serve", f"--model-repository={repository}"),
        *(
            "--log-format=json",
            "--http-port=0",
            "--grpc-port=0",
            "--metrics-port=0",
            "--allow-client-shm=true",
        ),
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--model-control-mode=explicit"),
        "--load-model=*",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    server = FuzzedServer(process, segments)
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.close()
