"""Handlers of unary calls over messages instead of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from cantata.runtime.frontends.grpc.unary import Handler
from cantata.runtime.frontends.grpc.wire import MalformedMessageError

RequestT = TypeVar("RequestT", bound=Message)


def serialised(request_type: type[RequestT], answer: Callable[[RequestT], Message]) -> Handler:
    """`answer` over bytes instead of messages."""

    def handle(message: bytes) -> bytes:
        try:
            request = request_type.FromString(message)
        except DecodeError as error:
            raise MalformedMessageError(str(error)) from None
        response: bytes = answer(request).SerializeToString()
        return response

    return handle
