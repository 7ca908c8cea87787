"""Sends sentences to a server and compares their embeddings: with each other, and with what they should be.

Owns the comparison. A stock Triton client, it knows nothing of the server behind the address.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DEFAULT_URLS = {"grpc": "localhost:8001", "http": "localhost:8000"}
# How far a number may be from the expected one: the order of additions differs between machines.
TOLERANCE = 1e-4


def embed(protocol: str, url: str, sentences: list[str]) -> np.ndarray:
    """A vector of 384 numbers and length 1 for each sentence."""
    api = importlib.import_module(f"tritonclient.{protocol}")
    client = api.InferenceServerClient(url)
    try:
        texts = api.InferInput("TEXT", [len(sentences), 1], "BYTES")
        texts.set_data_from_numpy(np.array([[sentence.encode()] for sentence in sentences], np.object_))
        return client.infer("embeddings", [texts]).as_numpy("EMBEDDING")
    finally:
        client.close()


def print_similarities(sentences: list[str], similarities: np.ndarray) -> None:
    width = max(map(len, sentences))
    print(" " * (width + 4) + "".join(f"{column + 1:7}" for column in range(len(sentences))))
    for row, sentence in enumerate(sentences):
        print(f"{row + 1:2}  {sentence:{width}}" + "".join(f"{value:7.3f}" for value in similarities[row]))


def faults(expected: dict, embeddings: np.ndarray, similarities: np.ndarray) -> list[str]:
    """What is not as it should be, in words."""
    found = []
    difference = float(np.abs(embeddings[:, : len(expected["beginnings"][0])] - expected["beginnings"]).max())
    if difference > TOLERANCE:
        found.append(f"an embedding is {difference:.1e} away from the expected one")
    for one, other in expected["similar"]:
        nearest = max(
            (index for index in range(len(similarities)) if index != one), key=similarities[one].item
        )
        if nearest != other:
            found.append(f"sentence {one + 1} is nearest to {nearest + 1}, not to {other + 1}")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc")
    parser.add_argument("--url", help="host:port (default: localhost, port 8001 for grpc, 8000 for http)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    url = arguments.url or DEFAULT_URLS[arguments.protocol]
    expected = json.loads((HERE / "expected.json").read_text())
    embeddings = embed(arguments.protocol, url, expected["sentences"])
    similarities = embeddings @ embeddings.T
    print(f"embeddings over {arguments.protocol} at {url}: how similar the sentences are, -1 to 1\n")
    print_similarities(expected["sentences"], similarities)
    found = faults(expected, embeddings, similarities)
    print("\n" + ("\n".join(found) or "each sentence is nearest to the one that means the same, as expected"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
