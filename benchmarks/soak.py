"""Does the server stay well under mixed load for a long time?

Serves the small examples and calls all of them at once, over both protocols: single answers, streams, streams whose
reader leaves in the middle, and requests that must be refused. Then prints how many calls of each kind were made,
what went wrong, and how much the server's memory grew after the first minute (goal: no error, under 5%).

    python benchmarks/soak.py [--minutes 10]
"""

from __future__ import annotations

import argparse
import itertools
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from models import write_pipelines
from servers import ROOT, RunningServer, running
from tritonclient.utils import InferenceServerException

EXAMPLES = ("add_sub", "fan_out", "nested", "repeat")
LARGEST_GROWTH = 0.05
SAMPLE_EVERY_S = 2.0
REPORT_EVERY_S = 30.0
ANSWER_WITHIN_S = 30

Api = Any
Client = Any
Call = Callable[[Api, Client], None]


def infer(api: Api, client: Client, model: str, **inputs: np.ndarray) -> Any:
    tensors = []
    for name, array in inputs.items():
        datatype = {"f": "FP32", "i": "INT32", "u": "UINT32", "O": "BYTES"}[array.dtype.kind]
        tensor = api.InferInput(name, array.shape, datatype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return client.infer(model, tensors)


def double(api: Api, client: Client) -> None:
    batch = np.random.default_rng().integers(1, 9)
    a, b = np.full((batch, 4), 3, np.float32), np.full((batch, 4), -5, np.float32)
    assert (infer(api, client, "double", A=a, B=b).as_numpy("TWICE_B") == -10).all()


def readings(api: Api, client: Client) -> None:
    answer = infer(api, client, "readings", READINGS=np.arange(2_000, dtype=np.float32))
    assert answer.as_numpy("PEAK") == [1_999]


def word_count(api: Api, client: Client) -> None:
    text = np.array([" ".join(["tea", "milk", "tea"] * 50)], np.object_)
    assert infer(api, client, "word_count", TEXT=text).as_numpy("COUNTS").tolist() == [100, 50]


def bls(api: Api, client: Client) -> None:
    array = np.ones((1, 16), np.float32)
    assert (infer(api, client, "bls", INPUT=array).as_numpy("OUTPUT") == array).all()


def unknown_model(api: Api, client: Client) -> None:
    expect_refusal("unknown model", lambda: infer(api, client, "nobody", A=np.zeros(1, np.float32)))


def wrong_shape(api: Api, client: Client) -> None:
    wrong = np.zeros((1, 5), np.float32)
    expect_refusal("unexpected shape", lambda: infer(api, client, "double", A=wrong, B=wrong))


def too_large_batch(api: Api, client: Client) -> None:
    large = np.zeros((9, 4), np.float32)
    expect_refusal("batch-size must be <=", lambda: infer(api, client, "double", A=large, B=large))


def expect_refusal(text: str, call: Callable[[], object]) -> None:
    refusal = "was not refused"
    try:
        call()
    except InferenceServerException as error:
        refusal = error.message()
    assert text in refusal, refusal


def countdown(api: Api, client: Client) -> None:
    received = start_countdown(api, client, list(range(20)))
    values = []
    while len(values) < 20:
        result, error = received.get(timeout=ANSWER_WITHIN_S)
        assert error is None, error
        values.append(int(result.as_numpy("VALUE")[0]))
    client.stop_stream()
    assert values == list(range(20))


def abandoned_countdown(api: Api, client: Client) -> None:
    received = start_countdown(api, client, list(range(1_000)))
    result, error = received.get(timeout=ANSWER_WITHIN_S)
    assert error is None, error
    assert result.as_numpy("VALUE").tolist() == [0]
    client.stop_stream(cancel_requests=True)


def start_countdown(api: Api, client: Client, values: list[int]) -> queue.SimpleQueue[Any]:
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    tensors = [api.InferInput("VALUES", [len(values)], "INT32"), api.InferInput("DELAY_MS", [1], "UINT32")]
    tensors[0].set_data_from_numpy(np.array(values, np.int32))
    tensors[1].set_data_from_numpy(np.array([1], np.uint32))
    client.start_stream(lambda result, error: received.put((result, error)))
    client.async_stream_infer("countdown", tensors)
    return received


EVERYWHERE: tuple[Call, ...] = (
    double,
    readings,
    word_count,
    bls,
    unknown_model,
    wrong_shape,
    too_large_batch,
)
LOADS: tuple[tuple[Api, tuple[Call, ...]], ...] = (
    (tritonclient.grpc, EVERYWHERE),
    (tritonclient.http, EVERYWHERE),
    (tritonclient.grpc, (countdown, abandoned_countdown)),
    (tritonclient.grpc, (countdown,)),
)


class Clients:
    """One thread for each of LOADS, until `stop`. What is counted may be read at any time."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=load) for load in LOADS]
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, api: Api, calls: tuple[Call, ...]) -> None:
        protocol = api.__name__.rpartition(".")[2]
        url = {"grpc": self._server.grpc, "http": self._server.http}[protocol]
        with api.InferenceServerClient(url) as client:
            for call in itertools.cycle(calls):
                if self._is_over.is_set():
                    return
                name = f"{call.__name__} ({protocol})"
                try:
                    call(api, client)
                except Exception as error:
                    self.errors[f"{name}: {type(error).__name__}: {error}"] += 1
                self.calls[name] += 1


def memory_samples(server: RunningServer, clients: Clients, seconds: float) -> list[tuple[float, float]]:
    """The server's memory in MB and when it was read, until `seconds` are over."""
    samples: list[tuple[float, float]] = []
    started = reported = time.monotonic()
    while (now := time.monotonic()) - started < seconds:
        samples.append((now - started, server.memory_mb()))
        if now - reported >= REPORT_EVERY_S:
            reported = now
            progress = (
                f"{now - started:5.0f} s {clients.calls.total():9} calls {clients.errors.total()} errors"
            )
            print(f"{progress} {samples[-1][1]:7.1f} MB", file=sys.stderr, flush=True)
        time.sleep(SAMPLE_EVERY_S)
    return samples


def growth_of(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """Memory when the first minute (or fifth of the time) is over, and at the end, each a mean of some samples."""
    first_s = min(60.0, samples[-1][0] / 5)
    later = [memory for second, memory in samples if second >= first_s]
    width = max(1, len(later) // 10)
    return mean(later[:width]), mean(later[-width:])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        write_pipelines(repository)
        for example in EXAMPLES:
            for model in (ROOT / "examples" / "ensembles" / example / "models").iterdir():
                (repository / model.name).symlink_to(model)
        with running("cantata", repository) as server:
            clients = Clients(server)
            clients.start()
            samples = memory_samples(server, clients, minutes * 60)
            clients.stop()
    for name, count in sorted(clients.calls.items()):
        print(f"{name:28}{count:10} calls")
    for text, count in clients.errors.most_common():
        print(f"{count} times: {text}")
    before, after = growth_of(samples)
    growth = after / before - 1
    print(f"{clients.errors.total()} errors; memory {before:.1f} MB, then {after:.1f} MB: {growth:+.1%}")
    return 0 if not clients.errors and growth < LARGEST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
