"""One line for each event, for people or as JSON. Owns the `cantata` logger's handler and levels, and nothing else."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

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


class _LevelFilter(logging.Filter):
    def __init__(self, levels: frozenset[int]) -> None:
        super().__init__()
        self._levels = levels

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno in self._levels


def configure_logging(
    log_format: str,
    *,
    verbose: int = 0,
    info: bool = True,
    warning: bool = True,
    error: bool = True,
    file: Path | None = None,
) -> None:
    """Send the events of the chosen levels to standard error, or to `file`."""
    handler: logging.Handler = (
        logging.StreamHandler(sys.stderr) if file is None else logging.FileHandler(file)
    )
    handler.setFormatter(_FORMATTERS[log_format]())
    chosen = {VERBOSE: verbose > 0, logging.INFO: info, logging.WARNING: warning}
    levels = {level for level, is_on in chosen.items() if is_on}
    if error:
        levels |= {logging.ERROR, logging.CRITICAL}
    handler.addFilter(_LevelFilter(frozenset(levels)))
    logger = logging.getLogger("cantata")
    logger.handlers[:] = [handler]
    logger.setLevel(VERBOSE if verbose > 0 else logging.INFO)
    logger.propagate = False


def _component(record: logging.LogRecord) -> str:
    return record.name.removeprefix("cantata.")


def _text(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + formatter.formatException(record.exc_info)
    return text
