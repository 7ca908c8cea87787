"""The first step: texts become the numbers of their word pieces.

Owns how long a text may be and to what length texts are filled up. The vocabulary is in tokenizer.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

# Longer texts are cut: the model was trained on texts of up to this many tokens.
MAX_TOKENS = 256
# Texts are filled up to a multiple of this, so that requests of about equal length can share a batch.
LENGTH_STEP = 16


def load_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(__file__).parent / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_to_multiple_of=LENGTH_STEP)
    return tokenizer


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.tokenizer = load_tokenizer()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        try:
            encoded = self.tokenizer.encode_batch([text.decode() for text in texts.ravel()])
        except UnicodeDecodeError as error:
            refusal = pb_utils.TritonError(f"TEXT is not UTF-8: {error}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        ids = np.array([text.ids for text in encoded], np.int64)
        mask = np.array([text.attention_mask for text in encoded], np.int64)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("INPUT_IDS", ids), pb_utils.Tensor("ATTENTION_MASK", mask)]
        )
