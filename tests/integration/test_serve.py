"""`cantata serve` as a process: what it prints and logs, what it refuses, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.support.model_files import (
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_add,
    write_model,
)

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")

# Says when a request is in it, and answers when the test lets it.
GATED = """
def execute(self, requests):
    import os
    from pathlib import Path
    folder = Path(os.environ["GATE"])
    (folder / "entered").touch()
    with open(folder / "gate", "rb") as gate:
        gate.read()
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.ones(1, np.float32))]) for _ in requests]
"""
ONE = json.dumps({"inputs": [{"name": "INPUT", "shape": [1], "datatype": "FP32", "data": [1]}]}).encode()


class Serving:
    """A running `cantata serve` whose log is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, str]] = []
        self._read: SimpleQueue[dict[str, str] | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.ports = dict[str, int]()

    def wait_for(self, text: str) -> None:
        """Read the log until a message begins with `text`."""
        while (event := self._read.get(timeout=60)) is not None:
            self.events.append(event)
            message = event["message"]
            if ": listening at " in message:
                self.ports[message.split(":")[0]] = int(message.rsplit(":", 1)[1])
            if message.startswith(text):
                return
        raise AssertionError(f"the log ended without {text!r}: {self.events}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def infer(self, model: str) -> bytes:
        url = f"http://127.0.0.1:{self.ports['HTTP']}/v2/models/{model}/infer"
        with urllib.request.urlopen(urllib.request.Request(url, ONE, method="POST"), timeout=60) as answer:
            body: bytes = answer.read()
            return body

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            # Libraries may write there too.
            if line.startswith("{"):
                self._read.put(json.loads(line))
        self._read.put(None)


@contextmanager
def serving(repository: Path, *flags: str, environment: dict[str, str] | None = None) -> Iterator[Serving]:
    command = [
        *(sys.executable, "-m", "cantata", "serve", f"--model-repository={repository}", "--log-format=json"),
        *("--http-port=0", "--grpc-port=0", "--metrics-port=0", "--http-address=127.0.0.1"),
        *("--grpc-address=127.0.0.1", *flags),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield Serving(process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "gated", python_config([IN], [OUT]), GATED)
    step = step_text("gated", {"INPUT": "INPUT"}, {"OUTPUT": "a"})
    last = step_text(write_add(tmp_path / "models", 1), {"INPUT": "a"}, {"OUTPUT": "OUTPUT"})
    write_model(tmp_path / "models", "pipeline", ensemble_config([IN], [OUT], [step, last]))
    os.mkfifo(tmp_path / "gate")
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_finishes_what_was_accepted_and_refuses_the_rest(gated: Path, number: int) -> None:
    answers: list[bytes] = []
    with serving(gated / "models", environment={"GATE": str(gated)}) as server:
        server.wait_for("metrics: listening")
        client = threading.Thread(target=lambda: answers.append(server.infer("pipeline")))
        client.start()
        # Opening the gate for writing waits until the model has opened it for reading: the request is in it.
        with open(gated / "gate", "wb"):
            server.process.send_signal(number)
            server.wait_for("stopping")
            with pytest.raises(urllib.error.HTTPError) as refused:
                server.infer("add_1")
            with refused.value as answer:
                assert answer.code == 503
        client.join(60)
        assert server.process.wait(60) == 0
    assert json.loads(answers[0])["outputs"][0]["data"] == [2.0]


def test_a_request_that_outlasts_the_timeout_is_answered_with_an_error(gated: Path) -> None:
    codes: list[int] = []

    def call(server: Serving) -> None:
        try:
            server.infer("gated")
        except urllib.error.HTTPError as error:
            with error:
                codes.append(error.code)
        except OSError:
            codes.append(0)

    with serving(gated / "models", "--exit-timeout-secs=0.2", environment={"GATE": str(gated)}) as server:
        server.wait_for("metrics: listening")
        client = threading.Thread(target=call, args=(server,))
        client.start()
        with open(gated / "gate", "wb"):
            assert server.stop() == 1
        client.join(60)
    assert len(codes) == 1


def test_each_model_is_listed_with_its_state_and_the_reason_and_place_of_a_failure(tmp_path: Path) -> None:
    write_add(tmp_path, 1)
    write_model(tmp_path, "typo", 'backend: "python"\nmax_batch_sise: 4\n')
    with serving(tmp_path, "--exit-on-error=false") as server:
        server.wait_for("metrics: listening")
        assert server.stop() == 0
        table = server.process.stdout.read() if server.process.stdout is not None else ""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line
    ]
    assert rows[0] == ["Model", "Version", "Status"]
    assert ["add_1", "1", "READY"] in rows
    typo = next(row for row in rows if row[0] == "typo")
    assert typo[2].startswith("UNAVAILABLE: Invalid argument: ")
    assert f"{tmp_path}/typo/config.pbtxt:2:1: " in typo[2]
    assert "did you mean 'max_batch_size'?" in typo[2]


def test_a_model_that_fails_ends_the_start_unless_that_is_allowed(tmp_path: Path) -> None:
    write_model(tmp_path, "typo", 'backend: "python"\nmax_batch_sise: 4\n')
    with serving(tmp_path) as server:
        server.wait_for("failed to load all models")
        assert server.process.wait(60) == 1


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    write_add(tmp_path, 1)
    with serving(tmp_path) as first:
        first.wait_for("metrics: listening")
        with serving(tmp_path, f"--http-port={first.ports['HTTP']}") as second:
            assert second.process.wait(60) == 1
        with serving(tmp_path, f"--grpc-port={first.ports['gRPC']}") as third:
            assert third.process.wait(60) == 1


def test_several_repositories_are_served_and_a_name_in_two_of_them_by_neither(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_add(one, 1)
    write_add(two, 2)
    write_add(one, 3)
    write_add(two, 3)
    with serving(one, f"--model-repository={two}", "--exit-on-error=false") as server:
        server.wait_for("metrics: listening")
        assert json.loads(server.infer("add_1"))["outputs"][0]["data"] == [2.0]
        assert json.loads(server.infer("add_2"))["outputs"][0]["data"] == [3.0]
        url = f"http://127.0.0.1:{server.ports['HTTP']}/v2/repository/index"
        with urllib.request.urlopen(urllib.request.Request(url, b"", method="POST"), timeout=60) as answer:
            index = {entry["name"]: entry for entry in json.load(answer)}
    assert index["add_3"]["state"] == "UNAVAILABLE"
    assert index["add_3"]["reason"] == "model appears in two or more repositories"
