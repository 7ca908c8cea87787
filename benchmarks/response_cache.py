"""What an answer from the response cache costs, beside running an identity model: in the server, without any wire.

    python benchmarks/response_cache.py [--seconds 1]

Each figure is the best of five rounds. A "miss" is a request that has never come before: it is digested, run and kept.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cantata import Server

ROUNDS = 5
SIZES = (16, 16_384, 262_144)
CONFIG = """
backend: "python"
input {{ name: "INPUT" data_type: TYPE_FP32 dims: [ -1 ] }}
output {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ -1 ] }}
{extra}
"""
MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", request.inputs()[0].as_numpy())])
            for request in requests
        ]
"""


def write_models(repository: Path) -> None:
    for name, extra in (("plain", ""), ("cached", "response_cache { enable: true }")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(CONFIG.format(extra=extra))
        (repository / name / "1" / "model.py").write_text(MODEL)


def microseconds(call: Callable[[], object], seconds: float) -> float:
    """The processor time of one call, in the best of the rounds: others may be using the machine."""
    best = float("inf")
    for _ in range(ROUNDS):
        count = 0
        start = time.process_time()
        while time.process_time() - start < seconds / ROUNDS:
            call()
            count += 1
        best = min(best, (time.process_time() - start) / count)
    return best * 1e6


def new_inputs(elements: int) -> Iterator[dict[str, np.ndarray]]:
    for number in itertools.count():
        array = np.zeros(elements, np.float32)
        array[0] = number
        yield {"INPUT": array}


def infer_next(server: Server, inputs: Iterator[dict[str, np.ndarray]]) -> None:
    server.infer("cached", next(inputs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each figure is measured")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as directory:
        write_models(Path(directory))
        with Server(directory, cache_config={"local": {"size": 1 << 26}}) as server:
            print(
                f"{'bytes':>10} {'uncached':>10} {'hit':>10} {'miss':>10}   microseconds of processor a request"
            )
            for elements in SIZES:
                same = {"INPUT": np.ones(elements, np.float32)}
                fresh = new_inputs(elements)
                # The input's own making is in every figure of "miss".
                plain = microseconds(partial(server.infer, "plain", same), seconds)
                hit = microseconds(partial(server.infer, "cached", same), seconds)
                miss = microseconds(partial(infer_next, server, fresh), seconds)
                print(f"{4 * elements:>10} {plain:>10.1f} {hit:>10.1f} {miss:>10.1f}")


if __name__ == "__main__":
    main()
