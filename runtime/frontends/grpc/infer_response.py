"""From an InferenceResponse to the bytes of a ModelInferResponse, or of the stream's message around it.

The tensors' bytes are copied once, into the message. What describes a tensor is the same from response to response,
so it is encoded once and remembered. Knows nothing of calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cantata.grammars import messages
from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import internal_error
from cantata.runtime.frontends.grpc.options import MAX_MESSAGE_BYTES
from cantata.runtime.frontends.grpc.wire import field, varint
from cantata.runtime.response import InferenceResponse, ParameterValue
from cantata.runtime.shared_memory import RegionLease

# Fields of ModelInferResponse and ModelStreamInferResponse (reference, section 2).
_MODEL_NAME, _MODEL_VERSION, _ID, _OUTPUTS = 1, 2, 3, 5
_RAW_OUTPUT_CONTENTS_TAG: Final = b"\x32"
_ERROR_MESSAGE = 1
_INFER_RESPONSE_TAG: Final = b"\x12"

_REMEMBERED: Final = 1024


def encode_infer_response(response: InferenceResponse, regions: RegionLease | None = None) -> bytes:
    """A ModelInferResponse; its outputs are in raw_output_contents, index for index.

    Those that `regions` holds are written there, and their contents here are empty.
    """
    return b"".join(_parts(response, regions))


def check_size(message: bytes) -> None:
    """Raise InferenceError where a message is longer than gRPC can carry."""
    if len(message) > MAX_MESSAGE_BYTES:
        raise internal_error(f"the response has {len(message)} bytes, more than gRPC can carry")


def encode_stream_response(
    response: InferenceResponse, final: bool, regions: RegionLease | None = None
) -> bytes:
    """A ModelStreamInferResponse that carries `response`, marked with whether it is its request's last."""
    parts = _parts(response, regions)
    parts.append(_FINAL if final else _NOT_FINAL)
    return b"".join((_INFER_RESPONSE_TAG, varint(sum(map(len, parts))), *parts))


def encode_empty_final(model_name: str, model_version: str, id: str) -> bytes:
    """The stream's message that says only that a request has no more responses."""
    inner = _identity(model_name, model_version) + _id(id) + _FINAL
    return b"".join((_INFER_RESPONSE_TAG, varint(len(inner)), inner))


def encode_stream_error(text: str, id: str) -> bytes:
    """The stream's message for a request that could not even be queued."""
    return field(_ERROR_MESSAGE, text.encode()) + field(2, _id(id))


def encode_stream_failure(text: str, model_name: str, model_version: str, id: str, final: bool) -> bytes:
    """The stream's message for a request that failed after it was accepted."""
    inner = _identity(model_name, model_version) + _id(id) + (_FINAL if final else _NOT_FINAL)
    return field(_ERROR_MESSAGE, text.encode()) + field(2, inner)


def _parts(response: InferenceResponse, regions: RegionLease | None) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = [_model_identity(response.model_name, response.model_version)]
    if response.id:
        parts.append(_id(response.id))
    if response.parameters:
        parts.append(_encode_parameters(response.parameters))
    contents: list[bytes | memoryview] = []
    for name, tensor in response.outputs.items():
        if regions is not None and regions.holds_output(name):
            regions.write_output(name, tensor)
            raw: bytes | memoryview = b""
        else:
            raw = tensor.raw_bytes()
        parts.append(_output_header(name, tensor.datatype, tensor.array.shape))
        contents.append(_RAW_OUTPUT_CONTENTS_TAG)
        contents.append(varint(len(raw)))
        contents.append(raw)
    parts += contents
    return parts


_identities: Final[dict[tuple[str, int], bytes]] = {}
_output_headers: Final[dict[tuple[str, DataType, tuple[int, ...]], bytes]] = {}


def _model_identity(name: str, version: int) -> bytes:
    encoded = _identities.get((name, version))
    if encoded is None:
        encoded = _identity(name, str(version))
        if len(_identities) >= _REMEMBERED:
            _identities.clear()
        _identities[name, version] = encoded
    return encoded


def _identity(model_name: str, model_version: str) -> bytes:
    encoded = field(_MODEL_NAME, model_name.encode())
    return encoded + field(_MODEL_VERSION, model_version.encode()) if model_version else encoded


def _id(id: str) -> bytes:
    return field(_ID, id.encode()) if id else b""


def _output_header(name: str, datatype: DataType, shape: tuple[int, ...]) -> bytes:
    key = (name, datatype, shape)
    encoded = _output_headers.get(key)
    if encoded is None:
        tensor = messages.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype.name, shape=shape)
        encoded = field(_OUTPUTS, tensor.SerializeToString())
        if len(_output_headers) >= _REMEMBERED:
            _output_headers.clear()
        _output_headers[key] = encoded
    return encoded


def _encode_parameters(parameters: Mapping[str, ParameterValue]) -> bytes:
    message = messages.ModelInferResponse()
    for name, value in parameters.items():
        entry = message.parameters[name]
        # bool before int, of which it is a kind.
        if isinstance(value, bool):
            entry.bool_param = value
        elif isinstance(value, int):
            if value < 1 << 63:
                entry.int64_param = value
            else:
                entry.uint64_param = value
        elif isinstance(value, float):
            entry.double_param = value
        else:
            entry.string_param = value
    encoded: bytes = message.SerializeToString()
    return encoded


# Parameters of a map are fields of their own, so these go behind whatever else there is.
_FINAL: Final = field(4, field(1, b"triton_final_response") + field(2, b"\x08\x01"))
_NOT_FINAL: Final = field(4, field(1, b"triton_final_response") + field(2, b"\x08\x00"))
