"""The last step: the vectors of a text's tokens become one vector of length 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


def pool_and_normalise(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean over the real tokens: (batch, tokens, 384) and (batch, tokens) to (batch, 384), each of length 1."""
    weights = mask.astype(np.float32)
    mean = np.matmul(weights[:, None, :], tokens)[:, 0] / weights.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKEN_EMBEDDINGS").as_numpy()
        mask = pb_utils.get_input_tensor_by_name(request, "ATTENTION_MASK").as_numpy()
        embedding = pool_and_normalise(tokens, mask)
        return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", embedding)])
