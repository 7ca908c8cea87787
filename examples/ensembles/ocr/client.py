"""Sends the drawn pictures to a server and compares what it reads with what was drawn.

Owns the comparison and its thresholds: clean pictures must be read without a fault, all together to 95% of their
characters. A stock Triton client, it knows nothing of the server behind the address.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
REQUIRED_SCORE = 0.95
DEFAULT_URLS = {"grpc": "localhost:8001", "http": "localhost:8000"}
PROGRAMS = ("ocr_bls", "ocr_pipeline")
STEPS = ("decode", "text_detection", "find_boxes", "angle_classifier", "text_recognition", "decode_text")


class Line(NamedTuple):
    text: str
    score: float


class StepTime(NamedTuple):
    executions: int
    queue_ns: int
    compute_ns: int


class OcrClient:
    """One model of one server, over one protocol. Close it, or use it in a `with`."""

    def __init__(self, protocol: str, url: str, model: str) -> None:
        self._protocol = protocol
        self._api = importlib.import_module(f"tritonclient.{protocol}")
        self._client = self._api.InferenceServerClient(url)
        self._model = model

    def __enter__(self) -> OcrClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self, picture: bytes) -> list[Line]:
        """The lines of text in a JPEG or PNG file, in reading order."""
        answer = self._infer(picture)
        pairs = zip(answer.as_numpy("TEXT"), answer.as_numpy("SCORE"), strict=True)
        return [Line(text.decode(), float(score)) for text, score in pairs]

    def timeline(self, picture: bytes) -> dict[str, Any]:
        """Where the time of reading a picture went, step by step; cantata tells, and no other server."""
        answer = self._infer(picture, parameters={"cantata_timeline": True}).get_response()
        if self._protocol == "grpc":
            text = answer.parameters["cantata_timeline"].string_param
        else:
            text = answer["parameters"]["cantata_timeline"]
        return dict(json.loads(text))

    def _infer(self, picture: bytes, **options: Any) -> Any:
        image = self._api.InferInput("IMAGE", [1], "BYTES")
        image.set_data_from_numpy(np.array([picture], np.object_))
        wanted = [self._api.InferRequestedOutput(name) for name in ("TEXT", "SCORE")]
        return self._client.infer(self._model, [image], outputs=wanted, **options)

    def step_times(self) -> dict[str, StepTime]:
        """For each model of the server, how often it ran so far and for how long."""
        as_json = {"as_json": True} if self._protocol == "grpc" else {}
        statistics = self._client.get_inference_statistics(**as_json)
        return {model["name"]: _step_time(model["inference_stats"]) for model in statistics["model_stats"]}


def _step_time(durations: dict[str, Any]) -> StepTime:
    """Zeroes are left out of the JSON that gRPC gives, and its integers are strings."""

    def total(name: str, field: str = "ns") -> int:
        return int(durations.get(name, {}).get(field, 0))

    compute_ns = total("compute_input") + total("compute_infer") + total("compute_output")
    return StepTime(total("success", "count"), total("queue"), compute_ns)


def edit_distance(read: str, drawn: str) -> int:
    """How many characters must be put in, taken out or replaced to make one of the other."""
    previous = list(range(len(drawn) + 1))
    for row, left in enumerate(read, 1):
        current = [row]
        for column, right in enumerate(drawn, 1):
            replaced = previous[column - 1] + (left != right)
            current.append(min(replaced, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


def print_comparison(name: str, lines: list[Line], drawn: list[str]) -> None:
    print(name)
    for index in range(max(len(lines), len(drawn))):
        read, score = lines[index] if index < len(lines) else Line("", 0.0)
        wanted = drawn[index] if index < len(drawn) else ""
        remark = "" if read == wanted else f"   <- drawn: {wanted!r}"
        print(f"  {score:4.2f}  {read}{remark}")
    if not lines and not drawn:
        print("        (no text, as drawn)")


def print_times(before: dict[str, StepTime], after: dict[str, StepTime], models: Iterable[str]) -> None:
    print(f"{'where the time went':20} {'runs':>5} {'waiting, ms':>12} {'running, ms':>12}   (mean of a run)")
    for model in models:
        if model not in after:
            continue
        old, new = before.get(model, StepTime(0, 0, 0)), after[model]
        runs = new.executions - old.executions
        if runs:
            waiting, running = (new.queue_ns - old.queue_ns) / runs, (new.compute_ns - old.compute_ns) / runs
            print(f"  {model:18} {runs:5} {waiting / 1e6:12.2f} {running / 1e6:12.2f}")


def timeline_lines(entry: dict[str, Any], depth: int = 0) -> list[str]:
    """A timeline as a table: each step and call under what it is part of, when it began, and what took longest."""
    phases = sorted(entry["phases_us"].items(), key=lambda phase: -phase[1])
    split = ", ".join(f"{name} {time / 1e3:.2f}" for name, time in phases[:3] if time >= 10)
    name = "  " * depth + entry["model"]
    lines = [f"  {name:22} {entry['start_us'] / 1e3:9.2f} {entry['total_us'] / 1e3:9.2f}   {split}"]
    for inner in (*entry.get("steps", ()), *entry.get("calls", ())):
        lines += timeline_lines(inner, depth + 1)
    return lines


def read_pictures(client: OcrClient, model: str) -> bool:
    """Reads every picture that the model can be asked for; whether it did as well as it must."""
    faults = characters = 0
    flawed = []
    for name, answer in json.loads((HERE / "expected.json").read_text()).items():
        drawn = answer["lines"]
        if answer.get("needs_a_program") and model not in PROGRAMS:
            print(f"{name}\n        (left to {' and '.join(PROGRAMS)}, which can turn a line)")
            continue
        lines = client.read((HERE / "images" / name).read_bytes())
        print_comparison(name, lines, drawn)
        distance = edit_distance("\n".join(line.text for line in lines), "\n".join(drawn))
        faults, characters = faults + distance, characters + len("\n".join(drawn))
        if answer["clean"] and distance:
            flawed.append(name)
    score = 1 - faults / characters
    print(f"\n{model}: {score:.2%} of {characters} characters read (required: {REQUIRED_SCORE:.0%})")
    if flawed:
        print(f"{model}: clean pictures that were misread: {', '.join(flawed)}")
    return score >= REQUIRED_SCORE and not flawed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc")
    parser.add_argument("--url", help="host:port (default: localhost, port 8001 for grpc, 8000 for http)")
    parser.add_argument("--model", choices=("ocr", *PROGRAMS), default="ocr")
    parser.add_argument("--timeline", action="store_true", help="show where the time of one picture went")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    url = arguments.url or DEFAULT_URLS[arguments.protocol]
    print(f"{arguments.model} over {arguments.protocol} at {url}: score and text of each line\n")
    with OcrClient(arguments.protocol, url, arguments.model) as client:
        before = client.step_times()
        good = read_pictures(client, arguments.model)
        print_times(before, client.step_times(), (*STEPS, arguments.model))
        if arguments.timeline:
            picture = sorted((HERE / "images").iterdir())[0]
            print(f"\n{f'one request: {picture.name}':24} {'at, ms':>9} {'for, ms':>9}   most of it")
            print("\n".join(timeline_lines(client.timeline(picture.read_bytes()))))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
