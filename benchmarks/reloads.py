"""Does a reload under constant load fail a request, mix versions in an answer, or leave memory behind?

A Python model answers with the number of its load, and an ensemble calls it twice. Clients ask both all the time,
over both protocols, while the model and the ensemble are written and loaded again and again; between two loads of
the model its instances are made more or fewer, which loads nothing anew. Counted are: calls that failed, answers of
the ensemble that came from two loads, answers that are older than one that was seen before the request was sent,
and loads of a model that was not touched. Printed beside them: the server's memory after a tenth of the reloads,
and at the end (goal: none of these, memory flat within 5%).

    python benchmarks/reloads.py [--reloads 1000]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from servers import RunningServer, running

LARGEST_GROWTH = 0.05
FLAGS = ("--model-control-mode=explicit", "--load-model=*")
Api = Any

MODEL = """
import numpy as np

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("STAMP", np.array([STAMP], np.int32))]) for _ in requests
        ]


STAMP = """

BYSTANDER = """
from pathlib import Path

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        with open(Path(args["model_repository"]) / ".." / ".." / "loads", "a") as loads:
            loads.write("x")

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.get_input_tensor_by_name(request, "INPUT")]) for request in requests
        ]
"""

_INPUT = 'input [ { name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]\n'


def write_model(repository: Path, stamp: int) -> None:
    """The model whose answers are `stamp`. Each stamp is longer or newer than the last, so that it is seen."""
    directory = repository / "stamped"
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "1" / "model.py").write_text(f"{MODEL.lstrip()}{stamp}\n")


def write_instances(repository: Path, count: int) -> None:
    """How many instances that model has."""
    (repository / "stamped" / "config.pbtxt").write_text(
        f'backend: "python"\n{_INPUT}output [ {{ name: "STAMP" data_type: TYPE_INT32 dims: [ 1 ] }} ]\n'
        f"instance_group [ {{ kind: KIND_CPU count: {count} }} ]\n"
        'parameters { key: "EXECUTION_ISOLATION" value { string_value: "thread" } }\n'
    )


def write_ensemble(repository: Path, stamp: int) -> None:
    """The model twice and a bystander: one after the other, so that a reload may fall between them."""
    directory = repository / "twice"
    (directory / "1").mkdir(parents=True, exist_ok=True)
    steps = "".join(
        f'step {{ model_name: "{model}" model_version: -1\n'
        f'  input_map {{ key: "INPUT" value: "{source}" }} output_map {{ key: "{key}" value: "{target}" }} }}\n'
        for model, source, key, target in (
            ("stamped", "INPUT", "STAMP", "FIRST"),
            ("bystander", "FIRST", "INPUT", "BETWEEN"),
            ("stamped", "BETWEEN", "STAMP", "SECOND"),
        )
    )
    outputs = ", ".join(
        f'{{ name: "{name}" data_type: TYPE_INT32 dims: [ 1 ] }}' for name in ("FIRST", "SECOND")
    )
    (directory / "config.pbtxt").write_text(
        f'platform: "ensemble"\n{_INPUT}output [ {outputs} ]\nensemble_scheduling {{\n{steps}}}\n'
        f'parameters {{ key: "stamp" value {{ string_value: "{stamp}" }} }}\n'
    )


def write_bystander(repository: Path) -> None:
    directory = repository / "bystander"
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(
        f'backend: "python"\n{_INPUT}output [ {{ name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] }} ]\n'
    )
    (directory / "1" / "model.py").write_text(BYSTANDER.lstrip())


class Clients:
    """Two threads for each protocol, one asking the model and one the ensemble, until `stop`."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(api, url, model))
            for api, url in ((tritonclient.http, server.http), (tritonclient.grpc, server.grpc))
            for model in ("stamped", "twice")
        ]
        self.calls: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        # The newest stamp that any load has been confirmed for.
        self.confirmed = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, api: Api, url: str, model: str) -> None:
        tensor = api.InferInput("INPUT", [1], "INT32")
        tensor.set_data_from_numpy(np.zeros(1, np.int32))
        name = f"{model} ({api.__name__.rpartition('.')[2]})"
        names = ("STAMP",) if model == "stamped" else ("FIRST", "SECOND")
        with api.InferenceServerClient(url) as client:
            while not self._is_over.is_set():
                confirmed = self.confirmed
                self.calls[name] += 1
                try:
                    result = client.infer(model, [tensor])
                except Exception as error:
                    self.wrong[f"{name}: {type(error).__name__}: {error}"] += 1
                    continue
                stamps = {int(result.as_numpy(output)[0]) for output in names}
                if len(stamps) > 1:
                    self.wrong[f"{name}: an answer of two loads"] += 1
                if min(stamps) < confirmed:
                    self.wrong[f"{name}: an answer of a load that had been replaced"] += 1


def reload_all(server: RunningServer, repository: Path, clients: Clients, reloads: int) -> list[float]:
    """Reload the model, every other time the ensemble too, and change the instances; returns the memory after each."""
    memory: list[float] = []
    with tritonclient.http.InferenceServerClient(server.http, network_timeout=60) as client:
        for stamp in range(1, reloads + 1):
            write_model(repository, stamp)
            if stamp % 2:
                write_ensemble(repository, stamp)
            client.load_model("stamped")
            if stamp % 2:
                client.load_model("twice")
            clients.confirmed = stamp
            write_instances(repository, 1 + stamp % 3)
            client.load_model("stamped")
            memory.append(server.memory_mb())
            if stamp % 100 == 0:
                told = f"{stamp:6} reloads {clients.calls.total():9} calls {clients.wrong.total()} wrong"
                print(f"{told} {memory[-1]:7.1f} MB", file=sys.stderr, flush=True)
    return memory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reloads", type=int, default=1000)
    reloads = parser.parse_args().reloads
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        write_bystander(repository)
        write_model(repository, 0)
        write_instances(repository, 1)
        write_ensemble(repository, 0)
        with running("cantata", repository, FLAGS) as server:
            clients = Clients(server)
            clients.start()
            started = time.perf_counter()
            try:
                memory = reload_all(server, repository, clients, reloads)
            finally:
                clients.stop()
            seconds = time.perf_counter() - started
        loads = len((repository.parent / "loads").read_text())
    for name, count in sorted(clients.calls.items()):
        print(f"{name:20}{count:10} calls")
    for text, count in clients.wrong.most_common():
        print(f"{count} times: {text}")
    tenth = max(1, reloads // 10)
    before, after = mean(memory[tenth : 2 * tenth] or memory), mean(memory[-tenth:])
    growth = after / before - 1
    print(
        f"{reloads} reloads in {seconds:.0f} s; {clients.wrong.total()} wrong of {clients.calls.total()} calls; "
        f"the bystander was loaded {loads} time(s); memory {before:.1f} MB, then {after:.1f} MB: {growth:+.1%}"
    )
    return 0 if not clients.wrong and loads == 1 and growth < LARGEST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
