"""What do statistics and metrics cost a request, and what does its own timeline?

Prints the processor's microseconds a request, of an ensemble of three small Python models in this process: with all
counting as it is, with none of it, and with a timeline asked for. The ways take turns in short rounds, and medians are
told: a busy machine disturbs all of them alike. Ends with status 1 when counting costs more than the bound.

    python benchmarks/observing.py [--bound 3] [--rounds 200]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from models import ELEMENTS, write_pipelines

from cantata.runtime.embedded import EmbeddedServer
from cantata.runtime.observe.phases import EnsembleTimes
from cantata.runtime.observe.statistics import StatisticsCounter
from cantata.runtime.scheduling import ensemble_scheduler

REQUESTS = 100
COUNTING = (
    (StatisticsCounter, "count_batch"),
    (EnsembleTimes, "count"),
)


@contextmanager
def without_counting() -> Iterator[None]:
    """Inside the block nothing is counted, and no moment of a step is kept."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in COUNTING]
    sender = ensemble_scheduler._StepSender
    send = sender.send
    for owner, name in COUNTING:
        setattr(owner, name, _nothing)
    sender.send = _send_on  # type: ignore[method-assign]
    try:
        yield
    finally:
        for owner, name, method in kept:
            setattr(owner, name, method)
        sender.send = send  # type: ignore[method-assign]


def _nothing(*_: object, **__: object) -> None:
    """Counts nothing."""


def _send_on(self: Any, response: Any, final: bool) -> None:
    run_step = self._run_step
    if final:
        self.request = self._run_step = self.times = None
    self._flight.step_answered(self, run_step, response, final, self.received_ns)


def cpu_us(server: EmbeddedServer, model: str, parameters: dict[str, Any] | None) -> float:
    """The processor's time for one request."""
    value = {"INPUT": np.zeros((1, ELEMENTS), np.float32)}
    start = time.process_time_ns()
    for _ in range(REQUESTS):
        server.infer(model, value, parameters=parameters)
    return (time.process_time_ns() - start) / REQUESTS / 1000


def measure(server: EmbeddedServer, model: str, rounds: int) -> dict[str, float]:
    """The medians by way; of the cost in percent, the median over pairs of rounds that follow each other."""
    counted, uncounted, asked, costs = [], [], [], []
    for number in range(rounds):
        with without_counting():
            before = cpu_us(server, model, None)
        as_it_is = (cpu_us(server, model, None) + cpu_us(server, model, None)) / 2
        with without_counting():
            after = cpu_us(server, model, None)
        if number < rounds // 10:
            # Instances are not known to be quick yet.
            continue
        counted.append(as_it_is)
        uncounted.append((before + after) / 2)
        costs.append(100 * (as_it_is / uncounted[-1] - 1))
        asked.append(cpu_us(server, model, {"cantata_timeline": True}))
    parts = {"counted": counted, "not counted": uncounted, "timeline": asked, "cost": costs}
    return {name: statistics.median(values) for name, values in parts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bound", type=float, default=3.0, help="percent that counting may cost (default 3)")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as directory:
        write_pipelines(Path(directory))
        with EmbeddedServer(directory) as server:
            print(f"{'CPU us a request':18} {'counted':>10} {'not counted':>12} {'cost':>7} {'timeline':>10}")
            for model in ("identity", "ensemble"):
                figures = measure(server, model, arguments.rounds)
                worst = max(worst, figures["cost"])
                times = f"{figures['counted']:10.1f} {figures['not counted']:12.1f}"
                print(f"{model:18} {times} {figures['cost']:6.1f}% {figures['timeline']:10.1f}")
    return worst > arguments.bound


if __name__ == "__main__":
    sys.exit(main())
