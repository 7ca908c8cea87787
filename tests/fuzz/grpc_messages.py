"""gRPC messages that no client would send: fields with anything in them, bytes that are no message, broken frames.

A case says what it found wrong with the answer: none in time, or a status that blames the server.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from random import Random
from typing import Any, Final

import grpc

from cantata.grammars import messages
from cantata.grammars.messages import METHODS
from tests.fuzz.http2_frames import exchange_frames
from tests.fuzz.mutation import Mutator
from tests.fuzz.target import CONTROLLED, FuzzedServer

_LONGEST_ANSWER_S: Final = 30.0
_INFER_SERVICE: Final = "/inference.GRPCInferenceService/"
_BLAMES_SERVER: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
# Of such statuses, those that the reference asks for, by a part of their text.
_MEANT: Final = (
    "cannot be parsed",
    "the call carried no request",
    "Unable to open shared memory region",
    "shared memory size specified with the request",
    "failed to load",
    "failed to poll",
)
# Endless, by design.
_NEVER_CALLED: Final = ("/grpc.health.v1.Health/Watch",)


class GrpcMessages:
    """Cases over gRPC, on one channel."""

    def __init__(self, server: FuzzedServer) -> None:
        self._port = server.ports["gRPC"]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.ports['gRPC']}")
        self._paths = [path for path in METHODS if path not in _NEVER_CALLED]

    def run_case(self, random: Random) -> str:
        """Send what `random` makes; returns what was wrong with the answer, empty where nothing was."""
        mutator = Mutator(random)
        path = _INFER_SERVICE + "ModelInfer" if mutator.happens(0.5) else mutator.choice(self._paths)
        if mutator.happens(0.15):
            path = _INFER_SERVICE + "ModelStreamInfer"
        method = METHODS[path]
        sent = [_message(mutator, path) for _ in range(mutator.choice((1, 1, 2, 5)))]
        if mutator.happens(0.3):
            return exchange_frames(self._port, path, sent[0], mutator)
        if method.is_request_streamed or method.is_response_streamed:
            return self._streamed(path, sent)
        return self._unary(path, sent[0], mutator)

    def restore(self) -> None:
        """Undo what cases may have done to the server: models, and what is logged."""
        for name in (CONTROLLED, "echo", "text", "repeat", "chain"):
            message = messages.RepositoryModelLoadRequest(model_name=name)
            self._call("RepositoryModelLoad", message)
        logging = messages.LogSettingsRequest()
        logging.settings["log_error"].bool_param = True
        logging.settings["log_format"].string_param = "json"
        logging.settings["log_verbose_level"].uint32_param = 0
        self._call("LogSettings", logging)
        self._call("SystemSharedMemoryUnregister", messages.SystemSharedMemoryUnregisterRequest())
        settings = messages.TraceSettingRequest()
        for name in ("trace_level", "trace_rate", "trace_count"):
            settings.settings[name].SetInParent()
        self._call("TraceSetting", settings)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, message: Any) -> None:
        call = self._channel.unary_unary(_INFER_SERVICE + method)
        call(message.SerializeToString(), timeout=_LONGEST_ANSWER_S)

    def _unary(self, path: str, message: bytes, mutator: Mutator) -> str:
        compression = grpc.Compression.Gzip if mutator.happens(0.1) else None
        try:
            self._channel.unary_unary(path)(message, timeout=_LONGEST_ANSWER_S, compression=compression)
        except grpc.RpcError as error:
            return _verdict(error, path, [message])
        return ""

    def _streamed(self, path: str, sent: list[bytes]) -> str:
        def requests() -> Iterator[bytes]:
            yield from sent

        try:
            for _ in self._channel.stream_stream(path)(requests(), timeout=_LONGEST_ANSWER_S):
                pass
        except grpc.RpcError as error:
            return _verdict(error, path, sent)
        return ""


def _verdict(error: Any, path: str, sent: list[bytes]) -> str:
    code, text = error.code(), error.details() or ""
    if code not in _BLAMES_SERVER or any(known in text for known in _MEANT):
        return ""
    return f"{code} {text[:300]!r} for {path} {[message[:400] for message in sent]!r}"


def _message(mutator: Mutator, path: str) -> bytes:
    request_type: Any = METHODS[path].request
    if request_type is messages.ModelInferRequest and mutator.happens(0.8):
        message = _infer_request(mutator)
    else:
        message = request_type()
        _fill(mutator, message, 0)
    data: bytes = message.SerializeToString()
    if mutator.happens(0.25):
        data = mutator.data(data)
    return gzip.compress(data) if mutator.happens(0.02) else data


def _infer_request(mutator: Mutator) -> Any:
    """A request that is right, but for a few things."""
    name = mutator.choice(("echo", "text", "repeat", "chain", "echo"))
    message = messages.ModelInferRequest(model_name=name)
    tensor = message.inputs.add(name="IN", datatype="BYTES" if name == "text" else "FP32")
    tensor.shape.extend([1, 2] if name == "echo" else [2])
    raw = b"\x01\x00\x00\x00a\x00\x00\x00\x00" if name == "text" else bytes(8)
    if mutator.happens(0.8):
        message.raw_input_contents.append(raw)
    elif name != "text":
        tensor.contents.fp32_contents.extend([1, 2])
    if mutator.happens(0.3):
        message.outputs.add(name="OUT")
    for _ in range(mutator.choice((0, 1, 1, 2))):
        _spoil(mutator, message)
    return message


def _spoil(mutator: Mutator, message: Any) -> None:
    action = mutator.random.randrange(9)
    tensor = mutator.choice(message.inputs) if message.inputs else message.inputs.add()
    match action:
        case 0:
            message.raw_input_contents.append(mutator.noise())
        case 1:
            del tensor.shape[:]
            tensor.shape.extend(_in_range(mutator.integer(), 64) for _ in range(mutator.random.randrange(5)))
        case 2:
            tensor.datatype = mutator.name()
        case 3:
            tensor.name = mutator.name()
        case 4:
            _fill(mutator, tensor.contents, 0)
        case 5:
            _parameter(mutator, tensor.parameters[mutator.name()])
        case 6:
            _parameter(mutator, message.parameters[mutator.name()])
        case 7:
            output = message.outputs.add(name=mutator.choice(("OUT", "OUT", mutator.name())))
            _parameter(mutator, output.parameters[mutator.name()])
        case _:
            message.model_version = mutator.choice(("1", "-1", "0", "x", "9" * 30))


def _parameter(mutator: Mutator, parameter: Any) -> None:
    match mutator.random.randrange(5):
        case 0:
            parameter.int64_param = _in_range(mutator.integer(), 64)
        case 1:
            parameter.string_param = mutator.name()
        case 2:
            parameter.bool_param = True
        case 3:
            parameter.double_param = 1.5
        case _:
            parameter.SetInParent()


def _in_range(value: int, bits: int) -> int:
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def _fill(mutator: Mutator, message: Any, depth: int) -> None:
    """Sets some of the fields of any message."""
    for field in message.DESCRIPTOR.fields:
        if not mutator.happens(0.6) or depth > 3:
            continue
        entries = field.message_type.fields_by_name if field.message_type is not None else {}
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            held = getattr(message, field.name)
            key = _scalar(mutator, entries["key"])
            if entries["value"].message_type is None:
                held[key] = _scalar(mutator, entries["value"])
            else:
                _fill(mutator, held[key], depth + 1)
        elif field.message_type is not None:
            place = getattr(message, field.name)
            _fill(mutator, place.add() if field.is_repeated else place, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(
                _scalar(mutator, field) for _ in range(mutator.random.randrange(4))
            )
        else:
            setattr(message, field.name, _scalar(mutator, field))


def _scalar(mutator: Mutator, field: Any) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        return mutator.noise() if field.type == field.TYPE_BYTES else mutator.name()
    if kind == field.CPPTYPE_BOOL:
        return mutator.happens(0.5)
    if kind == field.CPPTYPE_ENUM:
        return mutator.choice(field.enum_type.values).number
    if kind in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return float(mutator.random.randrange(100))
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    is_signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    value = _in_range(mutator.integer(), bits)
    return value if is_signed else value % 2**bits
