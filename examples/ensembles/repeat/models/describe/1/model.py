"""Says what a number is."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        [value] = pb_utils.get_input_tensor_by_name(request, "VALUE").as_numpy()
        text = f"{value} is {'odd' if value % 2 else 'even'}"
        return pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", np.array([text], np.object_))])
