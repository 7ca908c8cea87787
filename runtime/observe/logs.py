"""One line for each event, for people or as JSON. Owns the `cantata` logger's handler and levels, and nothing else."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import orjson

VERBOSE = logging.DEBUG


class _HumanFormatter(logging.Formatter):
    """`I1121 12:34:56.789012 1234 server] text`, as Triton's default format has it."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created)
        head = f"{record.levelname[0]}{moment:%m%d %H:%M:%S.%f} {record.process} {_component(record)}]"
        return f"{head} {_text(self, record)}"


class _IsoFormatter(logging.Formatter):
    """`2026-11-21T12:34:56Z I 1234 server] text`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        head = f"{moment:%Y-%m-%dT%H:%M:%SZ} {record.levelname[0]} {record.process} {_component(record)}]"
        return f"{head} {_text(self, record)}"


class _JsonFormatter(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, component, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "component": _component(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(event).decode()


_FORMATTERS: dict[str, type[logging.Formatter]] = {
    "default": _HumanFormatter,
    "ISO8601": _IsoFormatter,
    "json": _JsonFormatter,
}
LOG_FORMATS: Final = tuple(_FORMATTERS)


class _LevelFilter(logging.Filter):
    def __init__(self, levels: frozenset[int]) -> None:
        super().__init__()
        self._levels = levels

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno in self._levels


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, how, and where to; `file` empty means standard error."""

    file: str = ""
    info: bool = True
    warning: bool = True
    error: bool = True
    verbose_level: int = 0
    format: str = "default"


# There is one logger in a process, and so one of these. `_lock` guards it.
_lock = threading.Lock()
_settings = LogSettings()


def log_settings() -> LogSettings:
    """The settings in force."""
    return _settings


def configure_logging(settings: LogSettings) -> None:
    """Send the events of the chosen levels to standard error or to a file, which raises OSError if it cannot be."""
    handler: logging.Handler = (
        logging.FileHandler(settings.file) if settings.file else logging.StreamHandler(sys.stderr)
    )
    with _lock:
        _apply(settings, handler)


def update_logging(changes: Mapping[str, bool | int | str]) -> LogSettings:
    """Change settings by their field names, but not where the log goes; returns all. Any thread may call.

    Raises ValueError for a format that there is not.
    """
    with _lock:
        settings = replace(_settings, **changes)  # type: ignore[arg-type]
        if settings.format not in LOG_FORMATS:
            raise ValueError(settings.format)
        found = logging.getLogger("cantata").handlers
        _apply(settings, found[0] if found else logging.StreamHandler(sys.stderr))
        return settings


def _apply(settings: LogSettings, handler: logging.Handler) -> None:
    global _settings
    _settings = settings
    chosen = {
        VERBOSE: settings.verbose_level > 0,
        logging.INFO: settings.info,
        logging.WARNING: settings.warning,
        logging.ERROR: settings.error,
        logging.CRITICAL: settings.error,
    }
    handler.setFormatter(_FORMATTERS[settings.format]())
    handler.filters[:] = [_LevelFilter(frozenset(level for level, is_on in chosen.items() if is_on))]
    logger = logging.getLogger("cantata")
    logger.handlers[:] = [handler]
    logger.setLevel(VERBOSE if settings.verbose_level > 0 else logging.INFO)
    logger.propagate = False


def _component(record: logging.LogRecord) -> str:
    return record.name.removeprefix("cantata.")


def _text(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + formatter.formatException(record.exc_info)
    return text
