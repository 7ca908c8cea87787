"""Every endpoint but infer, as a Starlette application; and the metrics port's.

Owns paths, methods, and the bodies of their answers (reference, section 3). Handlers are short and run on the event
loop; what they tell comes from the server's facade.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cantata.runtime.errors import InferenceError, internal_error, invalid_argument, unavailable, unsupported
from cantata.runtime.frontends.api_keys import METRICS
from cantata.runtime.frontends.http.documents import (
    index_document,
    model_metadata_document,
    server_metadata_document,
    statistics_document,
)
from cantata.runtime.frontends.http.errors import checked_version, error_body, status_of
from cantata.runtime.frontends.http.generate import GenerateEndpoints
from cantata.runtime.frontends.http.json_members import boolean, parse_json, string
from cantata.runtime.frontends.http.memory_endpoints import MemoryEndpoints
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.replies import empty, json_reply
from cantata.runtime.frontends.http.restriction import Restrictions
from cantata.runtime.frontends.http.settings_endpoints import SettingsEndpoints
from cantata.runtime.observe.metrics import METRICS_CONTENT_TYPE
from cantata.runtime.repository.override import CONFIG_PARAMETER, FILE_PARAMETER_PREFIX

if TYPE_CHECKING:
    from cantata.runtime.server import Server

Endpoint = Callable[[Request], Awaitable[Response]]


def create_application(server: Server, options: HttpOptions) -> Starlette:
    """The application of the HTTP port. Infer requests with the right method never reach it."""
    endpoints = _Endpoints(server)
    generating = GenerateEndpoints(server, options.max_input_size)
    settings = SettingsEndpoints(server)
    memory = MemoryEndpoints(server.shared_memory)
    restrictions = Restrictions(options.restricted_apis, options.api_keys)

    def route(method: str, path: str, category: str, endpoint: Endpoint) -> Route:
        made = Route(path, restrictions.guarded(category, endpoint), methods=[method])
        # Starlette adds HEAD to GET; Triton knows GET alone.
        made.methods = {method}
        return made

    def model_routes(method: str, suffix: str, category: str, endpoint: Endpoint) -> list[Route]:
        paths = (f"/v2/models/{{model}}{suffix}", f"/v2/models/{{model}}/versions/{{version:int}}{suffix}")
        return [route(method, path, category, endpoint) for path in paths]

    def both(path: str, category: str, show: Endpoint, update: Endpoint) -> list[Route]:
        return [route("GET", path, category, show), route("POST", path, category, update)]

    def memory_routes(kind: str, method: str, action: str, endpoint: Endpoint) -> list[Route]:
        prefix = f"/v2/{kind}sharedmemory"
        paths = (f"{prefix}/{action}", f"{prefix}/region/{{region}}/{action}")
        return [route(method, path, "shared-memory", endpoint) for path in paths]

    application = Starlette(
        routes=[
            route("GET", "/v2", "metadata", endpoints.server_metadata),
            route("GET", "/v2/health/live", "health", endpoints.live),
            route("GET", "/v2/health/ready", "health", endpoints.ready),
            # Before the models: a model called "stats" has no metadata address.
            route("GET", "/v2/models/stats", "statistics", endpoints.statistics),
            *model_routes("GET", "", "metadata", endpoints.model_metadata),
            *model_routes("GET", "/ready", "health", endpoints.model_ready),
            *model_routes("GET", "/config", "model-config", endpoints.model_config),
            *model_routes("GET", "/stats", "statistics", endpoints.statistics),
            *model_routes("POST", "/infer", "inference", endpoints.infer),
            *model_routes("POST", "/generate", "inference", generating.generate),
            *model_routes("POST", "/generate_stream", "inference", generating.generate_stream),
            route("POST", "/v2/repository/index", "model-repository", endpoints.repository_index),
            route(
                "POST", "/v2/repository/{repository}/index", "model-repository", endpoints.repository_index
            ),
            *[
                route("POST", f"/v2/repository{path}", "model-repository", endpoint)
                for path, endpoint in (
                    ("/models/{model}/load", endpoints.load),
                    ("/models/{model}/unload", endpoints.unload),
                    ("/{repository}/models/{model}/load", endpoints.elsewhere),
                    ("/{repository}/models/{model}/unload", endpoints.elsewhere),
                )
            ],
            *both("/v2/logging", "logging", settings.logging, settings.update_logging),
            *both("/v2/trace/setting", "trace", settings.trace, settings.update_trace),
            *both("/v2/models/{model}/trace/setting", "trace", settings.trace, settings.update_trace),
            *memory_routes("system", "GET", "status", memory.status),
            *memory_routes("system", "POST", "register", memory.register),
            *memory_routes("system", "POST", "unregister", memory.unregister),
            *memory_routes("cuda", "GET", "status", memory.cuda_status),
            *memory_routes("cuda", "POST", "register", memory.cuda_register),
            *memory_routes("cuda", "POST", "unregister", memory.cuda_unregister),
        ],
        exception_handlers={
            HTTPException: _http_error,
            InferenceError: _inference_error,
            Exception: _our_error,
        },
    )
    # A path with a slash at its end is another path.
    application.router.redirect_slashes = False
    return application


def create_metrics_application(render: Callable[[], bytes], restrictions: Restrictions) -> Starlette:
    """The application of the metrics port; `render` makes the text."""

    async def metrics(_request: Request) -> Response:
        return Response(render(), headers={"content-type": METRICS_CONTENT_TYPE})

    async def nothing(_request: Request) -> Response:
        return Response(headers={"content-type": METRICS_CONTENT_TYPE})

    return Starlette(
        routes=[
            Route("/metrics", restrictions.guarded(METRICS, metrics)),
            Route("/metrics/", restrictions.guarded(METRICS, metrics)),
            Route("/{path:path}", nothing),
        ],
        exception_handlers={HTTPException: _http_error},
    )


class _Endpoints:
    def __init__(self, server: Server) -> None:
        self._server = server
        self._metadata: bytes | None = None

    async def live(self, _request: Request) -> Response:
        return self._health(self._server.is_live())

    async def ready(self, _request: Request) -> Response:
        return self._health(await self._asked(self._server.is_ready))

    async def _asked(self, question: Callable[[], bool]) -> bool:
        """The answer of the server about readiness; where models are asked, others are served meanwhile."""
        if self._server.asks_for_readiness:
            return await asyncio.to_thread(question)
        return question()

    def _health(self, is_well: bool) -> Response:
        if self._server.is_exiting:
            raise unavailable("Server exiting")
        return empty(200 if is_well else 400)

    async def server_metadata(self, _request: Request) -> Response:
        if self._metadata is None:
            self._metadata = orjson.dumps(server_metadata_document(self._server.metadata()))
        return json_reply(self._metadata)

    async def model_metadata(self, request: Request) -> Response:
        name, version = _model_of(request)
        model = self._server.model(name, version)
        versions = [version] if version != -1 else self._server.model_versions(name)
        return json_reply(orjson.dumps(model_metadata_document(model, versions)))

    async def model_ready(self, request: Request) -> Response:
        if not await self._asked(partial(self._server.is_model_ready, *_model_of(request))):
            raise invalid_argument("Model version not ready")
        return empty(200)

    async def model_config(self, request: Request) -> Response:
        return json_reply(self._server.model(*_model_of(request)).config_json)

    async def statistics(self, request: Request) -> Response:
        name, version = _model_of(request) if "model" in request.path_params else ("", -1)
        return json_reply(orjson.dumps(statistics_document(self._server.statistics(name, version))))

    async def infer(self, _request: Request) -> Response:
        raise HTTPException(404)

    async def repository_index(self, request: Request) -> Response:
        document = await _body_document(request)
        ready_only = False
        if isinstance(document, dict) and "ready" in document:
            if type(document["ready"]) is not bool:
                raise invalid_argument("Invalid value for 'ready': expected a boolean")
            ready_only = document["ready"]
        entries = self._server.repository_index(ready_only)
        return json_reply(orjson.dumps([index_document(entry) for entry in entries]))

    async def load(self, request: Request) -> Response:
        given = await _body_parameters(request)
        parameters = {key: _load_parameter(key, value) for key, value in given.items()}
        await asyncio.to_thread(self._server.load_model, request.path_params["model"], parameters)
        return empty(200)

    async def unload(self, request: Request) -> Response:
        parameters = await _body_parameters(request)
        with_dependents = boolean(parameters.get("unload_dependents", False), "unload_dependents")
        await asyncio.to_thread(self._server.unload_model, request.path_params["model"], with_dependents)
        return empty(200)

    async def elsewhere(self, _request: Request) -> Response:
        raise unsupported("'repository_name' specification is not supported")


def _model_of(request: Request) -> tuple[str, int]:
    """The model's name and the version in a path, -1 where there is none."""
    return request.path_params["model"], checked_version(request.path_params.get("version", -1))


async def _body_document(request: Request) -> object:
    body = await request.body()
    return parse_json(body) if body else None


async def _body_parameters(request: Request) -> dict[str, object]:
    document = await _body_document(request)
    parameters = document.get("parameters", {}) if isinstance(document, dict) else {}
    if not isinstance(parameters, dict):
        raise invalid_argument("Unable to parse 'parameters': attempt to access JSON non-object as object")
    return parameters


def _load_parameter(key: str, value: object) -> str | bytes:
    if key == CONFIG_PARAMETER:
        return string(value, key)
    if not key.startswith(FILE_PARAMETER_PREFIX):
        raise internal_error("unexpected error on creating Triton parameter")
    try:
        return base64.b64decode(string(value, key), validate=True)
    except ValueError:
        raise invalid_argument(f"Unable to parse '{key}': its value is not base64") from None


def _error(status: int, message: str) -> Response:
    return Response(error_body(message), status_code=status, headers={"content-type": "application/json"})


async def _inference_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, InferenceError)
    response = _error(status_of(error), error.message)
    if error.retry_after_s:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _error(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _our_error(_request: Request, _error_of_ours: Exception) -> Response:
    # Starlette raises it again behind this answer, and so it is logged.
    return _error(500, "Internal Server Error")
