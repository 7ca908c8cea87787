"""The errors of `cantata.bls`: what a pipeline raises to answer with an error, and what its calls raise.

Knows nothing of how calls are made.
"""

from __future__ import annotations

from typing import TypeAlias

from cantata.runtime.errors import StatusCode

Code: TypeAlias = StatusCode


class Error(Exception):
    """Raised by a model, it is the answer to the request: `bls.Error(bls.Code.INVALID_ARG, "no picture")`."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return self.text


class CallError(Error):
    """A called model answered with an error. Not caught, it becomes the answer of the model that called."""

    def __init__(self, code: Code, text: str, model: str) -> None:
        super().__init__(code, f"in a call of model '{model}': {text}")
        self.model = model


class CallTimeout(CallError):
    """A called model took longer than the call's `timeout`. Its code is UNAVAILABLE."""

    def __init__(self, model: str, timeout_s: float) -> None:
        super().__init__(Code.UNAVAILABLE, f"no answer within {timeout_s:g} s", model)
