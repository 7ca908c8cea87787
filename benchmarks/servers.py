"""The servers that are compared, behind one face: start on free ports, wait until ready, weigh, stop.

Owns their command lines. Real Triton comes from the script `peer`, looked for at $PEER or ../shared/peer/peer.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PEER_SCRIPT = Path(os.environ.get("PEER", ROOT.parent / "shared" / "peer" / "peer"))
PEER_HOME = Path(os.environ.get("PEER_HOME", Path.home() / ".cache" / "peer"))
LONGEST_START_S = 120
LONGEST_STOP_S = 60


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server all of whose models are ready, `ready_s` after its process was started."""

    name: str
    http: str
    grpc: str
    ready_s: float
    process: psutil.Process

    def memory_mb(self) -> float:
        """Resident memory of the server and every process that it started."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family) / 1e6

    def cpu_seconds(self) -> float:
        """Processor time of the server and every process that it started, so far."""
        family = [self.process, *self.process.children(recursive=True)]
        times = [member.cpu_times() for member in family]
        return sum(each.user + each.system for each in times)


def ours(repository: Path, ports: Ports) -> list[str]:
    flags = [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"]
    # As real Triton 2.51 does unasked.
    flags.append("--allow-client-shm=true")
    return [sys.executable, "-m", "cantata", "serve", f"--model-repository={repository}", *flags]


def peer(repository: Path, ports: Ports) -> list[str]:
    numbers = [str(port) for port in (ports.http, ports.grpc, ports.metrics)]
    return [str(PEER_SCRIPT), "serve", str(repository), *numbers]


COMMANDS = {"cantata": ours, "triton": peer}


def why_no_peer() -> str:
    """Why real Triton cannot be run here; empty where it can."""
    if not PEER_SCRIPT.exists():
        return f"there is no {PEER_SCRIPT} (set PEER to where it is)"
    if not (PEER_HOME / "venv").exists():
        return f"it is not installed: run `{PEER_SCRIPT} setup`"
    return ""


@contextmanager
def running(name: str, repository: Path, flags: Sequence[str] = ()) -> Iterator[RunningServer]:
    """The server called `name` in COMMANDS, serving `repository` inside the block; `flags` are added to its own."""
    ports = _free_ports()
    command = COMMANDS[name](repository, ports)
    if name == "triton" and flags:
        command.append("--")
    command += flags
    started = time.perf_counter()
    # Away from our own modules: a server of its own must not find them in the folder that it is started in.
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=silent, stderr=silent, cwd=repository)
    try:
        _wait_until_ready(process, ports.http)
        ready_s = time.perf_counter() - started
        addresses = (f"localhost:{ports.http}", f"localhost:{ports.grpc}")
        yield RunningServer(name, *addresses, ready_s, psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(LONGEST_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], http_port: int) -> None:
    deadline = time.monotonic() + LONGEST_START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://localhost:{http_port}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.01)
    raise RuntimeError(f"{process.args} is not ready after {LONGEST_START_S} s")


def _free_ports() -> Ports:
    """Ports that were free a moment ago: not every server can choose its own and say which."""
    sockets = [socket.socket() for _ in range(3)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    numbers = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return Ports(*numbers)
