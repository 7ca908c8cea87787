"""Answers once for each value of its input, with a pause before each answer. No values, no answers."""

import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            self._answer(request, request.get_response_sender())

    def _answer(self, request, sender):
        values = pb_utils.get_input_tensor_by_name(request, "VALUES").as_numpy()
        [delay_ms] = pb_utils.get_input_tensor_by_name(request, "DELAY_MS").as_numpy()
        for index in range(len(values)):
            if request.is_cancelled():
                break
            time.sleep(delay_ms / 1_000)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("VALUE", values[index : index + 1])]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
