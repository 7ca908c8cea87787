"""Sends pairs of vectors to the ensemble `double` and compares the answers with expected.json."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

EXPECTED = Path(__file__).parent / "expected.json"
DEFAULT_URLS = {"grpc": "localhost:8001", "http": "localhost:8000"}


def double(api: ModuleType, client: Any, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One request with both vectors; the first dimension is the batch."""
    inputs = [api.InferInput("A", a.shape, "FP32"), api.InferInput("B", b.shape, "FP32")]
    inputs[0].set_data_from_numpy(a)
    inputs[1].set_data_from_numpy(b)
    answer = client.infer("double", inputs)
    return answer.as_numpy("TWICE_A"), answer.as_numpy("TWICE_B")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc")
    parser.add_argument("--url", help="host:port (default: localhost, port 8001 for grpc, 8000 for http)")
    arguments = parser.parse_args()
    api = importlib.import_module(f"tritonclient.{arguments.protocol}")
    is_right = True
    with api.InferenceServerClient(arguments.url or DEFAULT_URLS[arguments.protocol]) as client:
        for case in json.loads(EXPECTED.read_text()):
            case = {name: np.array(rows, np.float32) for name, rows in case.items()}
            twice_a, twice_b = double(api, client, case["A"], case["B"])
            print(
                f"A {case['A'].tolist()} -> {twice_a.tolist()}, B {case['B'].tolist()} -> {twice_b.tolist()}"
            )
            is_right &= np.array_equal(twice_a, case["TWICE_A"]) and np.array_equal(twice_b, case["TWICE_B"])
    print("as expected" if is_right else "not as expected")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
