"""One line of text about both figures."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        [average] = pb_utils.get_input_tensor_by_name(request, "AVERAGE").as_numpy()
        [peak] = pb_utils.get_input_tensor_by_name(request, "PEAK").as_numpy()
        text = f"average {average:.2f}, peak {peak:.2f}"
        return pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", np.array([text], np.object_))])
