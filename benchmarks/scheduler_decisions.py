"""What does one scheduling decision cost, and does that grow with what waits, lives or is loaded?

Prints microseconds a request: to queue it, to ask whether a batch is ready, to take it and to end its batch, all
together, as CPU time, the least of a few measurements. No model runs and no thread is started: this is the deciders'
own cost. One table is by how many requests wait or sequences live, one by how many priority levels there are and one by
how many models are loaded. Ends with status 1 when a figure is over the bound.

    python benchmarks/scheduler_decisions.py [--bound 5]
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from cantata.grammars.model_config import (
    DataType,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelOutput,
    ModelQueuePolicy,
    ModelSequenceBatching,
    SequenceStrategyDirect,
    SequenceStrategyOldest,
)
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START, InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.batcher import Batcher, SingleRequestQueue
from cantata.runtime.scheduling.dynamic_batcher import DynamicBatcher
from cantata.runtime.scheduling.priority_queue import priority_queue
from cantata.runtime.scheduling.sequence_batcher import SequenceBatcher
from cantata.runtime.scheduling.sequence_strategies import sequence_batcher
from cantata.runtime.scheduling.sequence_table import Sequence as LiveSequence
from cantata.runtime.tensor import tensor_of_array

DEPTHS = (1, 10, 100, 1_000, 10_000, 100_000)
LEVELS = (1, 10, 100, 1_000)
LEVELS_DEPTH = 10_000
MODELS = (1, 10, 100, 1_000, 2_000)
ROUNDS = 20_000
REPEATS = 5
MAX_BATCH_SIZE = 16
_VALUE = tensor_of_array(np.zeros((1, 4), np.float32))


class Discarding:
    """The sender of requests that are never answered."""

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        """Nothing is kept."""

    def wait_until_ready(self) -> None:
        """Always ready."""


def model_config(batching: ModelSequenceBatching | None = None) -> ModelConfig:
    return ModelConfig(
        name="model",
        backend="python",
        max_batch_size=MAX_BATCH_SIZE,
        input=(ModelInput(name="INPUT", data_type=DataType.TYPE_FP32, dims=(-1,)),),
        output=(ModelOutput(name="OUTPUT", data_type=DataType.TYPE_FP32, dims=(-1,)),),
        sequence_batching=batching,
    )


def request(correlation_id: int = 0, flags: int = 0) -> InferenceRequest:
    made = InferenceRequest(
        "model", {"INPUT": _VALUE}, Discarding(), 0, correlation_id=correlation_id, flags=flags
    )
    made.batch_size = 1
    return made


def ignore(request: InferenceRequest, sequence: LiveSequence) -> None:
    """Stands for what adds the control tensors: that is no decision."""


def queue_cost(make: Callable[[], Batcher], depth: int, levels: int = 0) -> float:
    """Microseconds a request through a queue that is kept `depth` deep; they are of `levels` levels, in any order."""
    batcher = make()
    chance = random.Random(0)

    def any_request() -> InferenceRequest:
        made = request()
        made.priority = chance.randint(1, levels) if levels else 0
        return made

    for _ in range(depth):
        batcher.add(any_request(), 0)
    waiting = [any_request() for _ in range(ROUNDS)]
    started = time.thread_time_ns()
    taken = 0
    for each in waiting:
        batcher.add(each, 0)
        taken -= 1
        while taken < 0 and batcher.ready_at(0) == 0:
            taken += len(batcher.take(0).requests)
    return (time.thread_time_ns() - started) / ROUNDS / 1000


def models_cost(make: Callable[[], Batcher], count: int) -> float:
    """Microseconds a request of one of `count` models, each in its turn, where no request waits for another."""
    batchers = [make() for _ in range(count)]
    waiting = [request() for _ in range(ROUNDS)]
    started = time.thread_time_ns()
    for each, batcher in zip(waiting, itertools.cycle(batchers), strict=False):
        batcher.add(each, 0)
        if batcher.ready_at(0) == 0:
            batcher.take(0)
    return (time.thread_time_ns() - started) / ROUNDS / 1000


def with_levels(spec: ModelSpec, levels: int, *, timeout_us: int = 0) -> Batcher:
    """A dynamic batcher with priorities, and with a timeout for every request."""
    policy = ModelQueuePolicy(default_timeout_microseconds=timeout_us)
    batching = ModelDynamicBatching(
        priority_levels=levels, default_priority_level=1, default_queue_policy=policy
    )
    return DynamicBatcher(spec, (), 0, priorities=priority_queue(batching))


def live_cost(batcher: SequenceBatcher, live: int) -> float:
    """Microseconds a request of one of `live` sequences, each of which has a slot."""
    for number in range(1, live + 1):
        batcher.add(request(number, SEQUENCE_START), 0)
        run_all(batcher)
    step = max(1, live // ROUNDS)
    waiting = [request(1 + index * step % live) for index in range(ROUNDS)]
    started = time.thread_time_ns()
    for now_ns, each in enumerate(waiting):
        batcher.add(each, now_ns)
        run_all(batcher)
    return (time.thread_time_ns() - started) / ROUNDS / 1000


def backlog_cost(batcher: SequenceBatcher, depth: int) -> float:
    """Microseconds a request, each a whole sequence, while `depth` sequences wait for a slot."""
    whole = SEQUENCE_START | SEQUENCE_END
    for number in range(1, depth + 1):
        batcher.add(request(number, whole), 0)
    waiting = [request(depth + 1 + index, whole) for index in range(ROUNDS)]
    started = time.thread_time_ns()
    for index, each in enumerate(waiting):
        batcher.add(each, 0)
        if index % MAX_BATCH_SIZE == 0:
            batcher.finished(0, batcher.take(0, 0), (), 0)
    return (time.thread_time_ns() - started) / ROUNDS / 1000


def run_all(batcher: SequenceBatcher) -> None:
    while batcher.ready_at(0, 0) == 0:
        batcher.finished(0, batcher.take(0, 0), (), 0)


def sequences(batching: ModelSequenceBatching) -> SequenceBatcher:
    batcher = sequence_batcher(batching, ModelSpec(model_config(batching), 1), ignore)
    batcher.add_lane(0)
    return batcher


def oldest(candidates: int) -> SequenceBatcher:
    return sequences(
        ModelSequenceBatching(
            max_sequence_idle_microseconds=10**12,
            oldest=SequenceStrategyOldest(max_candidate_sequences=candidates),
        )
    )


def direct() -> SequenceBatcher:
    return sequences(
        ModelSequenceBatching(max_sequence_idle_microseconds=10**12, direct=SequenceStrategyDirect())
    )


# By the name of a column, what its figure is for a number.
Columns = dict[str, Callable[[int], float]]


def print_table(head: str, numbers: Sequence[int], columns: Columns) -> float:
    """One line for each of `numbers`; returns the highest figure."""
    print(f"{head:>8}" + "".join(f"{name:>18}" for name in columns) + "   us a request")
    highest = 0.0
    for number in numbers:
        costs = [min(measure(number) for _ in range(REPEATS)) for measure in columns.values()]
        print(f"{number:>8}" + "".join(f"{cost:>18.2f}" for cost in costs), flush=True)
        highest = max(highest, *costs)
    return highest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bound", type=float, default=5.0, help="microseconds a request (default: 5)")
    parser.add_argument("--depths", type=int, nargs="*", default=DEPTHS)
    arguments = parser.parse_args()
    spec = ModelSpec(model_config(), 1)
    day_us = 86_400_000_000
    waiting: Columns = {
        "single": lambda depth: queue_cost(SingleRequestQueue, depth),
        "dynamic": lambda depth: queue_cost(lambda: DynamicBatcher(spec, (), 0), depth),
        "priorities": lambda depth: queue_cost(lambda: with_levels(spec, 10), depth, 10),
        "timeouts": lambda depth: queue_cost(lambda: with_levels(spec, 1, timeout_us=day_us), depth, 1),
        "oldest, live": lambda depth: live_cost(oldest(depth), depth),
        "oldest, waiting": lambda depth: backlog_cost(oldest(MAX_BATCH_SIZE), depth),
        "direct, waiting": lambda depth: backlog_cost(direct(), depth),
    }
    levels: Columns = {
        "priorities": lambda count: queue_cost(lambda: with_levels(spec, count), LEVELS_DEPTH, count)
    }
    models: Columns = {
        "single": lambda count: models_cost(SingleRequestQueue, count),
        "dynamic": lambda count: models_cost(lambda: DynamicBatcher(spec, (), 0), count),
    }
    tables = [("depth", arguments.depths, waiting), ("levels", LEVELS, levels), ("models", MODELS, models)]
    highest = max(print_table(*table) for table in tables)
    if highest > arguments.bound:
        print(f"{highest:.2f} us is over the bound of {arguments.bound:.2f} us", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
