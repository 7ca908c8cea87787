"""The program of `ocr_bls` once more, written with `cantata.bls`: no config.pbtxt is needed beside it."""

from __future__ import annotations

import cv2
import numpy as np

from cantata import bls

GOOD_SCORE, SURE = 0.8, 0.9
CROP_HEIGHT, CLASSIFIER_WIDTH, NARROWEST_TENSOR = 48, 192, 320


@bls.model(
    inputs={"IMAGE": bls.BYTES[1]},
    outputs={"TEXT": bls.BYTES[-1], "SCORE": bls.FP32[-1], "BOXES": bls.FP32[-1, 4, 2]},
)
async def ocr_pipeline(IMAGE: np.ndarray) -> dict[str, list]:
    page = await bls.call("decode", IMAGE=IMAGE)
    detected = await bls.call("text_detection", x=page.DETECTOR_INPUT)
    found = await bls.call("find_boxes", PROBABILITY=detected.only, ORIGINAL=page.ORIGINAL, SCALE=page.SCALE)
    crops = [crop[:, :, :width] for crop, width in zip(found.CROPS, found.WIDTHS, strict=False)]
    lines = await bls.map(read_line, crops, found.BOXES, found.TURNED)
    return {name: [row for line in lines for row in line[name]] for name in ("TEXT", "SCORE", "BOXES")}


async def read_line(crop: np.ndarray, box: np.ndarray, turned: bool) -> bls.Tensors:
    if turned:
        return await recognise(half_turned(crop) if await stands_on_its_head(crop) else crop, box)
    line = await recognise(crop, box)
    if any(line.SCORE >= GOOD_SCORE) or not await stands_on_its_head(crop):
        return line
    return await recognise(half_turned(crop), box)


async def recognise(crop: np.ndarray, box: np.ndarray) -> bls.Tensors:
    characters = await bls.call("text_recognition", x=padded(crop, NARROWEST_TENSOR))
    return await bls.call("decode_text", PROBABILITIES=characters.only, CANDIDATES=[box])


async def stands_on_its_head(crop: np.ndarray) -> bool:
    width = min(crop.shape[2], CLASSIFIER_WIDTH)
    squeezed = cv2.resize(crop.transpose(1, 2, 0), (width, CROP_HEIGHT)).transpose(2, 0, 1)
    angles = await bls.call("angle_classifier", x=padded(squeezed, CLASSIFIER_WIDTH))
    return bool(angles.only[0, 1] > SURE)


def half_turned(crop: np.ndarray) -> np.ndarray:
    return crop[:, ::-1, ::-1]


def padded(crop: np.ndarray, width: int) -> np.ndarray:
    return np.pad(crop, [(0, 0), (0, 0), (0, max(0, width - crop.shape[2]))])[np.newaxis]
