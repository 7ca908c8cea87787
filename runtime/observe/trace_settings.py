"""What is traced: the settings of the whole server and of single models, and which requests they choose.

Owns the parsing of settings, their inheritance and the sampling (reference, section 10). Pure: knows no clock, no file
and no request; whoever uses it holds a lock.
"""

from __future__ import annotations

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
class TraceSettings:
    """What is traced of a model's requests: every `rate`-th, `count` of them in all (-1: no end)."""

    levels: tuple[str, ...] = (OFF,)
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    file: str = ""

    @property
    def traces(self) -> bool:
        """Whether any request is traced."""
        return self.levels != (OFF,) and self.rate > 0 and self.count != 0 and bool(self.file)

    def document(self) -> dict[str, str | tuple[str, ...]]:
        """The settings as both protocols name and write them."""
        return {
            "trace_level": self.levels,
            "trace_rate": str(self.rate),
            "trace_count": str(self.count),
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
            case "opentelemetry", _:
                pass
            case _:
                raise ValueError(f"has no setting '{head}'")
    if levels and mode == "triton":
        # An explicit OFF wins over whatever else is said.
        fields["levels"] = (OFF,) if OFF in levels else tuple(each for each in _LEVELS if each in levels)
    return TraceSettings(**fields)


def trace_warnings(texts: Sequence[str]) -> tuple[str, ...]:
    """What `--trace-config` asks for that has no effect."""
    if any("opentelemetry" in text.partition("=")[0] or text == "mode=opentelemetry" for text in texts):
        return ("--trace-config mode=opentelemetry has no effect: traces are written to files",)
    return ()


def _checked_mode(text: str) -> str:
    if text not in _MODES:
        raise ValueError(f"expects the mode {' or '.join(_MODES)}, got '{text}'")
    return text


def _checked_level(text: str) -> str:
    if text not in _LEVELS:
        raise ValueError(f"expects the level {', '.join(_LEVELS)}, got '{text}'")
    return text


def _configured_number(name: str, text: str) -> int:
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
        return self._server.is_active or any(sampler.is_active for sampler in self._models.values())

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

    def choose(self, model_name: str) -> TraceSettings | None:
        """Count a request; the settings to trace it by, or None where it is not chosen."""
        sampler = self._models.get(model_name, self._server)
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
    }
    return TraceSettings(**{**fields, **changes})
