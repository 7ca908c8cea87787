"""HTTP requests that no client would send: documents with something wrong in them, and bytes that are hardly HTTP.

A case says what it found wrong with the answer: none, one that took too long, or a 5xx for what is the client's fault.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
import zlib
from contextlib import suppress
from random import Random
from typing import Any, Final

from tests.fuzz.mutation import Mutator
from tests.fuzz.target import CONTROLLED, FuzzedServer

_LONGEST_ANSWER_S: Final = 30.0
# How long bytes that may not be a whole request are given to be answered.
_PATIENCE_S: Final = 0.02

# Statuses over 499 that the reference asks for, by a part of their text.
_MEANT: Final = (
    "'data'",
    "shape does not match true shape",
    "unexpected error on creating Triton parameter",
    "Unable to open shared memory region",
    "shared memory size specified with the request",
    "failed to load",
    "failed to poll",
)

_FP32: Final = {"name": "IN", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
_BINARY: Final = {
    "name": "IN",
    "datatype": "FP32",
    "shape": [1, 2],
    "parameters": {"binary_data_size": 8},
}
_OUTPUTS: Final = [{"name": "OUT", "parameters": {"binary_data": True, "classification": 2}}]
_DOCUMENTS: Final[tuple[tuple[str, Any], ...]] = (
    ("/v2/models/echo/infer", {"id": "a", "inputs": [_FP32]}),
    ("/v2/models/echo/infer", {"inputs": [_FP32], "outputs": _OUTPUTS, "parameters": {"priority": 1}}),
    ("/v2/models/echo/versions/1/infer", {"inputs": [_BINARY], "parameters": {"binary_data_output": True}}),
    ("/v2/models/chain/infer", {"inputs": [{**_FP32, "shape": [2]}]}),
    (
        "/v2/models/text/infer",
        {"inputs": [{"name": "IN", "datatype": "BYTES", "shape": [2], "data": ["a", "ü"]}]},
    ),
    (
        "/v2/models/echo/infer",
        {
            "inputs": [
                {
                    "name": "IN",
                    "datatype": "FP32",
                    "shape": [1, 2],
                    "parameters": {
                        "shared_memory_region": "region",
                        "shared_memory_byte_size": 8,
                        "shared_memory_offset": 0,
                    },
                }
            ]
        },
    ),
    ("/v2/models/echo/generate", {"IN": [1.0, 2.0], "id": "a", "parameters": {"x": 1}}),
    ("/v2/models/text/generate", {"IN": ["a"]}),
    ("/v2/models/repeat/generate_stream", {"IN": [1.0, 2.0]}),
    ("/v2/repository/index", {"ready": True}),
    (f"/v2/repository/models/{CONTROLLED}/load", {"parameters": {}}),
    (
        f"/v2/repository/models/{CONTROLLED}/load",
        {
            "parameters": {
                "config": '{"backend": "python", "max_batch_size": 2}',
                "file:1/model.py": base64.b64encode(b"class TritonPythonModel: pass").decode(),
            }
        },
    ),
    (f"/v2/repository/models/{CONTROLLED}/unload", {"parameters": {"unload_dependents": False}}),
    ("/v2/logging", {"log_verbose_level": 0, "log_format": "json", "log_warning": True}),
    ("/v2/trace/setting", {"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1"}),
    ("/v2/models/echo/trace/setting", {"trace_level": None, "trace_rate": "10"}),
    ("/v2/systemsharedmemory/region/region/register", {"key": "/nosuch", "offset": 0, "byte_size": 8}),
    ("/v2/systemsharedmemory/region/region/unregister", {}),
    (
        "/v2/cudasharedmemory/region/region/register",
        {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 8},
    ),
)
_ADDRESSES: Final = (
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/echo", "/v2/models/echo/ready", "/metrics"),
    *("/v2/models/echo/config", "/v2/models/stats", "/v2/models/echo/versions/1/stats", "/v2/logging"),
    *("/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status", "/v2/trace/setting"),
)
_METHODS: Final = ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "get", "")


class HttpRequests:
    """Cases over HTTP. One connection is kept for well-formed requests, as clients do."""

    def __init__(self, server: FuzzedServer) -> None:
        self._server = server
        self._connection: http.client.HTTPConnection | None = None

    def run_case(self, random: Random) -> str:
        """Send what `random` makes; returns what was wrong with the answer, empty where nothing was."""
        mutator = Mutator(random)
        return self._raw(mutator) if mutator.happens(0.4) else self._structured(mutator)

    def restore(self) -> None:
        """Undo what cases may have done to the server: models, and what is logged."""
        for path, document in (
            ("/v2/logging", {"log_error": True, "log_format": "json", "log_verbose_level": 0}),
            ("/v2/trace/setting", {"trace_level": None, "trace_rate": None, "trace_count": None}),
            (f"/v2/repository/models/{CONTROLLED}/load", {}),
            *((f"/v2/repository/models/{name}/load", {}) for name in ("echo", "text", "repeat", "chain")),
            ("/v2/systemsharedmemory/unregister", {}),
        ):
            self._send("POST", path, json.dumps(document).encode(), {})

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _structured(self, mutator: Mutator) -> str:
        path, document = mutator.choice(_DOCUMENTS)
        for _ in range(mutator.choice((0, 1, 1, 1, 2, 3))):
            document = mutator.document(document)
        method, headers = "POST", {}
        if mutator.happens(0.1):
            method, path = mutator.choice(_METHODS[:7]), mutator.choice(_ADDRESSES)
        if mutator.happens(0.05):
            path = _path_text(mutator.data(path.encode()))
        body = json.dumps(document).encode()
        if mutator.happens(0.3):
            headers["Inference-Header-Content-Length"] = str(
                mutator.choice((len(body), 0, len(body) + 1, mutator.integer()))
            )
            body += mutator.choice((bytes(8), bytes(7), b"", mutator.noise()))
        if mutator.happens(0.1):
            body = mutator.data(body)
        if mutator.happens(0.1):
            body, headers["Content-Encoding"] = _encoded(mutator, body)
        if mutator.happens(0.1):
            headers["Accept-Encoding"] = mutator.choice(
                ("gzip", "deflate;q=0.5, gzip;q=x", ";;,", "*", "gzip" * 99)
            )
        if mutator.happens(0.05):
            headers[mutator.choice(("X-Y", "Endpoint-Load-Metrics-Format", "Expect"))] = mutator.choice(
                ("text", "a" * 5000, "100-continue")
            )
        return self._send(method, path, body, headers)

    def _send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> str:
        case = f"{method} {path} {headers} {body[:400]!r}"
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                "127.0.0.1", self._server.ports["HTTP"], timeout=_LONGEST_ANSWER_S
            )
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except TimeoutError:
            self.close()
            return f"no answer in {_LONGEST_ANSWER_S:g} s to {case}"
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # The server may close behind a request that it cannot understand, and then meets the next one's bytes.
            return "" if isinstance(error, ConnectionError) else f"{type(error).__name__}: {error} for {case}"
        if answer.will_close:
            self.close()
        return _verdict(answer.status, text, case)

    def _raw(self, mutator: Mutator) -> str:
        data = _request_bytes(mutator)
        for _ in range(mutator.choice((1, 1, 2))):
            data = mutator.data(data)
        with socket.create_connection(("127.0.0.1", self._server.ports["HTTP"]), _LONGEST_ANSWER_S) as sent:
            try:
                for piece in _pieces(mutator, data):
                    sent.sendall(piece)
                if mutator.happens(0.2):
                    return ""
                received = _received(sent)
            except ConnectionError:
                return ""
        words = received[:64].split(b" ")
        if received and (not received.startswith(b"HTTP/1.1 ") or not words[1].isdigit()):
            return f"an answer that is none: {received[:200]!r} to {data!r}"
        return _verdict(int(words[1]), received, repr(data)) if received else ""


def _verdict(status: int, text: bytes, case: str) -> str:
    if status < 500 or status in (501, 503) or any(known.encode() in text for known in _MEANT):
        return ""
    return f"status {status} {text[:300]!r} for {case}"


def _received(sent: socket.socket) -> bytes:
    """What is answered soon, if anything: it may be no whole request, or garbage that ends the connection."""
    sent.settimeout(_PATIENCE_S)
    received = b""
    with suppress(TimeoutError, ConnectionError):
        while len(received) < 65536 and (more := sent.recv(65536)):
            received += more
    return received


def _path_text(path: bytes) -> str:
    """Bytes as a path that `http.client` sends: it refuses spaces and control characters."""
    return "/" + "".join(chr(byte) if 0x21 <= byte < 0x7F else f"%{byte:02x}" for byte in path)


def _encoded(mutator: Mutator, body: bytes) -> tuple[bytes, str]:
    kind = mutator.choice(("gzip", "deflate", "gzip", "br", "identity", ""))
    encoded = {"gzip": gzip.compress, "deflate": zlib.compress}.get(kind, bytes)(body)
    return (mutator.data(encoded) if mutator.happens(0.4) else encoded), kind


def _request_bytes(mutator: Mutator) -> bytes:
    path, document = mutator.choice(_DOCUMENTS)
    body = json.dumps(document).encode()
    head = f"{mutator.choice(('POST', 'GET', 'POST', 'HEAD'))} {path} HTTP/1.1\r\nHost: h\r\n".encode()
    if mutator.happens(0.3):
        chunks = b"%x\r\n%s\r\n" % (len(body), body)
        request = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    else:
        request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return request * mutator.choice((1, 1, 2, 5))


def _pieces(mutator: Mutator, data: bytes) -> list[bytes]:
    if mutator.happens(0.7) or len(data) < 2:
        return [data]
    cut = mutator.random.randrange(1, len(data))
    return [data[:cut], data[cut:]]
