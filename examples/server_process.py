"""A server in a process of its own, on ports that the system chooses, for as long as a `with` block lasts.

Owns the command line of `cantata serve`, learning from its log where it listens, and ending it. Knows no model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-m", "cantata", "serve")
FRONT_ENDS = ("gRPC", "HTTP", "metrics")


class ServerFailed(Exception):
    """The server ended, or did not become ready in time; the text holds its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: `host:port` of each front-end, its process, and the file that holds the table it printed."""

    grpc: str
    http: str
    metrics: str
    process: subprocess.Popen[bytes]
    table_file: Path

    def url(self, protocol: str) -> str:
        return {"grpc": self.grpc, "http": self.http}[protocol]

    def stop(self, timeout_s: float = 40) -> int:
        """Ask it to end, and wait; its exit status."""
        self.process.terminate()
        return self.process.wait(timeout_s)


@contextmanager
def serving(*repositories: Path, flags: Sequence[str] = (), timeout_s: float = 120) -> Iterator[Server]:
    """Serve `repositories` inside the block; `flags` are those of `cantata serve`.

    Yields once every front-end listens. Raises ServerFailed if that never happens, or if the server was still
    running at the end of the block and its exit status was not 0.
    """
    with tempfile.TemporaryDirectory(prefix="cantata-") as folder:
        log_file, table_file = Path(folder, "log"), Path(folder, "table")
        arguments = [f"--model-repository={repository}" for repository in repositories]
        addresses = ("--http-address=127.0.0.1", "--grpc-address=127.0.0.1")
        ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
        with log_file.open("wb") as log, table_file.open("wb") as table:
            command = [*COMMAND, *arguments, *addresses, *ports, "--log-format=json", *flags]
            process = subprocess.Popen(command, stdout=table, stderr=log)
        try:
            grpc, http, metrics = _wait_until_listening(process, log_file, table_file, timeout_s)
            server = Server(grpc, http, metrics, process, table_file)
            yield server
            if process.poll() is None and (status := server.stop()) != 0:
                raise ServerFailed(f"the server ended with status {status}\n{log_file.read_text()}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_until_listening(
    process: subprocess.Popen[bytes], log_file: Path, table_file: Path, timeout_s: float
) -> list[str]:
    deadline = time.monotonic() + timeout_s
    while True:
        has_ended = process.poll() is not None
        addresses = {}
        for event in _events(log_file):
            front_end, listening, address = event["message"].partition(": listening at ")
            if listening:
                addresses[front_end] = address
        if all(front_end in addresses for front_end in FRONT_ENDS):
            return [addresses[front_end] for front_end in FRONT_ENDS]
        if has_ended or time.monotonic() > deadline:
            what = f"ended with status {process.returncode}" if has_ended else "did not become ready in time"
            raise ServerFailed(f"the server {what}\n{table_file.read_text()}{log_file.read_text()}")
        time.sleep(0.02)


def _events(log_file: Path) -> list[dict[str, str]]:
    """The whole lines of the log; anything that is no event, such as a warning of a library, is left out."""
    lines = log_file.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
