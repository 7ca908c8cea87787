"""Calls that are refused without a secret (`--grpc-restricted-protocol`) or a key (`--api-keys`) in their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from cantata.runtime.frontends.api_keys import REFUSAL, ApiKeys
from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.call import NO_READER, Call, CallReader
from cantata.runtime.frontends.grpc.call_loop import Route
from cantata.runtime.frontends.restricted_api import RestrictedApi

_KEY_PREFIX: Final = "triton-grpc-protocol-"

# Which group a method is of; those of the health protocol are told by their path.
_CATEGORIES: Final = {
    "ServerLive": "health",
    "ServerReady": "health",
    "ModelReady": "health",
    "Check": "health",
    "Watch": "health",
    "ServerMetadata": "metadata",
    "ServerReflectionInfo": "metadata",
    "ModelMetadata": "metadata",
    "ModelInfer": "inference",
    "ModelStreamInfer": "inference",
    "ModelConfig": "model-config",
    "ModelStatistics": "statistics",
    "RepositoryIndex": "model-repository",
    "RepositoryModelLoad": "model-repository",
    "RepositoryModelUnload": "model-repository",
    "SystemSharedMemoryStatus": "shared-memory",
    "SystemSharedMemoryRegister": "shared-memory",
    "SystemSharedMemoryUnregister": "shared-memory",
    "CudaSharedMemoryStatus": "shared-memory",
    "CudaSharedMemoryRegister": "shared-memory",
    "CudaSharedMemoryUnregister": "shared-memory",
    "TraceSetting": "trace",
    "LogSettings": "logging",
}


def restricted(
    routes: Mapping[str, Route], restricted_protocols: tuple[RestrictedApi, ...]
) -> dict[str, Route]:
    """`routes` by path, guarded where their group is restricted; the others are untouched and cost nothing."""
    needed = {category: api for api in restricted_protocols for category in api.categories}
    guarded = dict(routes)
    for path, route in routes.items():
        api = needed.get(_CATEGORIES.get(path.rpartition("/")[2], ""))
        if api is not None:
            guarded[path] = partial(_guarded, route, api)
    return guarded


def keyed(routes: Mapping[str, Route], api_keys: tuple[ApiKeys, ...]) -> dict[str, Route]:
    """`routes` by path, asking for a key where their group has keys; the others are untouched and cost nothing."""
    needed = {group: keys for keys in api_keys for group in keys.groups}
    guarded = dict(routes)
    for path, route in routes.items():
        keys = needed.get(_CATEGORIES.get(path.rpartition("/")[2], ""))
        if keys is not None:
            guarded[path] = partial(_keyed, route, keys)
    return guarded


def _keyed(route: Route, keys: ApiKeys, call: Call) -> CallReader:
    def header(wanted: str) -> str | None:
        values = (value for name, value in call.metadata if name == wanted)
        return next((value for value in values if isinstance(value, str)), None)

    if keys.admits(header):
        return route(call)
    call.fail(codes.UNAUTHENTICATED, REFUSAL)
    return NO_READER


def _guarded(route: Route, api: RestrictedApi, call: Call) -> CallReader:
    key = _KEY_PREFIX + api.key.lower()
    found = next((value for name, value in call.metadata if name == key), None)
    if isinstance(found, str) and api.admits(found):
        return route(call)
    call.fail(codes.UNAVAILABLE, f"This protocol is restricted, expecting header '{_KEY_PREFIX}{api.key}'")
    return NO_READER
