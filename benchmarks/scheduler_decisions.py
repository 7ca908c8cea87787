"""What one scheduling decision costs, at queue depths and numbers of live sequences from 1 to 100,000.

Prints microseconds a request: to queue it, to ask whether a batch is ready, to take it and to end its batch, all
together, as CPU time, the least of a few measurements. No model runs and no thread is started: this is the deciders'
own cost.

    python benchmarks/scheduler_decisions.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from cantata.grammars.model_config import (
    DataType,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelSequenceBatching,
    SequenceStrategyDirect,
    SequenceStrategyOldest,
)
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START, InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.batcher import Batcher, SingleRequestQueue
from cantata.runtime.scheduling.dynamic_batcher import DynamicBatcher
from cantata.runtime.scheduling.sequence_batcher import SequenceBatcher
from cantata.runtime.scheduling.sequence_strategies import sequence_batcher
from cantata.runtime.scheduling.sequence_table import Sequence
from cantata.runtime.tensor import tensor_of_array

DEPTHS = (1, 10, 100, 1_000, 10_000, 100_000)
ROUNDS = 20_000
REPEATS = 3
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


def ignore(request: InferenceRequest, sequence: Sequence) -> None:
    """Stands for what adds the control tensors: that is no decision."""


def queue_cost(make: Callable[[], Batcher], depth: int) -> float:
    """Microseconds a request through a queue that is kept `depth` deep."""
    batcher = make()
    for _ in range(depth):
        batcher.add(request(), 0)
    waiting = [request() for _ in range(ROUNDS)]
    started = time.thread_time_ns()
    taken = 0
    for each in waiting:
        batcher.add(each, 0)
        taken -= 1
        while taken < 0 and batcher.ready_at(0) == 0:
            taken += len(batcher.take(0).requests)
    return (time.thread_time_ns() - started) / ROUNDS / 1000


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="*", default=DEPTHS)
    depths = parser.parse_args().depths
    spec = ModelSpec(model_config(), 1)
    columns: dict[str, Callable[[int], float]] = {
        "single": lambda depth: queue_cost(SingleRequestQueue, depth),
        "dynamic": lambda depth: queue_cost(lambda: DynamicBatcher(spec, (), 0), depth),
        "oldest, live": lambda depth: live_cost(oldest(depth), depth),
        "oldest, waiting": lambda depth: backlog_cost(oldest(MAX_BATCH_SIZE), depth),
        "direct, waiting": lambda depth: backlog_cost(direct(), depth),
    }
    print(f"{'depth':>8}" + "".join(f"{name:>18}" for name in columns) + "   us a request")
    for depth in depths:
        costs = [min(measure(depth) for _ in range(REPEATS)) for measure in columns.values()]
        print(f"{depth:>8}" + "".join(f"{cost:>18.2f}" for cost in costs))


if __name__ == "__main__":
    main()
