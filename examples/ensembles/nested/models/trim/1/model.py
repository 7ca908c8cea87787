"""Takes the white space off both ends and makes every run of it in between one space."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        [text] = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        result = b" ".join(text.split())
        return pb_utils.InferenceResponse([pb_utils.Tensor("RESULT", np.array([result], np.object_))])
