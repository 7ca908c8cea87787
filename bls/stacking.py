"""Several requests as one: their inputs stacked along the batch dimension, the outputs split again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cantata.bls.answers import Answers, response_with
from cantata.bls.call_errors import Code, Error
from cantata.bls.requests import InferenceRequest
from cantata.bls.responses import InferenceResponse
from cantata.runtime.tensor import Tensor as TensorValue


class Stack:
    """The requests of a batch, as one call of the model."""

    __slots__ = ("_answers", "_ends", "_requests", "inputs")

    def __init__(self, requests: Sequence[InferenceRequest], answers: Answers) -> None:
        self._requests = requests
        self._answers = answers
        each = [answers.inputs_of(request) for request in requests]
        self.inputs = {name: np.concatenate([inputs[name] for inputs in each]) for name in each[0]}
        rows = [len(next(iter(inputs.values()))) for inputs in each]
        # Where each request's rows end.
        self._ends: list[int] = np.cumsum(rows).tolist()

    @staticmethod
    def fits(requests: Sequence[InferenceRequest]) -> bool:
        """Whether all have the same inputs; some may lack optional ones."""
        names = [{tensor.name() for tensor in request.inputs()} for request in requests]
        return all(each == names[0] for each in names)

    def responses_of(self, returned: Any) -> list[InferenceResponse]:
        """Each request's rows of what the model returned; raises Error."""
        values = self._answers.values_of(returned)
        total = self._ends[-1]
        for name, value in values.items():
            if len(value.array) != total:
                raise Error(
                    Code.INTERNAL, f"output '{name}' has {len(value.array)} rows, the inputs have {total}"
                )
        starts = [0, *self._ends]
        return [
            response_with(
                {name: TensorValue(value.datatype, value.array[start:end]) for name, value in values.items()}
            )
            for start, end in zip(starts, self._ends, strict=False)
        ]

    def failures_of(self, error: BaseException) -> list[InferenceResponse]:
        """The error as every request's answer."""
        return [self._answers.failure_of(request, error) for request in self._requests]
