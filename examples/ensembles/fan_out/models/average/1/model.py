"""The average of the readings; 0 where there are none."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        readings = pb_utils.get_input_tensor_by_name(request, "READINGS").as_numpy()
        average = readings.mean() if readings.size else 0.0
        return pb_utils.InferenceResponse([pb_utils.Tensor("AVERAGE", np.array([average], np.float32))])
