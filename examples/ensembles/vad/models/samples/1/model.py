"""Sound as it is recorded, 16-bit whole numbers, becomes the numbers between -1 and 1 that the model was made for."""

import numpy as np
import triton_python_backend_utils as pb_utils

FULL_SCALE = np.float32(32_768)


class TritonPythonModel:
    def execute(self, requests):
        return [self.convert(request) for request in requests]

    def convert(self, request):
        audio = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("FRAME", audio / FULL_SCALE)])
