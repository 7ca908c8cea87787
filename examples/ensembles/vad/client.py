"""Streams sounds to the ensemble `vad`, one by one and many at once, and prints who spoke when.

Owns the comparison: with what is expected, and of the answers alone with those in company. A stock Triton client.
"""

from __future__ import annotations

import argparse
import importlib
import json
import queue
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sounds import made_sounds, recorded, spoken

HERE = Path(__file__).resolve().parent
DEFAULT_URLS = {"grpc": "localhost:8001", "http": "localhost:8000"}
FRAME = 512
SECONDS_PER_FRAME = FRAME / 16_000
SENTENCE = "This is a test of the voice activity detector. Nobody needs to say anything."
# How far a probability may be from that of the same stream alone: in a batch, additions have another order.
TOLERANCE = 1e-3
# How many frames a beginning or an end may be from where it is expected: rounding differs between machines.
FRAMES_OFF = 1
LONGEST_WAIT_S = 60

Frames = npt.NDArray[np.int16]
# What the server answers for each frame: how probable speech is, and whether somebody speaks.
Answers = list[tuple[float, bool]]


def audio(api: Any, frame: npt.NDArray[np.int16]) -> Any:
    tensor = api.InferInput("AUDIO", [1, FRAME], "INT16")
    tensor.set_data_from_numpy(frame.reshape(1, FRAME))
    return tensor


def answer_of(result: Any) -> tuple[float, bool]:
    return float(result.as_numpy("PROBABILITY").item()), bool(result.as_numpy("SPEECH").item())


def stream_over_grpc(url: str, stream: int, frames: Frames) -> Answers:
    """All frames are sent at once: the server keeps them in order."""
    api = importlib.import_module("tritonclient.grpc")
    received: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    answers: Answers = []
    with api.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: received.put((result, error)))
        for index, frame in enumerate(frames):
            client.async_stream_infer(
                "vad",
                [audio(api, frame)],
                sequence_id=stream,
                sequence_start=index == 0,
                sequence_end=index == len(frames) - 1,
            )
        for _ in frames:
            result, error = received.get(timeout=LONGEST_WAIT_S)
            if error is not None:
                raise error
            answers.append(answer_of(result))
        client.stop_stream()
    return answers


def stream_over_http(url: str, stream: int, frames: Frames) -> Answers:
    """A request for each frame, once the one before is answered: HTTP keeps no order."""
    api = importlib.import_module("tritonclient.http")
    answers: Answers = []
    with api.InferenceServerClient(url) as client:
        for index, frame in enumerate(frames):
            result = client.infer(
                "vad",
                [audio(api, frame)],
                sequence_id=stream,
                sequence_start=index == 0,
                sequence_end=index == len(frames) - 1,
            )
            answers.append(answer_of(result))
    return answers


STREAM: dict[str, Callable[[str, int, Frames], Answers]] = {
    "grpc": stream_over_grpc,
    "http": stream_over_http,
}


def spoken_parts(answers: Answers) -> list[list[int]]:
    """[first, last] frame of each stretch of speech."""
    parts: list[list[int]] = []
    speaking = False
    for index, (_, speech) in enumerate(answers):
        if speech and not speaking:
            parts.append([index, index])
        elif speech:
            parts[-1][1] = index
        speaking = speech
    return parts


def are_near(found: list[list[int]], expected: list[list[int]]) -> bool:
    if len(found) != len(expected):
        return False
    differences = np.subtract(found, expected) if found else np.zeros(0)
    return bool((np.abs(differences) <= FRAMES_OFF).all())


def faults_alone(
    recordings: dict[str, Frames], alone: dict[str, Answers], expected: dict[str, Any]
) -> list[str]:
    """What is not as it should be of each stream by itself, in words; prints who spoke when."""
    found = []
    for name, answers in alone.items():
        parts = spoken_parts(answers)
        seconds = [[round(frame * SECONDS_PER_FRAME, 2) for frame in part] for part in parts]
        text = ", ".join(f"{first} s to {last} s" for first, last in seconds) or "nobody speaks"
        print(f"  {name:20}{len(recordings[name]) * SECONDS_PER_FRAME:5.1f} s   {text}")
        if name in expected and not are_near(parts, expected[name]):
            found.append(f"{name}: speech in the frames {parts}, not in {expected[name]}")
        if name not in expected and not parts:
            found.append(f"{name}: no speech was heard")
    return found


def faults_together(name: str, answers: Answers, alone: Answers) -> list[str]:
    difference = max(abs(one[0] - other[0]) for one, other in zip(answers, alone, strict=True))
    if difference > TOLERANCE:
        return [f"{name}: in company, a probability is {difference:.1e} away from that alone"]
    if not are_near(spoken_parts(answers), spoken_parts(alone)):
        return [
            f"{name}: in company, speech in the frames {spoken_parts(answers)}, not in {spoken_parts(alone)}"
        ]
    return []


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc")
    parser.add_argument("--url", help="host:port (default: localhost, port 8001 for grpc, 8000 for http)")
    parser.add_argument("--streams", type=int, default=32, help="how many at once (default: 32)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    url = arguments.url or DEFAULT_URLS[arguments.protocol]
    stream = STREAM[arguments.protocol]
    expected = json.loads((HERE / "expected.json").read_text())
    recordings = {name: recorded(sound, FRAME) for name, sound in made_sounds().items()}
    speech = spoken(SENTENCE)
    if speech is not None:
        recordings["espeak-ng"] = recorded(speech, FRAME)
    # Their numbers must not be in use already: by this program, run by somebody else.
    first = time.time_ns() % 2**48 * 2**10

    print(f"vad over {arguments.protocol} at {url}: one stream at a time")
    alone = {
        name: stream(url, first + index, frames)
        for index, (name, frames) in enumerate(recordings.items(), start=1)
    }
    found = faults_alone(recordings, alone, expected)

    names = [list(recordings)[index % len(recordings)] for index in range(arguments.streams)]
    started = time.monotonic()
    with ThreadPoolExecutor(max(len(names), 1)) as pool:
        futures = [
            pool.submit(stream, url, first + 512 + index, recordings[name])
            for index, name in enumerate(names)
        ]
        together = [future.result() for future in futures]
    elapsed = time.monotonic() - started
    for name, answers in zip(names, together, strict=True):
        found += faults_together(name, answers, alone[name])
    heard = sum(len(recordings[name]) for name in names) * SECONDS_PER_FRAME
    print(f"{len(names)} streams at once: {heard:.0f} s of sound in {elapsed:.2f} s")
    print("\n".join(found) or "each stream has the same answers as alone, and speech where it should be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
