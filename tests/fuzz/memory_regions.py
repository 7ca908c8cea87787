"""Registrations of shared memory that cannot be: sizes, offsets and segments that lie, change or go.

The segments are real, and their names begin alike, so that what the server still maps at the end can be counted.
"""

from __future__ import annotations

import http.client
import json
import os
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc

from cantata.grammars import messages
from tests.fuzz.mutation import Mutator
from tests.fuzz.target import FuzzedServer

_LONGEST_ANSWER_S: Final = 30.0
_DIRECTORY: Final = Path("/dev/shm")
_REGIONS: Final = ("a", "b", "c", "", "a/b", "ü", "region")
_SIZES: Final = (0, 1, 7, 8, 4095, 4096, 4097, 65536, 2**31, 2**32, 2**63, 2**64 - 1)
_MEANT: Final = ("Unable to open shared memory region", "shared memory size specified with the request")
_INFER_SERVICE: Final = "/inference.GRPCInferenceService/"


class MemoryRegions:
    """Cases over both protocols. `segments` is what the names of its segments begin with."""

    def __init__(self, server: FuzzedServer, segments: str) -> None:
        self._segments = [f"{segments}{number}" for number in range(4)]
        self._port = server.ports["HTTP"]
        self._connection: http.client.HTTPConnection | None = None
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.ports['gRPC']}")

    def run_case(self, random: Random) -> str:
        """Do what `random` says; returns what was wrong with an answer, empty where nothing was."""
        mutator = Mutator(random)
        match mutator.random.randrange(8):
            case 0 | 1:
                self._change_segment(mutator)
                return ""
            case 2 | 3:
                return self._register(mutator)
            case 4:
                return self._unregister(mutator)
            case 5:
                return self._http("GET", f"{_prefix(mutator)}{_region(mutator)}/status", None)
            case _:
                return self._infer(mutator)

    def restore(self) -> None:
        """Forget every region."""
        self._http("POST", "/v2/systemsharedmemory/unregister", {})

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._channel.close()
        for name in self._segments:
            (_DIRECTORY / name).unlink(missing_ok=True)

    def _change_segment(self, mutator: Mutator) -> None:
        path = _DIRECTORY / mutator.choice(self._segments)
        if mutator.happens(0.2):
            path.unlink(missing_ok=True)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.truncate(descriptor, mutator.choice((0, 8, 4096, 65536, 1 << 20)))
            os.close(descriptor)

    def _register(self, mutator: Mutator) -> str:
        key = "/" * mutator.choice((1, 1, 1, 0, 2)) + mutator.choice((*self._segments, mutator.name()))
        offset, size = mutator.choice((0, 0, *_SIZES)), mutator.choice(_SIZES)
        if mutator.happens(0.3):
            message = messages.SystemSharedMemoryRegisterRequest(
                name=mutator.choice(_REGIONS), key=key, offset=offset, byte_size=size
            )
            return self._call("SystemSharedMemoryRegister", message)
        document = {"key": key, "offset": offset, "byte_size": size}
        if mutator.happens(0.3):
            document = mutator.document(document)
        return self._http("POST", f"/v2/systemsharedmemory{_region(mutator)}/register", document)

    def _unregister(self, mutator: Mutator) -> str:
        if mutator.happens(0.3):
            message = messages.SystemSharedMemoryUnregisterRequest(name=mutator.choice(_REGIONS))
            return self._call("SystemSharedMemoryUnregister", message)
        return self._http("POST", f"{_prefix(mutator)}{_region(mutator)}/unregister", {})

    def _infer(self, mutator: Mutator) -> str:
        elements = mutator.choice((0, 1, 2, 1024, 16384, 2**40))
        place = {
            "shared_memory_region": mutator.choice(_REGIONS),
            "shared_memory_offset": mutator.choice((0, 0, *_SIZES)),
            "shared_memory_byte_size": mutator.choice((elements * 4, *_SIZES)),
        }
        shape = [1, elements]
        if mutator.happens(0.3):
            message = messages.ModelInferRequest(model_name="echo")
            tensor = message.inputs.add(name="IN", datatype="FP32", shape=shape)
            output = message.outputs.add(name="OUT")
            for held in (tensor, output):
                for key, value in place.items():
                    if isinstance(value, str):
                        held.parameters[key].string_param = value
                    else:
                        held.parameters[key].int64_param = min(value, 2**63 - 1)
            return self._call("ModelInfer", message)
        tensors = {"name": "IN", "datatype": "FP32", "shape": shape, "parameters": place}
        outputs = [{"name": "OUT", "parameters": {**place, "shared_memory_offset": mutator.choice(_SIZES)}}]
        document: Any = {"inputs": [tensors], "outputs": outputs}
        if mutator.happens(0.3):
            document = mutator.document(document)
        return self._http("POST", "/v2/models/echo/infer", document)

    def _http(self, method: str, path: str, document: Any) -> str:
        body = b"" if document is None else json.dumps(document).encode()
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_LONGEST_ANSWER_S)
        try:
            self._connection.request(method, path, body)
            answer = self._connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            with suppress(OSError):
                self._connection.close()
            self._connection = None
            return f"{type(error).__name__}: {error} for {method} {path} {document}"
        if answer.status < 500 or any(known in text for known in _MEANT):
            return ""
        return f"status {answer.status} {text!r} for {method} {path} {document}"

    def _call(self, method: str, message: Any) -> str:
        call = self._channel.unary_unary(_INFER_SERVICE + method)
        try:
            call(message.SerializeToString(), timeout=_LONGEST_ANSWER_S)
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            blames = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
            if code in blames and not any(known in text for known in _MEANT):
                return f"{code} {text!r} for {method} {message!r}"
        return ""


def _prefix(mutator: Mutator) -> str:
    return "/v2/cudasharedmemory" if mutator.happens(0.2) else "/v2/systemsharedmemory"


def _region(mutator: Mutator) -> str:
    name: str = mutator.choice(_REGIONS)
    return f"/region/{name.replace('ü', '%C3%BC')}" if name else ""
