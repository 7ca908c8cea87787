"""pb_utils.Logger: a model's messages, on the server's log under the model's name."""

from __future__ import annotations

import enum
import logging
from typing import ClassVar, Final

from cantata.bls.current_model import find_activity


class LogLevel(enum.IntEnum):
    """TRITONSERVER_LogLevel."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_LEVELS: Final = {
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.VERBOSE: logging.DEBUG,
}


def model_log(model_name: str) -> logging.Logger:
    """The log of one model."""
    return logging.getLogger(f"cantata.model.{model_name}")


class Logger:
    """Static methods only. Verbose messages are the log's debug messages."""

    INFO: ClassVar = LogLevel.INFO
    WARNING: ClassVar = LogLevel.WARNING
    ERROR: ClassVar = LogLevel.ERROR
    VERBOSE: ClassVar = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: LogLevel | int = LogLevel.INFO) -> None:
        _log(message, LogLevel(level))

    @staticmethod
    def log_info(message: str) -> None:
        _log(message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        _log(message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        _log(message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        _log(message, LogLevel.VERBOSE)


def _log(message: str, level: LogLevel) -> None:
    activity = find_activity()
    log = logging.getLogger("cantata.model") if activity is None else model_log(activity.model.name)
    # Two frames up is the model's own line.
    log.log(_LEVELS[level], "%s", message, stacklevel=3)
