"""Squares numbers, as slowly as its configuration says, and a whole batch in the time of one."""

import json
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.seconds_per_batch = float(parameters["SECONDS_PER_BATCH"]["string_value"])

    def execute(self, requests):
        time.sleep(self.seconds_per_batch)
        return [self.square(request) for request in requests]

    def square(self, request):
        number = pb_utils.get_input_tensor_by_name(request, "NUMBER").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("SQUARE", number * number)])
