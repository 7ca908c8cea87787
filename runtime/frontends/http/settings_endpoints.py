"""The HTTP endpoints that show and change settings: of logging and of tracing (reference, section 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cantata.runtime.errors import unavailable, unsupported
from cantata.runtime.frontends.http.json_members import array, boolean, parse_json, string, unsigned
from cantata.runtime.frontends.http.replies import json_reply
from cantata.runtime.observe.logs import LogSettings, log_settings, update_logging

if TYPE_CHECKING:
    from cantata.runtime.server import Server

_LOG_FLAGS: Final = {"log_info": "info", "log_warning": "warning", "log_error": "error"}
_TRACE_NUMBERS: Final = ("trace_file", "trace_rate", "trace_count", "log_frequency")


class SettingsEndpoints:
    """The answers about the settings of one server. A member that is null is left as it is or, in tracing, cleared."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def logging(self, _request: Request) -> Response:
        return _log_reply(log_settings())

    async def update_logging(self, request: Request) -> Response:
        changes: dict[str, bool | int | str] = {}
        for name, value in (await _members(request)).items():
            if value is None:
                continue
            if name == "log_file":
                raise unsupported("log file location can not be updated through network protocol")
            if name in _LOG_FLAGS:
                changes[_LOG_FLAGS[name]] = boolean(value, name)
            elif name == "log_verbose_level":
                changes["verbose_level"] = unsigned(value, name)
            elif name == "log_format":
                changes["format"] = string(value, name)
        try:
            return _log_reply(update_logging(changes) if changes else log_settings())
        except ValueError as error:
            raise unavailable(f"invalid argument for --log_format, got: {error}") from None

    async def trace(self, request: Request) -> Response:
        return json_reply(orjson.dumps(self._server.tracer.settings(self._model_of(request)).document()))

    async def update_trace(self, request: Request) -> Response:
        name = self._model_of(request)
        changes: dict[str, list[str]] = {}
        for key, value in (await _members(request)).items():
            if key == "trace_level":
                levels = [] if value is None else array(value, key)
                changes[key] = [string(level, key) for level in levels]
            elif key in _TRACE_NUMBERS:
                changes[key] = [] if value is None else [string(value, key)]
        return json_reply(orjson.dumps(self._server.tracer.update(changes, name).document()))

    def _model_of(self, request: Request) -> str:
        """The model in the path, which must be known; "" where there is none."""
        name: str = request.path_params.get("model", "")
        if name:
            self._server.model(name)
        return name


async def _members(request: Request) -> dict[str, Any]:
    document = parse_json(await request.body())
    return document if isinstance(document, dict) else {}


def _log_reply(settings: LogSettings) -> Response:
    return json_reply(
        orjson.dumps(
            {
                "log_file": settings.file,
                "log_info": settings.info,
                "log_warning": settings.warning,
                "log_error": settings.error,
                "log_verbose_level": settings.verbose_level,
                "log_format": settings.format,
            }
        )
    )
