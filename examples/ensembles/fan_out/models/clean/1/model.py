"""Drops the readings that are no numbers."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        raw = pb_utils.get_input_tensor_by_name(request, "RAW").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("CLEANED", raw[np.isfinite(raw)])])
