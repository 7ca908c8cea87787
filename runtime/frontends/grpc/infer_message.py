"""A ModelInferRequest taken apart: the tensors' raw bytes as slices of what was received, the rest by protobuf.

Protobuf would copy every tensor twice more. What describes a tensor is the same from request to request, so it is
parsed once and remembered by its bytes. Knows nothing of what the fields mean.
"""

from __future__ import annotations

from typing import Any, Final, cast

from google.protobuf.message import DecodeError

from cantata.grammars import messages
from cantata.runtime.datatypes import BY_WIRE_NAME, DataType
from cantata.runtime.frontends.grpc.wire import LENGTH_DELIMITED, MalformedMessageError, field, read_varint
from cantata.runtime.shared_memory import RegionLease

# Fields of ModelInferRequest (reference, section 2), as their tag bytes.
_MODEL_NAME: Final = 1 << 3 | LENGTH_DELIMITED
_MODEL_VERSION: Final = 2 << 3 | LENGTH_DELIMITED
_ID: Final = 3 << 3 | LENGTH_DELIMITED
_PARAMETERS: Final = 4 << 3 | LENGTH_DELIMITED
_INPUTS: Final = 5 << 3 | LENGTH_DELIMITED
_OUTPUTS: Final = 6 << 3 | LENGTH_DELIMITED
_RAW_INPUT_CONTENTS: Final = 7 << 3 | LENGTH_DELIMITED
_KNOWN: Final = frozenset(
    (_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS, _INPUTS, _OUTPUTS, _RAW_INPUT_CONTENTS)
)

# Raw contents below this are copied out, which costs less than a view and leaves them aligned.
_VIEW_BYTES: Final = 16 * 1024
# How many descriptions of tensors are remembered, and how long one may be.
_REMEMBERED: Final = 1024
_REMEMBERED_BYTES: Final = 256


class InputHeader:
    """One InferInputTensor. `parameters` and `contents` are protobuf's, None where the message has none.

    `datatype` is None where `datatype_name` is no datatype.
    """

    __slots__ = ("contents", "datatype", "datatype_name", "is_plain", "name", "parameters", "shape")

    def __init__(self, encoded: bytes) -> None:
        message: Any = messages.ModelInferRequest.InferInputTensor.FromString(encoded)
        self.name: str = message.name
        self.datatype_name: str = message.datatype
        self.datatype: DataType | None = BY_WIRE_NAME.get(message.datatype)
        self.shape: tuple[int, ...] = tuple(message.shape)
        self.parameters: Any = message.parameters if message.parameters else None
        self.contents: Any = message.contents if message.HasField("contents") else None
        # Whether its data can only be the next of the raw contents, in a shape that can be.
        self.is_plain = (
            self.parameters is None
            and self.contents is None
            and self.datatype is not None
            and all(size >= 0 for size in self.shape)
        )


class OutputHeader:
    """One InferRequestedOutputTensor; `parameters` as in InputHeader."""

    __slots__ = ("name", "parameters")

    def __init__(self, encoded: bytes) -> None:
        message: Any = messages.ModelInferRequest.InferRequestedOutputTensor.FromString(encoded)
        self.name: str = message.name
        self.parameters: Any = message.parameters if message.parameters else None


class InferMessage:
    """The fields of a ModelInferRequest. `parameters` is protobuf's map, None where it is empty.

    `regions` are the shared memory that its tensors turn out to lie in, None where they lie in none.
    """

    __slots__ = (
        "id",
        "inputs",
        "model_name",
        "model_version",
        "outputs",
        "parameters",
        "raw_contents",
        "regions",
    )

    def __init__(self) -> None:
        self.model_name = ""
        self.model_version = ""
        self.id = ""
        self.parameters: Any = None
        self.inputs: list[InputHeader] = []
        self.outputs: list[OutputHeader] = []
        self.raw_contents: list[bytes | memoryview] = []
        self.regions: RegionLease | None = None


def decode_infer_message(message: bytes | memoryview) -> InferMessage:
    """Take a serialised ModelInferRequest apart. Raises MalformedMessageError."""
    try:
        return _decode(message)
    except (DecodeError, UnicodeDecodeError, IndexError) as error:
        raise MalformedMessageError(str(error)) from None


def _decode(message: bytes | memoryview) -> InferMessage:
    decoded = InferMessage()
    if type(message) is memoryview and len(message) < _VIEW_BYTES:
        message = bytes(message)
    is_view = type(message) is memoryview
    parameters = b""
    position, end = 0, len(message)
    while position < end:
        tag = message[position]
        if tag not in _KNOWN:
            return _decode(_without_unknown_fields(message))
        length = message[position + 1]
        start = position + 2
        if length > 0x7F:
            length, start = read_varint(message, position + 1)
        position = start + length
        if position > end:
            raise MalformedMessageError("a field is longer than the message")
        if tag == _RAW_INPUT_CONTENTS:
            decoded.raw_contents.append(
                bytes(message[start:position])
                if length < _VIEW_BYTES
                else memoryview(message)[start:position]
            )
            continue
        part = cast(bytes, bytes(message[start:position]) if is_view else message[start:position])
        if tag == _INPUTS:
            decoded.inputs.append(_input_header(part))
        elif tag == _OUTPUTS:
            decoded.outputs.append(_output_header(part))
        elif tag == _MODEL_NAME:
            decoded.model_name = part.decode()
        elif tag == _ID:
            decoded.id = part.decode()
        elif tag == _MODEL_VERSION:
            decoded.model_version = part.decode()
        else:
            parameters += field(_PARAMETERS >> 3, part)
    if parameters:
        decoded.parameters = messages.ModelInferRequest.FromString(parameters).parameters
    return decoded


def _without_unknown_fields(message: bytes | memoryview) -> bytes:
    """The same message with only the fields of the protocol in it, each in the form it should have."""
    parsed = messages.ModelInferRequest.FromString(bytes(message))
    parsed.DiscardUnknownFields()
    known: bytes = parsed.SerializeToString()
    return known


_input_headers: Final[dict[bytes, InputHeader]] = {}
_output_headers: Final[dict[bytes, OutputHeader]] = {}


def _input_header(encoded: bytes) -> InputHeader:
    header = _input_headers.get(encoded)
    if header is None:
        header = InputHeader(encoded)
        if header.is_plain and len(encoded) <= _REMEMBERED_BYTES:
            if len(_input_headers) >= _REMEMBERED:
                _input_headers.clear()
            _input_headers[encoded] = header
    return header


def _output_header(encoded: bytes) -> OutputHeader:
    header = _output_headers.get(encoded)
    if header is None:
        header = OutputHeader(encoded)
        if len(encoded) <= _REMEMBERED_BYTES:
            if len(_output_headers) >= _REMEMBERED:
                _output_headers.clear()
            _output_headers[encoded] = header
    return header
