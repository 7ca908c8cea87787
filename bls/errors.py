"""The errors that a model.py makes and meets: TritonError as a value, TritonModelException to raise.

Owns the translation between their codes and the runtime's. Knows nothing of requests.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final

from cantata.runtime.errors import InferenceError, StatusCode


class TritonErrorCode(enum.IntEnum):
    """The codes of TRITONSERVER_Error_Code; models know them as attributes of TritonError."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonError:
    """Why a response has no tensors: a text and one of the codes below."""

    __slots__ = ("_code", "_message")

    UNKNOWN: ClassVar = TritonErrorCode.UNKNOWN
    INTERNAL: ClassVar = TritonErrorCode.INTERNAL
    NOT_FOUND: ClassVar = TritonErrorCode.NOT_FOUND
    INVALID_ARG: ClassVar = TritonErrorCode.INVALID_ARG
    UNAVAILABLE: ClassVar = TritonErrorCode.UNAVAILABLE
    UNSUPPORTED: ClassVar = TritonErrorCode.UNSUPPORTED
    ALREADY_EXISTS: ClassVar = TritonErrorCode.ALREADY_EXISTS
    CANCELLED: ClassVar = TritonErrorCode.CANCELLED

    def __init__(self, message: str, code: TritonErrorCode | int = TritonErrorCode.INTERNAL) -> None:
        self._message = message
        self._code = TritonErrorCode(code)

    def code(self) -> TritonErrorCode:
        return self._code

    def message(self) -> str:
        return self._message

    def __str__(self) -> str:
        return self._message

    def __repr__(self) -> str:
        return f"TritonError({self._message!r}, {self._code.name})"


class TritonModelException(Exception):
    """Raised by this API where it is misused, and by models to fail what they are doing."""


_STATUS_CODES: Final = {code: StatusCode[code.name] for code in TritonErrorCode}
_TRITON_CODES: Final = {status: code for code, status in _STATUS_CODES.items()}


def inference_error(error: TritonError) -> InferenceError:
    """A model's error as the runtime passes it on."""
    return InferenceError(_STATUS_CODES[error.code()], error.message())


def triton_error(error: InferenceError) -> TritonError:
    """A runtime error as a model sees it."""
    return TritonError(error.message, _TRITON_CODES[error.code])
