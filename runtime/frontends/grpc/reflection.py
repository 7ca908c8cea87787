"""Server reflection, v1 and v1alpha, whose messages are the same but for their names: what services there are.

Answers from the compiled .proto files; knows nothing of what the services do.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from cantata.grammars import messages
from cantata.grammars.messages import DESCRIPTORS
from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.call import Call, CallReader
from cantata.runtime.frontends.grpc.call_loop import CallLoop
from cantata.runtime.frontends.grpc.message_stream import MessageStream

PATHS = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


class ReflectionStream:
    """One ServerReflectionInfo call: each request is answered at once."""

    def __init__(self, loop: CallLoop, call: Call) -> None:
        self._stream = MessageStream(loop, call, self)

    @property
    def reader(self) -> CallReader:
        """What the call is to be read by."""
        return self._stream

    def on_message(self, message: bytes | memoryview) -> None:
        try:
            request = messages.ServerReflectionRequest.FromString(bytes(message))
        except DecodeError:
            self._stream.finish(codes.INTERNAL, "the request cannot be parsed")
        else:
            self._stream.send(answer(request).SerializeToString())

    def on_half_close(self) -> None:
        self._stream.finish()

    def on_closed(self, was_cancelled: bool) -> None:
        """Nothing is kept."""


def answer(request: messages.ServerReflectionRequest) -> messages.ServerReflectionResponse:
    """The answer to one question about the services."""
    response = messages.ServerReflectionResponse(valid_host=request.host, original_request=request)
    match request.WhichOneof("message_request"):
        case "list_services":
            for name in DESCRIPTORS.service_names:
                response.list_services_response.service.add(name=name)
        case "file_by_filename":
            name = request.file_by_filename
            _answer_files(response, DESCRIPTORS.serialized_files(name), f"no file '{name}'")
        case "file_containing_symbol":
            name = request.file_containing_symbol
            _answer_files(response, DESCRIPTORS.serialized_files_of_symbol(name), f"no symbol '{name}'")
        case "all_extension_numbers_of_type" | "file_containing_extension":
            _answer_error(response, codes.NOT_FOUND, "no message here has extensions")
        case _:
            _answer_error(response, codes.UNIMPLEMENTED, "unknown kind of reflection request")
    return response


def _answer_files(response: messages.ServerReflectionResponse, files: list[bytes], missing: str) -> None:
    if files:
        response.file_descriptor_response.file_descriptor_proto.extend(files)
    else:
        _answer_error(response, codes.NOT_FOUND, missing)


def _answer_error(response: messages.ServerReflectionResponse, code: int, text: str) -> None:
    response.error_response.error_code = code
    response.error_response.error_message = text
