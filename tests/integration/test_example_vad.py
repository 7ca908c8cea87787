"""The voice activity example: many streams at once have the answers of the model run by itself, stream by stream."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnxruntime import InferenceSession

from cantata import Server
from examples.ensembles.vad import sounds

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ensembles" / "vad"
EXPECTED: dict[str, list[list[int]]] = json.loads((EXAMPLE / "expected.json").read_text())
FRAME = 512
# In a batch, additions have another order.
TOLERANCE = 1e-3

Frames = npt.NDArray[np.int16]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    subprocess.run([sys.executable, EXAMPLE / "prepare.py"], check=True)
    with Server(EXAMPLE / "models") as server:
        yield server


@pytest.fixture(scope="module")
def recordings() -> dict[str, Frames]:
    return {name: sounds.recorded(sound, FRAME) for name, sound in sounds.made_sounds().items()}


def probabilities_without_a_server(recording: Frames) -> list[float]:
    """The model's own, with the states passed on by hand."""
    model = EXAMPLE / "models" / "silero_vad" / "1" / "model.onnx"
    session = InferenceSession(str(model), providers=["CPUExecutionProvider"])
    state, context = np.zeros((1, 2, 128), np.float32), np.zeros((1, 64), np.float32)
    names = ["PROBABILITY", "NEXT_STATE", "NEXT_CONTEXT"]
    found = []
    for frame in recording.astype(np.float32) / 32_768:
        inputs = {"FRAME": frame[np.newaxis], "STATE": state, "CONTEXT": context}
        probability, state, context = session.run(names, inputs)
        found.append(float(probability.item()))
    return found


def stream(server: Server, number: int | str, recording: Frames) -> list[dict[str, npt.NDArray[Any]]]:
    last = len(recording) - 1
    return [
        server.infer(
            "vad",
            {"AUDIO": frame[np.newaxis]},
            sequence_id=number,
            sequence_start=index == 0,
            sequence_end=index == last,
        )
        for index, frame in enumerate(recording)
    ]


def executions(server: Server) -> int:
    [statistics] = server.core.statistics("silero_vad")
    return statistics.execution_count


def test_streams_in_batches_have_the_answers_of_the_model_alone(
    server: Server, recordings: dict[str, Frames]
) -> None:
    alone = {name: probabilities_without_a_server(recording) for name, recording in recordings.items()}
    names = [*recordings] * 4
    before = executions(server)
    with ThreadPoolExecutor(len(names)) as pool:
        streams = pool.map(
            lambda item: stream(server, item[0], recordings[item[1]]), enumerate(names, start=1)
        )
        together = list(streams)
    for name, answers in zip(names, together, strict=True):
        probabilities = [float(answer["PROBABILITY"].item()) for answer in answers]
        np.testing.assert_allclose(probabilities, alone[name], rtol=0, atol=TOLERANCE, err_msg=name)
    # Otherwise this has shown nothing.
    assert executions(server) - before < sum(map(len, together))


def test_a_stream_that_begins_again_has_forgotten_everything(
    server: Server, recordings: dict[str, Frames]
) -> None:
    recording = recordings["low voice"]
    first = stream(server, 1_001, recording)
    # Cut short in the midst of speech, without an end.
    for index, frame in enumerate(recording[:40]):
        server.infer("vad", {"AUDIO": frame[np.newaxis]}, sequence_id=1_002, sequence_start=index == 0)
    again = stream(server, 1_002, recording)
    np.testing.assert_array_equal(
        [answer["PROBABILITY"] for answer in again], [answer["PROBABILITY"] for answer in first]
    )


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_speech_is_heard_where_it_is(server: Server, recordings: dict[str, Frames], name: str) -> None:
    sys.path.insert(0, str(EXAMPLE))
    try:
        client = importlib.import_module("client")
    finally:
        sys.path.remove(str(EXAMPLE))
        sys.modules.pop("client", None)
    answers = [
        (float(answer["PROBABILITY"].item()), bool(answer["SPEECH"].item()))
        for answer in stream(server, 2_000 + sorted(EXPECTED).index(name), recordings[name])
    ]
    assert client.are_near(client.spoken_parts(answers), EXPECTED[name])
