"""The HTTP endpoints of shared memory: registering regions, listing and forgetting them (reference, section 3)."""

from __future__ import annotations

import base64
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cantata.runtime.errors import invalid_argument
from cantata.runtime.frontends.http.json_members import member, parse_json, string, unsigned
from cantata.runtime.frontends.http.replies import empty, json_reply
from cantata.runtime.shared_memory import SharedMemory


class MemoryEndpoints:
    """The answers about one server's shared memory. A path without a region names none."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    async def status(self, request: Request) -> Response:
        regions = self._memory.status(_region_of(request))
        return json_reply(
            orjson.dumps(
                [
                    {"name": each.name, "key": each.key, "offset": each.offset, "byte_size": each.byte_size}
                    for each in regions
                ]
            )
        )

    async def register(self, request: Request) -> Response:
        self._memory.check_allowed()
        document = await _document(request)
        key = string(_member(document, "key"), "key")
        offset = unsigned(document.get("offset", 0), "offset")
        byte_size = unsigned(_member(document, "byte_size"), "byte_size")
        self._memory.register(_region_of(request), key, offset, byte_size)
        return empty(200)

    async def unregister(self, request: Request) -> Response:
        name = _region_of(request)
        if name:
            self._memory.unregister(name)
        else:
            self._memory.unregister_all()
        return empty(200)

    async def cuda_status(self, request: Request) -> Response:
        regions = self._memory.cuda_status(_region_of(request))
        return json_reply(orjson.dumps(regions))

    async def cuda_register(self, request: Request) -> Response:
        name = _region_of(request)
        self._memory.cuda(name)
        document = await _document(request)
        handle = member(_member(document, "raw_handle"), "b64")
        device_id = unsigned(_member(document, "device_id"), "device_id")
        byte_size = unsigned(_member(document, "byte_size"), "byte_size")
        self._memory.register_cuda(name, _raw_handle(handle), device_id, byte_size)
        return empty(200)

    async def cuda_unregister(self, request: Request) -> Response:
        self._memory.unregister_cuda(_region_of(request))
        return empty(200)


def _raw_handle(text: object) -> bytes:
    try:
        return base64.b64decode(string(text, "b64"), validate=True)
    except ValueError:
        raise invalid_argument("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t") from None


def _region_of(request: Request) -> str:
    name: str = request.path_params.get("region", "")
    return name


async def _document(request: Request) -> dict[str, Any]:
    body = await request.body()
    document = parse_json(body) if body else {}
    if not isinstance(document, dict):
        raise invalid_argument("failed to parse the request JSON buffer: it is no object")
    return document


def _member(document: dict[str, Any], key: str) -> object:
    if key not in document:
        raise invalid_argument(f"Shared memory register request has no '{key}' field")
    return document[key]
