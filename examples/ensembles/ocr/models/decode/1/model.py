"""The first step: the bytes of a picture become the pixels that the detector wants.

Owns picture formats and the size at which a page is looked at. Knows nothing of text.
"""

from __future__ import annotations

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

# The detector halves its input five times, so both sides must be a multiple of this.
STRIDE = 32
# Small pictures are enlarged until the shorter side has this many pixels, since fine print is lost below it.
SHORT_SIDE = 640
# No picture is looked at with more pixels than this along a side: time and memory grow with the area.
LONG_SIDE = 1280


def decode_picture(encoded: bytes) -> np.ndarray | None:
    """The pixels (height, width, 3; uint8; blue, green, red) upright as the camera noted it, or None."""
    if not encoded:
        return None
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)


def detector_size(height: int, width: int) -> tuple[int, int]:
    """The height and width at which the detector looks at a picture of this height and width."""
    enlarge = max(1.0, SHORT_SIDE / min(height, width))
    scale = min(enlarge, LONG_SIDE / max(height, width))
    return in_strides(height * scale), in_strides(width * scale)


def in_strides(side: float) -> int:
    return max(STRIDE, round(side / STRIDE) * STRIDE)


def detector_input(original: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tensor (1, 3, height, width) for the detector, and the scale (x, y) that leads back to the original."""
    height, width = original.shape[:2]
    new_height, new_width = detector_size(height, width)
    how = cv2.INTER_AREA if new_height < height else cv2.INTER_LINEAR
    resized = cv2.resize(original, (new_width, new_height), interpolation=how)
    tensor = resized.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / 127.5 - 1.0
    return tensor, np.array([width / new_width, height / new_height], np.float32)


class TritonPythonModel:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        encoded = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()[0]
        original = decode_picture(encoded)
        if original is None:
            message = (
                f"IMAGE is not a picture that can be decoded: {len(encoded)} bytes, starting {encoded[:8]!r}"
            )
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            )
        tensor, scale = detector_input(original)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("DETECTOR_INPUT", tensor),
                pb_utils.Tensor("ORIGINAL", original),
                pb_utils.Tensor("SCALE", scale),
            ]
        )
