"""What a caller is told of an exception that a request met."""

from __future__ import annotations

import logging

from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.frontends.grpc import core_calls
from cantata.runtime.frontends.grpc.compressed_messages import OversizedMessageError
from cantata.runtime.frontends.grpc.wire import MalformedMessageError
from cantata.runtime.frontends.status_codes import GRPC_CODES

_log = logging.getLogger("cantata.grpc")


def grpc_code_of(error: InferenceError) -> int:
    """The number of an error on the wire."""
    if isinstance(error, OversizedMessageError):
        return core_calls.RESOURCE_EXHAUSTED
    return GRPC_CODES[error.code]


def as_inference_error(error: Exception) -> InferenceError:
    """What a caller is told of an exception; one that nobody expected is logged."""
    if isinstance(error, InferenceError):
        return error
    if isinstance(error, MalformedMessageError):
        return internal_error(f"the request cannot be parsed: {error}")
    _log.error("gRPC: a request failed", exc_info=error)
    return internal_error(f"{type(error).__name__}: {error}")
