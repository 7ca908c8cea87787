"""Calls that are refused without a secret (`--grpc-restricted-protocol`) or a key (`--api-keys`) in their metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeVar

from cantata.runtime.frontends.api_keys import REFUSAL, ApiKeys
from cantata.runtime.frontends.grpc import codes
from cantata.runtime.frontends.grpc.call import NO_READER, Call, CallReader
from cantata.runtime.frontends.grpc.call_loop import Route
from cantata.runtime.frontends.restricted_api import RestrictedApi

NeededT = TypeVar("NeededT")

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
    """`routes` by path, asking for the secret of their group where it has one."""
    apis = {category: api for api in restricted_protocols for category in api.categories}
    return _behind(_guarded, apis, routes)


def keyed(routes: Mapping[str, Route], api_keys: tuple[ApiKeys, ...]) -> dict[str, Route]:
    """`routes` by path, asking for a key of their group where it has some."""
    return _behind(_keyed, {group: keys for keys in api_keys for group in keys.groups}, routes)


def _behind(
    guard: Callable[[Route, NeededT, Call], CallReader],
    needed: Mapping[str, NeededT],
    routes: Mapping[str, Route],
) -> dict[str, Route]:
    """`routes` by path, behind `guard` where their group needs something; the others are untouched and cost nothing."""
    guarded = dict(routes)
    for path, route in routes.items():
        group = _CATEGORIES.get(path.rpartition("/")[2], "")
        if group in needed:
            guarded[path] = partial(guard, route, needed[group])
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
