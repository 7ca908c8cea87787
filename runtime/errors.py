"""The one status code and the one error that cross module boundaries at run time.

Knows no protocol: `frontends/status_codes.py` maps the codes to HTTP and gRPC. Configuration errors are values
(`cantata.grammars.problems.Problem`), not exceptions.
"""

from __future__ import annotations

import enum
from typing import Final

# What a caller is asked to wait who was refused for want of room: queues empty in less, and more callers come.
_RETRY_AFTER_S: Final = 1


class StatusCode(enum.Enum):
    """Triton's status codes (reference, head). The value is the name as Triton prints it."""

    UNKNOWN = "Unknown"
    INTERNAL = "Internal"
    NOT_FOUND = "Not found"
    INVALID_ARG = "Invalid argument"
    UNAVAILABLE = "Unavailable"
    UNSUPPORTED = "Unsupported"
    ALREADY_EXISTS = "Already exists"
    CANCELLED = "Cancelled"


class InferenceError(Exception):
    """Why a request, or an operation on a model, could not be done: a code and a text for whoever asked."""

    # In how many seconds to ask again, where that may help; 0 says nothing.
    retry_after_s = 0

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[InferenceError], tuple[StatusCode, str]]:
        return InferenceError, (self.code, self.message)

    def within(self, prefix: str) -> InferenceError:
        """The same error with `prefix` before its text: each layer says once where it was."""
        error = InferenceError(self.code, prefix + self.message)
        error.retry_after_s = self.retry_after_s
        return error

    def status_text(self) -> str:
        """`Invalid argument: ...`, the form of a repository index's `reason`."""
        return f"{self.code.value}: {self.message}"


def invalid_argument(message: str) -> InferenceError:
    """The caller asked for something that cannot be."""
    return InferenceError(StatusCode.INVALID_ARG, message)


def internal_error(message: str) -> InferenceError:
    """Something of ours or of a model's failed."""
    return InferenceError(StatusCode.INTERNAL, message)


def unavailable(message: str) -> InferenceError:
    """It may work later."""
    return InferenceError(StatusCode.UNAVAILABLE, message)


def overloaded(message: str) -> InferenceError:
    """There is too much to do just now: the caller is asked to come back a little later."""
    error = unavailable(message)
    error.retry_after_s = _RETRY_AFTER_S
    return error


def not_found(message: str) -> InferenceError:
    """What was named does not exist."""
    return InferenceError(StatusCode.NOT_FOUND, message)


def unsupported(message: str) -> InferenceError:
    """What was asked for is not offered here."""
    return InferenceError(StatusCode.UNSUPPORTED, message)
