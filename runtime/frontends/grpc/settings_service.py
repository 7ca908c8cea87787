"""The methods of GRPCInferenceService that show and change settings, of logging and of tracing (section 10)."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

from cantata.grammars import messages
from cantata.runtime.errors import invalid_argument, unsupported
from cantata.runtime.frontends.grpc.handlers import serialised
from cantata.runtime.frontends.grpc.unary import Handler
from cantata.runtime.observe.logs import LogSettings, log_settings, update_logging
from cantata.runtime.server import Server

# Each setting's field in LogSettings, the form of its value, and what that form is called.
_LOG_FIELDS: Final[dict[str, tuple[str, str, str]]] = {
    "log_info": ("info", "bool_param", "boolean"),
    "log_warning": ("warning", "bool_param", "boolean"),
    "log_error": ("error", "bool_param", "boolean"),
    "log_verbose_level": ("verbose_level", "uint32_param", "uint32"),
    "log_format": ("format", "string_param", "string"),
}


class SettingsService:
    """The answers about the settings of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def handlers(self) -> dict[str, Handler]:
        """What answers the methods, by their names; all are quick."""
        return {
            "LogSettings": serialised(messages.LogSettingsRequest, self._log_settings),
            "TraceSetting": serialised(messages.TraceSettingRequest, self._trace_setting),
        }

    def _log_settings(self, request: messages.LogSettingsRequest) -> Message:
        changes = {}
        for name, value in request.settings.items():
            if name == "log_file":
                raise unsupported("log file location can not be updated through network protocol")
            if name in _LOG_FIELDS:
                field, choice, called = _LOG_FIELDS[name]
                if value.WhichOneof("parameter_choice") != choice:
                    raise invalid_argument(f"expect {called} for '{name}'")
                changes[field] = getattr(value, choice)
        try:
            settings = update_logging(changes) if changes else log_settings()
        except ValueError as error:
            raise invalid_argument(f"invalid argument for log_format, got: {error}") from None
        return _log_response(settings)

    def _trace_setting(self, request: messages.TraceSettingRequest) -> Message:
        name: str = request.model_name
        if name:
            self._server.model(name)
        changes = {key: list(value.value) for key, value in request.settings.items()}
        settings = self._server.tracer.update(changes, name)
        response = messages.TraceSettingResponse()
        for key, values in settings.document().items():
            response.settings[key].value.extend([values] if isinstance(values, str) else values)
        return response


def _log_response(settings: LogSettings) -> Message:
    response = messages.LogSettingsResponse()
    response.settings["log_file"].string_param = settings.file
    for name, (field, choice, _) in _LOG_FIELDS.items():
        setattr(response.settings[name], choice, getattr(settings, field))
    return response
