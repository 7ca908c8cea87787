"""Each word of the text and how often it occurs, the most frequent first."""

from collections import Counter

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        [text] = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        counts = Counter(text.decode().split()).most_common()
        words = pb_utils.Tensor("WORDS", np.array([word for word, _ in counts], np.object_))
        numbers = pb_utils.Tensor("COUNTS", np.array([count for _, count in counts], np.int32))
        return pb_utils.InferenceResponse([words, numbers])
