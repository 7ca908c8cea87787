"""A quick step: refuses numbers whose square would not fit."""

import numpy as np
import triton_python_backend_utils as pb_utils

LARGEST = 2**31


class TritonPythonModel:
    def execute(self, requests):
        return [self.check(request) for request in requests]

    def check(self, request):
        number = pb_utils.get_input_tensor_by_name(request, "NUMBER").as_numpy()
        if (np.abs(number) > LARGEST).any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"a number is beyond {LARGEST}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor("CHECKED", number)])
