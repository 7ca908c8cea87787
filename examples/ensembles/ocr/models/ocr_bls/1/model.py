"""The pipeline of `ocr` as a program, which can look at each line and decide what to do with it.

Owns the order of the calls and the decision whether a line may stand on its head. Every step of the work is
another model of the repository.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

# A line read with a lower score, or not at all, may stand on its head: the classifier is asked.
DOUBTFUL = 0.8
# Lines are turned only where the classifier is this sure.
SURE = 0.9
CROP_HEIGHT, CLASSIFIER_WIDTH, NARROWEST_TENSOR = 48, 192, 320


class Reading(NamedTuple):
    text: bytes
    score: float


class StepFailed(Exception):
    """Carries the error of a called model to the answer of the request that it was called for."""

    def __init__(self, error: pb_utils.TritonError) -> None:
        super().__init__(error.message())
        self.error = error


async def call(model_name: str, outputs: list[str], **inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of another model, in the order asked for; its error becomes ours."""
    request = pb_utils.InferenceRequest(
        model_name=model_name,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
    )
    response = await request.async_exec()
    if response.has_error():
        raise StepFailed(response.error())
    return [pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs]


def padded(crop: np.ndarray, width: int) -> np.ndarray:
    """The crop (3, height, any width) as a tensor (1, 3, height, width or more), grey on the right."""
    missing = max(0, width - crop.shape[2])
    return np.pad(crop, ((0, 0), (0, 0), (0, missing)))[np.newaxis]


def for_classifier(crop: np.ndarray) -> np.ndarray:
    width = min(crop.shape[2], CLASSIFIER_WIDTH)
    squeezed = cv2.resize(crop.transpose(1, 2, 0), (width, CROP_HEIGHT))
    return padded(squeezed.transpose(2, 0, 1), CLASSIFIER_WIDTH)


async def stands_on_its_head(crop: np.ndarray) -> bool:
    angle = "save_infer_model/scale_0.tmp_1"
    [probabilities] = await call("angle_classifier", [angle], x=for_classifier(crop))
    return bool(probabilities[0, 1] > SURE)


async def recognise(crop: np.ndarray, box: np.ndarray) -> Reading | None:
    """The text of one crop, or None where there is none."""
    characters = "softmax_11.tmp_0"
    [probabilities] = await call("text_recognition", [characters], x=padded(crop, NARROWEST_TENSOR))
    text, score = await call(
        "decode_text", ["TEXT", "SCORE"], PROBABILITIES=probabilities, CANDIDATES=box[np.newaxis]
    )
    return Reading(text[0], float(score[0])) if len(text) else None


async def read_line(crop: np.ndarray, box: np.ndarray, turned: bool) -> Reading | None:
    """Reads a crop, and turns it by half a circle where the classifier finds that it needs it.

    A crop that was turned by a quarter is as likely to stand on its head as not, so the classifier is asked first;
    others are read, and it is asked only when that went badly.
    """
    reading = None if turned else await recognise(crop, box)
    if reading is not None and reading.score >= DOUBTFUL:
        return reading
    if await stands_on_its_head(crop):
        return await recognise(np.ascontiguousarray(crop[:, ::-1, ::-1]), box)
    return await recognise(crop, box) if turned else reading


class TritonPythonModel:
    async def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        image = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        try:
            lines = await self._read_page(image)
        except StepFailed as failure:
            return pb_utils.InferenceResponse(error=failure.error)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("TEXT", np.array([reading.text for reading, _ in lines], np.object_)),
                pb_utils.Tensor("SCORE", np.array([reading.score for reading, _ in lines], np.float32)),
                pb_utils.Tensor("BOXES", np.array([box for _, box in lines], np.float32).reshape(-1, 4, 2)),
            ]
        )

    async def _read_page(self, image: np.ndarray) -> list[tuple[Reading, np.ndarray]]:
        page, original, scale = await call("decode", ["DETECTOR_INPUT", "ORIGINAL", "SCALE"], IMAGE=image)
        [probability] = await call("text_detection", ["sigmoid_0.tmp_0"], x=page)
        boxes, crops, widths, turned = await call(
            "find_boxes",
            ["BOXES", "CROPS", "WIDTHS", "TURNED"],
            PROBABILITY=probability,
            ORIGINAL=original,
            SCALE=scale,
        )
        readings = await asyncio.gather(
            *(
                read_line(crops[index, :, :, : widths[index]], boxes[index], bool(turned[index]))
                for index in range(len(boxes))
            )
        )
        return [(reading, box) for reading, box in zip(readings, boxes, strict=True) if reading is not None]
