"""From the detector's probabilities to lines of text: where they lie, in which order, and cut out.

Owns the geometry: contours, rotated boxes, reading order, crops. Knows nothing of letters, nor of how the
probabilities came about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

# A pixel belongs to text above this probability, a box to the answer above the second (its mean inside).
PIXEL_THRESHOLD = 0.3
BOX_THRESHOLD = 0.55
# The detector marks the core of a line; this gives back what it left out around it. See `grown`.
GROWTH = 1.7
# Boxes whose shorter side is below this many of the detector's pixels are specks.
SHORTEST_SIDE = 3.0
# The largest regions that are looked at: a page of noise must not turn into a batch without bound.
MOST_BOXES = 200

CROP_HEIGHT = 48
# The recognition model was trained on crops at least this wide, and reads longer ones up to a limit.
NARROWEST_TENSOR = 320
WIDEST_CROP = 2000
# A box this many times taller than wide holds a line that runs up or down.
TALL = 1.5


@dataclass(frozen=True, slots=True)
class Box:
    """A rotated rectangle whose `right` is the unit vector (x, y) within 45 degrees of the picture's right."""

    x: float
    y: float
    width: float
    height: float
    right: tuple[float, float]

    @property
    def is_tall(self) -> bool:
        return self.height >= TALL * self.width

    def grown(self) -> Box:
        """The box with each side moved outward by the distance area * GROWTH / perimeter.

        That undoes the shrinking with which the detector's training pages were labelled. Moving the sides of a
        rectangle outward gives a rectangle, so no polygon clipping is needed.
        """
        distance = self.width * self.height * GROWTH / (2 * (self.width + self.height))
        return Box(self.x, self.y, self.width + 2 * distance, self.height + 2 * distance, self.right)

    def corners(self) -> np.ndarray:
        """The four corners (4, 2), clockwise from the top left."""
        right = np.array(self.right) * (self.width / 2)
        down = np.array([-self.right[1], self.right[0]]) * (self.height / 2)
        centre = np.array([self.x, self.y])
        return np.array(
            [centre - right - down, centre + right - down, centre + right + down, centre - right + down],
            np.float32,
        )


def enclosing_box(points: np.ndarray) -> Box:
    """The smallest rotated rectangle around the points."""
    (x, y), (width, height), degrees = cv2.minAreaRect(points)
    # A quarter turn of the axes swaps the sides; take the turn that leaves `right` nearest to the picture's.
    quarters = round(degrees / 90)
    if quarters % 2:
        width, height = height, width
    angle = math.radians(degrees - 90 * quarters)
    return Box(x, y, width, height, (math.cos(angle), math.sin(angle)))


def mean_inside(probability: np.ndarray, points: np.ndarray) -> float:
    """The mean probability inside the polygon that the points describe."""
    left, top, width, height = cv2.boundingRect(points)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points - (left, top)], 1)
    return cv2.mean(probability[top : top + height, left : left + width], mask)[0]


def find_boxes(probability: np.ndarray) -> list[Box]:
    """The boxes of the lines on a page, in the pixels of the probabilities (height, width), in no order."""
    above = (probability > PIXEL_THRESHOLD).astype(np.uint8)
    # Closes the hairline gaps that the threshold leaves inside a line.
    closed = cv2.dilate(above, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(closed, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in sorted(contours, key=cv2.contourArea, reverse=True)[:MOST_BOXES]:
        box = enclosing_box(contour)
        if min(box.width, box.height) < SHORTEST_SIDE:
            continue
        if mean_inside(probability, contour) >= BOX_THRESHOLD:
            boxes.append(box.grown())
    return boxes


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """Top to bottom, and left to right within a row, as seen by a reader who tilts the head with the page."""
    if not boxes:
        return []
    tilt = float(np.median([math.atan2(box.right[1], box.right[0]) for box in boxes]))
    right, down = (math.cos(tilt), math.sin(tilt)), (-math.sin(tilt), math.cos(tilt))

    def along(box: Box) -> float:
        return box.x * right[0] + box.y * right[1]

    def below(box: Box) -> float:
        return box.x * down[0] + box.y * down[1]

    rows: list[list[Box]] = []
    for box in sorted(boxes, key=below):
        if rows and shares_row(box, rows[-1][0], below(box) - below(rows[-1][0])):
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=along)]


def shares_row(box: Box, first: Box, distance: float) -> bool:
    return distance < min(box.height, first.height) / 2


def cut_out(original: np.ndarray, corners: np.ndarray, is_tall: bool) -> np.ndarray:
    """The crop (CROP_HEIGHT, width, 3) between the corners, a tall one turned to lie flat.

    A tall line is taken to run downwards, as on the spine of a book; one that runs upwards comes out on its head.
    """
    if is_tall:
        corners = np.roll(corners, -1, axis=0)
    along = float(np.linalg.norm(corners[1] - corners[0]))
    across = float(np.linalg.norm(corners[3] - corners[0]))
    width = min(max(round(CROP_HEIGHT * along / max(across, 1.0)), 1), WIDEST_CROP)
    # Cut at the original's own resolution and shrink afterwards: warping straight to a smaller size skips pixels.
    full_width, full_height = max(round(along), 1), max(round(across), 1)
    frame = np.array([[0, 0], [full_width, 0], [full_width, full_height], [0, full_height]], np.float32)
    transform = cv2.getPerspectiveTransform(corners.astype(np.float32), frame)
    flat = cv2.warpPerspective(
        original, transform, (full_width, full_height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    how = cv2.INTER_AREA if full_height > CROP_HEIGHT else cv2.INTER_CUBIC
    return cv2.resize(flat, (width, CROP_HEIGHT), interpolation=how)


def crops_tensor(crops: list[np.ndarray]) -> np.ndarray:
    """All crops, normalised to -1..1, as one tensor padded with grey to the widest; one empty crop for none."""
    width = max([NARROWEST_TENSOR, *(crop.shape[1] for crop in crops)])
    tensor = np.zeros((max(1, len(crops)), 3, CROP_HEIGHT, width), np.float32)
    for index, crop in enumerate(crops):
        tensor[index, :, :, : crop.shape[1]] = crop.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0
    return tensor


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        probability = pb_utils.get_input_tensor_by_name(request, "PROBABILITY").as_numpy()[0, 0]
        original = pb_utils.get_input_tensor_by_name(request, "ORIGINAL").as_numpy()
        scale = pb_utils.get_input_tensor_by_name(request, "SCALE").as_numpy()
        boxes = in_reading_order(find_boxes(probability))
        corners = np.array([box.corners() * scale for box in boxes], np.float32).reshape(-1, 4, 2)
        crops = [cut_out(original, each, box.is_tall) for each, box in zip(corners, boxes, strict=True)]
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("BOXES", corners),
                pb_utils.Tensor("CROPS", crops_tensor(crops)),
                pb_utils.Tensor("WIDTHS", np.array([crop.shape[1] for crop in crops], np.int32)),
                pb_utils.Tensor("TURNED", np.array([box.is_tall for box in boxes], np.bool_)),
            ]
        )
