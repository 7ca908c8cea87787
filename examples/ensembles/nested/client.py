"""Counts the words of a few texts with the ensemble `word_count` and compares the answers with expected.json."""

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


def count_words(api: ModuleType, client: Any, text: str) -> dict[str, int]:
    tensor = api.InferInput("TEXT", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], np.object_))
    answer = client.infer("word_count", [tensor])
    words, counts = answer.as_numpy("WORDS"), answer.as_numpy("COUNTS")
    return {word.decode(): int(count) for word, count in zip(words, counts, strict=True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc")
    parser.add_argument("--url", help="host:port (default: localhost, port 8001 for grpc, 8000 for http)")
    arguments = parser.parse_args()
    api = importlib.import_module(f"tritonclient.{arguments.protocol}")
    is_right = True
    with api.InferenceServerClient(arguments.url or DEFAULT_URLS[arguments.protocol]) as client:
        for case in json.loads(EXPECTED.read_text()):
            counts = count_words(api, client, case["TEXT"])
            print(f"{case['TEXT']!r} -> {counts}")
            is_right &= counts == case["COUNTS"]
    print("as expected" if is_right else "not as expected")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
