"""The last step: the recognition model's probabilities become strings.

Owns the alphabet and the CTC decoding. Knows nothing of pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The class that says "no new character here".
BLANK = 0
SPACE = -1
# The model learned mostly from Chinese, which puts no space between words, and seldom says "space" outright. But the
# probability summed over the gap between two characters tells: of 8,863 gaps in drawn text, 1,201 of them between
# words, this threshold takes two for the wrong kind.
SPACE_THRESHOLD = 0.15


def read_alphabet(path: Path) -> list[str]:
    """The character of each class: the blank first, then those of the file, one a line, then the space."""
    return ["", *path.read_text(encoding="utf-8").split("\n"), " "]


def decode_line(probabilities: np.ndarray, alphabet: list[str]) -> tuple[str, float]:
    """The text of one line (columns, classes), and the mean probability of its characters (0 for no text).

    A character that goes on over several columns counts once; a blank between two makes them two.
    """
    best = probabilities.argmax(axis=1)
    [starts] = np.nonzero(np.concatenate(([True], best[1:] != best[:-1])) & (best != BLANK))
    if len(starts) == 0:
        return "", 0.0
    # From the start of each character to the start of the next: how much the columns speak for a space.
    space_follows = np.add.reduceat(probabilities[:, SPACE], starts) > SPACE_THRESHOLD
    characters = [
        alphabet[best[start]] + " " * bool(spaced)
        for start, spaced in zip(starts, space_follows, strict=True)
    ]
    # A space that was read and one that was added must not count twice.
    text = " ".join("".join(characters).split())
    return text, float(probabilities[starts, best[starts]].mean())


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self.alphabet = read_alphabet(folder / "characters.txt")
        parameters = json.loads(args["model_config"])["parameters"]
        self.minimum_score = float(parameters["minimum_score"]["string_value"])

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        probabilities = pb_utils.get_input_tensor_by_name(request, "PROBABILITIES").as_numpy()
        candidates = pb_utils.get_input_tensor_by_name(request, "CANDIDATES").as_numpy()
        # One row without a box is there when the page has none: it is no line.
        lines = [decode_line(line, self.alphabet) for line in probabilities[: len(candidates)]]
        kept = [index for index, (text, score) in enumerate(lines) if text and score >= self.minimum_score]
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("TEXT", np.array([lines[index][0].encode() for index in kept], np.object_)),
                pb_utils.Tensor("SCORE", np.array([lines[index][1] for index in kept], np.float32)),
                pb_utils.Tensor("BOXES", candidates[kept]),
            ]
        )
