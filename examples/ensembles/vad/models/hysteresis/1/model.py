"""Whether somebody speaks, out of how probable that is frame by frame: a syllable's gap is not yet silence.

Keeps the little that it must know of each stream itself, by the control inputs.
"""

from collections import OrderedDict

import numpy as np
import triton_python_backend_utils as pb_utils

SPEAKS_FROM = 0.5
SILENT_BELOW = 0.35
# How many frames, of 32 ms, must be silent before it is silence.
PAUSE = 8
# Streams that were given up never end: the oldest are forgotten first.
MOST_STREAMS = 10_000


class TritonPythonModel:
    def initialize(self, args):
        # How many more silent frames each stream's speech survives; 0 in silence.
        self.frames_left = OrderedDict()

    def execute(self, requests):
        return [self.decide(request) for request in requests]

    def decide(self, request):
        probability, stream, begins, ends = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()
            for name in ("PROBABILITY", "STREAM", "BEGINS", "ENDS")
        )
        frames_left = 0 if begins else self.frames_left.pop(stream, 0)
        if probability >= SPEAKS_FROM:
            frames_left = PAUSE
        elif probability < SILENT_BELOW and frames_left:
            frames_left -= 1
        if not ends:
            self.frames_left[stream] = frames_left
            if len(self.frames_left) > MOST_STREAMS:
                self.frames_left.popitem(last=False)
        speech = np.array([[frames_left > 0]])
        return pb_utils.InferenceResponse([pb_utils.Tensor("SPEECH", speech)])
