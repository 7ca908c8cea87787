"""Is anything left of models' processes that are killed under load, or anybody hurt by it?

Serves models of all kinds in processes of their own, and has them end in every way (an exit, a segmentation fault, a
busy loop past the model's time limit, SIGKILL from outside) at every point (initialize, execute, finalize, between
requests) at random, while clients go on asking; others ask models that nobody ends. Then waits for all to serve
again, and checks: every request was answered exactly once, and rightly or UNAVAILABLE; the models that nobody ends
never failed; the counters of ends match the ledger; no zombie, no leftover file or descriptor, no thread more.

    python benchmarks/kill_soak.py [--kills 1000] [--clients 6] [--seed 1]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from killed_models import ANSWER, ANSWERS, CRASH, EXIT, LATER, NOW, SPIN, write_killed, write_spared

from cantata import InferenceError
from cantata.bls.worker.process_instance import ProcessInstance
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import StatusCode
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.server import Server
from cantata.runtime.tensor import tensor_of_array

TIMEOUT_S = 2.0
ANSWERED_WITHIN_S = 60
# Two of each kind: one with a single instance, one with two.
KINDS = ("plain", "coroutine", "stream")
SPARED = ("spared_thread", "spared_process")
# Ended while they are reloaded, in `finalize`.
RELOADED = ("reloaded_1", "reloaded_2")


class Answers:
    """The sender of one request: what was sent, and how often it was the end."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.error: InferenceError | None = None
        self.ends = 0
        self.ended = threading.Event()

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        assert not self.ends, "something was sent after the end"
        if response is not None and response.error is not None:
            self.error = response.error
        elif response is not None:
            self.values.append(int(response.outputs["OUTPUT"].array[0]))
        self.ends += final
        if final:
            self.ended.set()

    def wait_until_ready(self) -> None:
        """Whatever comes is kept."""


class Soak:
    """The server, the clients and whoever kills. The counters are touched by single operations, or under `lock`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.repository = folder / "models"
        self._random = random.Random(seed)
        self.lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.killed_outside: set[int] = set()
        self.is_over = threading.Event()
        self.versions = {
            f"{kind}_{count}": write_killed(
                self.repository, f"{kind}_{count}", kind, self.ledger, TIMEOUT_S, count
            )
            for kind in KINDS
            for count in (1, 2)
        }
        self.reloaded = {
            name: write_killed(self.repository, name, "plain", self.ledger, TIMEOUT_S) for name in RELOADED
        }
        for name in SPARED:
            write_spared(self.repository, name, name.partition("_")[2], self.ledger)
        self.server = Server(
            ServerOptions((self.repository,), model_control_mode=ModelControlMode.EXPLICIT, load_model=("*",))
        )

    def ledger_lines(self) -> list[list[str]]:
        return [line.split() for line in self.ledger.read_text().splitlines()]

    def ends(self) -> int:
        """How many processes were ended so far."""
        return len(
            {line[0] for line in self.ledger_lines()} | {str(pid) for pid in list(self.killed_outside)}
        )

    def ask(self, model: str, how: int, when: int, value: int) -> Answers:
        """Send a request; its answers come to what is returned."""
        answers = Answers()
        inputs = {"INPUT": tensor_of_array(np.array([how, when, value], np.int32))}
        request = InferenceRequest(model, inputs, answers, monotonic_ns())
        try:
            self.server.submit(request)
        except InferenceError as error:
            answers.error = error
            answers.ends += 1
            answers.ended.set()
        return answers

    def judge(self, model: str, value: int, answers: Answers) -> None:
        """Wait for the end of a request, and note what is wrong with it."""
        if not answers.ended.wait(ANSWERED_WITHIN_S):
            self.wrong.append(f"{model}: no answer within {ANSWERED_WITHIN_S} s")
            return
        count = ANSWERS.get(model.partition("_")[0], 1)
        expected = [value + index for index in range(count)]
        if answers.ends != 1 or answers.values != expected[: len(answers.values)]:
            self.wrong.append(f"{model}: {answers.ends} ends, {answers.values} in place of {expected}")
        elif answers.error is None:
            if answers.values != expected:
                self.wrong.append(f"{model}: ended with {answers.values} in place of {expected}")
            self.count("answered")
        elif model in SPARED or answers.error.code is not StatusCode.UNAVAILABLE:
            self.wrong.append(f"{model}: {answers.error.code.name} {answers.error.message}")
        else:
            self.count("unavailable")

    def count(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1

    def load(self, seed: int) -> None:
        """A client: a few requests at a time to any model, most of which are to be answered."""
        chance = random.Random(seed)
        while not self.is_over.is_set():
            asked = []
            for _ in range(chance.randint(1, 4)):
                model = chance.choice([*self.versions, *SPARED])
                how = ANSWER
                if model not in SPARED and chance.random() < 0.06:
                    how = chance.choices((EXIT, CRASH, SPIN), (4, 4, 1))[0]
                value = chance.randrange(1 << 20)
                asked.append((model, value, self.ask(model, how, chance.choice((NOW, LATER)), value)))
            for model, value, answers in asked:
                self.judge(model, value, answers)
            time.sleep(0.02)

    def watch_spared(self) -> None:
        """A client of the models that nobody ends, one request after the other."""
        value = 0
        while not self.is_over.is_set():
            for model in SPARED:
                value += 1
                self.judge(model, value, self.ask(model, ANSWER, NOW, value))
                self.count("spared")
            time.sleep(0.002)

    def kill_outside(self) -> None:
        """Kill processes of the models, in whatever they do, and lay ends in `initialize` for some that follow."""
        while not self.is_over.wait(0.3 * self._random.random()):
            running = {
                model: pids
                for model in self.versions
                if (pids := [pid for each in self.instances(model) if (pid := each.pid) is not None])
            }
            if not running:
                continue
            model = self._random.choice([*running])
            if self._random.random() < 0.2:
                told = self.versions[model] / "initialize"
                told.with_suffix(".new").write_text(str(self._random.choice((EXIT, CRASH, SPIN))))
                told.with_suffix(".new").rename(told)
            pid = self._random.choice(running[model])
            try:
                os.kill(pid, signal.SIGKILL)
                self.killed_outside.add(pid)
            except ProcessLookupError:
                continue

    def reload(self) -> None:
        """Reload models whose old instance ends in `finalize`, now and then in the middle of it from outside."""
        while not self.is_over.is_set():
            for name, version in self.reloaded.items():
                how = self._random.choice((EXIT, CRASH, SPIN))
                (version / "finalize").write_text(str(how))
                # Another text, so that it is loaded anew.
                config = version.parent / "config.pbtxt"
                config.write_text(config.read_text() + "\n")
                self.server.load_model(name)
                self.judge(name, 1, self.ask(name, ANSWER, NOW, 1))
                self.count("reloaded")

    def instances(self, model: str) -> list[ProcessInstance]:
        return self.server.model(model).scheduler.backend_instances()

    def settle(self) -> None:
        """Wait until every model serves again."""
        for version in self.versions.values():
            (version / "initialize").unlink(missing_ok=True)
        deadline = time.monotonic() + 60
        for model in self.versions:
            while any(instance.pid is None for instance in self.instances(model)):
                assert time.monotonic() < deadline, f"{model} does not come back"
                time.sleep(0.05)
            value = len(model)
            answers = self.ask(model, ANSWER, NOW, value)
            self.judge(model, value, answers)

    def counters(self) -> Counter[str]:
        """Ends, restarts and timeouts of the models that are killed, from their metrics."""
        counted: Counter[str] = Counter()
        for figures in self.server.model_figures():
            if figures.name in self.versions:
                assert figures.processes is not None
                counted["deaths"] += figures.processes.deaths
                counted["restarts"] += figures.processes.restarts
                counted["timeouts"] += figures.processes.timeouts
        return counted


def resources(folder: Path) -> dict[str, int]:
    me = psutil.Process()
    return {
        "descriptors": me.num_fds(),
        "threads": me.num_threads(),
        "children": len(me.children(recursive=True)),
        "zombies": sum(child.status() == psutil.STATUS_ZOMBIE for child in me.children()),
        "files in /dev/shm": sum(each.path.startswith("/dev/shm/") for each in me.memory_maps()),
        "files of ours": sum(1 for _ in folder.rglob("*") if "__pycache__" not in _.parts),
        "memory in MB": round(me.memory_info().rss / 1e6),
    }


def resources_at_rest(folder: Path, children: int) -> dict[str, int]:
    """As `resources`, once the processes of models that were reloaded have ended, and what they had is closed."""
    deadline = time.monotonic() + 20
    while len(psutil.Process().children()) > children and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    return resources(folder)


def problems_of(soak: Soak, before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What must not be, in words."""
    problems = soak.wrong[:20]
    lines = [line for line in soak.ledger_lines() if line[2] != "finalize"]
    ended = {line[0] for line in lines} | {str(pid) for pid in soak.killed_outside}
    counted = soak.counters()
    # On a machine that is busy a request may take longer than its model's limit by itself.
    too_slow = max(0, counted["timeouts"] - sum(int(line[1]) == SPIN for line in lines))
    if counted["deaths"] != len(ended) + too_slow:
        problems.append(f"{counted['deaths']} ends were counted, not {len(ended)} and {too_slow} too slow")
    # Threads are kept for the most instances that ever ran at once; memory is what the allocator keeps.
    for name, slack in {"descriptors": 2, "threads": 24, "children": 0, "files in /dev/shm": 0}.items():
        if after[name] > before[name] + slack:
            problems.append(f"{name}: {before[name]} before, {after[name]} after")
    if after["zombies"]:
        problems.append(f"{after['zombies']} zombies")
    return problems


def run(kills: int, clients: int, seed: int, say: Callable[[str], None]) -> list[str]:
    """What is wrong after `kills` ends; nothing, let us hope."""
    children_before = len(psutil.Process().children())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        soak = Soak(folder, seed)
        soak.server.start()
        try:
            soak.settle()
            before = resources(folder)
            threads = [threading.Thread(target=soak.load, args=(seed + index,)) for index in range(clients)]
            threads += [
                threading.Thread(target=each) for each in (soak.watch_spared, soak.kill_outside, soak.reload)
            ]
            began = said = time.monotonic()
            for thread in threads:
                thread.start()
            while soak.ends() < kills and not soak.wrong:
                time.sleep(0.2)
                if time.monotonic() - said > 20:
                    said = time.monotonic()
                    say(f"{said - began:4.0f} s {soak.ends()} ends {dict(soak.outcomes)} {soak.counters()}")
            soak.is_over.set()
            for thread in threads:
                thread.join(2 * ANSWERED_WITHIN_S)
            took_s = time.monotonic() - began
            soak.settle()
            after = resources_at_rest(folder, before["children"])
            problems = problems_of(soak, before, after)
            counted = soak.counters()
        finally:
            soak.is_over.set()
            soak.server.close()
        left = resources(folder)
        lines = soak.ledger_lines()
        ends = soak.ends()
    if left["children"] > children_before:
        problems.append(f"{left['children'] - children_before} processes are left of a server that is closed")
    how = Counter(" ".join(line[1:]) for line in lines)
    say(
        f"{ends} ends in {took_s:.0f} s ({len(soak.killed_outside)} from outside; by themselves: {dict(how)})"
    )
    say(f"requests: {dict(soak.outcomes)}; counters: {dict(counted)}")
    for name in before:
        say(f"{name:<20}{before[name]:>8} before {after[name]:>8} after {left[name]:>8} when closed")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("cantata").setLevel(logging.CRITICAL)
    # What killed models say on their way out.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        problems = run(options.kills, options.clients, options.seed, lambda text: print(text, flush=True))
    for problem in problems:
        print(f"wrong: {problem}")
    print("nothing was left, and nobody was hurt" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
