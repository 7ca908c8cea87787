"""Sends readings to the ensemble `readings`, once for both outputs and once for one, and checks the answers."""

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


def ask(api: ModuleType, client: Any, readings: list[float], *outputs: str) -> list[Any]:
    """The outputs asked for; steps that only others need do not run."""
    tensor = api.InferInput("READINGS", [len(readings)], "FP32")
    tensor.set_data_from_numpy(np.array(readings, np.float32))
    wanted = [api.InferRequestedOutput(name) for name in outputs]
    answer = client.infer("readings", [tensor], outputs=wanted)
    return [answer.as_numpy(name)[0] for name in outputs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc")
    parser.add_argument("--url", help="host:port (default: localhost, port 8001 for grpc, 8000 for http)")
    arguments = parser.parse_args()
    api = importlib.import_module(f"tritonclient.{arguments.protocol}")
    is_right = True
    with api.InferenceServerClient(arguments.url or DEFAULT_URLS[arguments.protocol]) as client:
        for case in json.loads(EXPECTED.read_text()):
            text, peak = ask(api, client, case["READINGS"], "TEXT", "PEAK")
            [peak_alone] = ask(api, client, case["READINGS"], "PEAK")
            print(f"{case['READINGS']} -> {text.decode()!r}; peak alone: {peak_alone}")
            is_right &= text.decode() == case["TEXT"] and peak == peak_alone == case["PEAK"]
    print("as expected" if is_right else "not as expected")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
