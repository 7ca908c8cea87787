"""What is traced: the settings of the whole server and of single models, and which requests they choose.

Owns the parsing of settings, their inheritance and the sampling (reference, section 10). Pure: knows no clock, no file
and no request; whoever uses it holds a lock.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cantata.runtime.errors import InferenceError, invalid_argument, unsupported

OFF: Final = "OFF"
TIMESTAMPS: Final = "TIMESTAMPS"
TENSORS: Final = "TENSORS"
_MODES: Final = ("triton", "opentelemetry")
_LEVELS: Final = (OFF, TIMESTAMPS, TENSORS)
_UNSIGNED: Final = (0, 2**32 - 1)
_COUNT: Final = (-1, 2**31 - 1)


@dataclass(frozen=True, slots=True)
class OpenTelemetryOptions:
    """Where spans go, and how they are gathered on the way there; None is what the environment says, or the default."""

    url: str = "http://localhost:4318/v1/traces"
    resource: tuple[tuple[str, str], ...] = ()
    max_queue_size: int | None = None
    schedule_delay_ms: int | None = None
    max_export_batch_size: int | None = None

    def document(self) -> dict[str, str]:
        """As both protocols name and write them."""
        document = {"url": self.url}
        if self.resource:
            document["resource"] = ",".join(f"{key}={value}" for key, value in self.resource)
        for name, value, variable, default in (
            ("schedule_delay", self.schedule_delay_ms, "SCHEDULE_DELAY", 5000),
            ("max_export_batch_size", self.max_export_batch_size, "MAX_EXPORT_BATCH_SIZE", 512),
            ("max_queue_size", self.max_queue_size, "MAX_QUEUE_SIZE", 2048),
        ):
            shown = os.environ.get(f"OTEL_BSP_{variable}") or default if value is None else value
            document[f"bsp_{name}"] = str(shown)
        return document


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What is traced of a model's requests: every `rate`-th, `count` of them in all (-1: no end).

    With `open_telemetry` traces become spans, and requests that bring a trace along are traced in any case.
    """

    levels: tuple[str, ...] = (OFF,)
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    file: str = ""
    open_telemetry: OpenTelemetryOptions | None = None

    @property
    def traces(self) -> bool:
        """Whether requests are traced by their number."""
        has_place = self.open_telemetry is not None or bool(self.file)
        return self.levels != (OFF,) and self.rate > 0 and self.count != 0 and has_place

    @property
    def follows_contexts(self) -> bool:
        """Whether requests that are part of a trace already are traced, whatever their number."""
        return self.open_telemetry is not None and self.levels != (OFF,)

    def document(self) -> dict[str, str | tuple[str, ...]]:
        """The settings as both protocols name and write them."""
        common: dict[str, str | tuple[str, ...]] = {
            "trace_level": self.levels,
            "trace_rate": str(self.rate),
            "trace_count": str(self.count),
        }
        if self.open_telemetry is not None:
            return {**common, "trace_mode": "opentelemetry", **self.open_telemetry.document()}
        return {
            **common,
            "log_frequency": str(self.log_frequency),
            "trace_file": self.file,
            "trace_mode": "triton",
        }


def parse_changes(changes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The fields of TraceSettings that a client's settings change, None for those that it clears.

    Settings that are unknown are ignored. Raises InferenceError for values that cannot be.
    """
    parsed: dict[str, Any] = {}
    for name, values in changes.items():
        match name:
            case "trace_file":
                raise _file_error()
            case "trace_level":
                levels = _levels(values)
                if levels or not values:
                    parsed["levels"] = levels or None
            case "trace_rate":
                parsed["rate"] = _number(name, values, _UNSIGNED)
            case "trace_count":
                parsed["count"] = _number(name, values, _COUNT)
            case "log_frequency":
                parsed["log_frequency"] = _number(name, values, _UNSIGNED)
    return parsed


def _file_error() -> InferenceError:
    return unsupported("trace file location can not be updated through network protocol")


def _levels(values: Sequence[str]) -> tuple[str, ...]:
    """The levels among `values`, others ignored."""
    known = tuple(level for level in _LEVELS if level in values)
    if OFF in known and len(values) > 1:
        raise invalid_argument("Expect only one trace level 'OFF' is specified")
    return known


def _number(name: str, values: Sequence[str], bounds: tuple[int, int]) -> int | None:
    if not values:
        return None
    if len(values) > 1:
        raise invalid_argument(f"expect only 1 value for '{name}'")
    text = values[0].strip()
    low, high = bounds
    if not text.removeprefix("-").removeprefix("+").isdecimal():
        raise invalid_argument(f"Unable to parse '{name}', got: {values[0]}")
    number = int(text)
    if number < low and low < 0:
        raise invalid_argument(f"Unable to parse '{name}'. Expecting value >= {low}, got:{values[0]}")
    if not low <= number <= high:
        raise invalid_argument(
            f"Unable to parse '{name}', value is out of range [ {low}, {high} ], got: {values[0]}"
        )
    return number


def parse_trace_config(texts: Sequence[str]) -> TraceSettings:
    """The settings of `[<mode>,]<setting>=<value>`, later ones first; raises ValueError with what is wrong."""
    levels: list[str] = []
    fields: dict[str, Any] = {}
    exporting: dict[str, Any] = {}
    mode = "triton"
    for text in texts:
        head, equals, value = text.partition("=")
        scope, _, setting = head.rpartition(",")
        if not equals or scope not in ("", *_MODES):
            raise ValueError(f"expects [<mode>,]<setting>=<value>, got '{text}'")
        match scope, setting:
            case "", "mode":
                mode = _checked_mode(value)
            case "", "level":
                levels += [_checked_level(level.strip()) for level in value.split(",")]
            case ("", "rate") | ("", "count") | ("triton", "log-frequency"):
                name = {"rate": "trace_rate", "count": "trace_count"}.get(setting, "log_frequency")
                fields[setting.replace("-", "_")] = _configured_number(name, value)
            case "triton", "file":
                fields["file"] = value
            case "opentelemetry", "url":
                exporting["url"] = _checked_url(value)
            case "opentelemetry", "resource":
                exporting["resource"] = (*exporting.get("resource", ()), _attribute(value))
            case "opentelemetry", _ if setting in _BATCHING:
                exporting[_BATCHING[setting]] = _configured_number(setting, value)
            case _:
                raise ValueError(f"has no setting '{head}'")
    if levels:
        # An explicit OFF wins over whatever else is said.
        fields["levels"] = (OFF,) if OFF in levels else tuple(each for each in _LEVELS if each in levels)
    if mode == "opentelemetry":
        fields["open_telemetry"] = OpenTelemetryOptions(**exporting)
    return TraceSettings(**fields)


_BATCHING: Final = {
    "bsp_max_queue_size": "max_queue_size",
    "bsp_schedule_delay": "schedule_delay_ms",
    "bsp_max_export_batch_size": "max_export_batch_size",
}


def _checked_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"expects the url of an OTLP/HTTP collector, got '{text}'")
    return text


def _attribute(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"expects opentelemetry,resource=<key>=<value>, got '{text}'")
    return key, value


def _checked_mode(text: str) -> str:
    if text not in _MODES:
        raise ValueError(f"expects the mode {' or '.join(_MODES)}, got '{text}'")
    return text


def _checked_level(text: str) -> str:
    if text not in _LEVELS:
        raise ValueError(f"expects the level {', '.join(_LEVELS)}, got '{text}'")
    return text


def _configured_number(name: str, text: str) -> int:
    """A number of the command line."""
    try:
        number = _number(name, [text], _COUNT if name == "trace_count" else _UNSIGNED)
    except InferenceError as error:
        raise ValueError(f"is wrong: {error}") from None
    assert number is not None
    return number


@dataclass(slots=True)
class _Sampler:
    """Which requests one setting chooses. `count` goes down to 0 as they are chosen."""

    settings: TraceSettings
    count: int = field(init=False)
    seen: int = 0

    def __post_init__(self) -> None:
        self.count = self.settings.count

    @property
    def is_active(self) -> bool:
        return self.settings.traces and self.count != 0

    def chooses(self) -> bool:
        if not self.is_active:
            return False
        self.seen += 1
        if self.seen < self.settings.rate:
            return False
        self.seen = 0
        if self.count > 0:
            self.count -= 1
        return True


class TraceChoice:
    """The settings in force, by model. What a model does not set itself is the server's."""

    def __init__(self, command_line: TraceSettings) -> None:
        self._command_line = command_line
        self._server_changes: dict[str, Any] = {}
        self._model_changes: dict[str, dict[str, Any]] = {}
        self._server = _Sampler(command_line)
        self._models: dict[str, _Sampler] = {}

    @property
    def is_any_active(self) -> bool:
        """Whether any request may be chosen."""
        samplers = (self._server, *self._models.values())
        return any(sampler.is_active or sampler.settings.follows_contexts for sampler in samplers)

    def settings(self, model_name: str = "") -> TraceSettings:
        """The settings of a model, or of the server; `count` is what is left of it."""
        sampler = self._models.get(model_name, self._server)
        return _changed(sampler.settings, {"count": sampler.count})

    def update(self, model_name: str, changes: Mapping[str, Any]) -> None:
        """Change the settings of a model, or of the server where the name is empty; None clears one."""
        if model_name:
            own = {**self._model_changes.get(model_name, {}), **changes}
            self._model_changes[model_name] = {
                name: value for name, value in own.items() if value is not None
            }
            self._renew(model_name)
            return
        own = {**self._server_changes, **changes}
        self._server_changes = {name: value for name, value in own.items() if value is not None}
        self._server = _Sampler(_changed(self._command_line, self._server_changes))
        for name in tuple(self._models):
            self._renew(name)

    def choose(self, model_name: str, *, has_context: bool = False) -> TraceSettings | None:
        """Count a request; the settings to trace it by, or None where it is not chosen.

        One that is part of a trace already is not counted.
        """
        sampler = self._models.get(model_name, self._server)
        if has_context and sampler.settings.follows_contexts:
            return sampler.settings
        return sampler.settings if sampler.chooses() else None

    def _renew(self, model_name: str) -> None:
        changes = self._model_changes[model_name]
        if changes:
            self._models[model_name] = _Sampler(_changed(self._server.settings, changes))
        else:
            self._models.pop(model_name, None)


def _changed(settings: TraceSettings, changes: Mapping[str, Any]) -> TraceSettings:
    fields = {
        "levels": settings.levels,
        "rate": settings.rate,
        "count": settings.count,
        "log_frequency": settings.log_frequency,
        "file": settings.file,
        "open_telemetry": settings.open_telemetry,
    }
    return TraceSettings(**{**fields, **changes})
