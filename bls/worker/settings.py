"""What is set for process isolation: by the model's parameters, by its instance groups, by the command line.

Owns the names, the checks and the rule that chooses where a model's instances run. Starts nothing.
"""

from __future__ import annotations

import enum
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cantata.grammars.model_config import ModelConfig
from cantata.runtime.errors import InferenceError, invalid_argument

_ISOLATION: Final = "EXECUTION_ISOLATION"
_TIMEOUT: Final = "EXECUTION_TIMEOUT"
_ENVIRONMENT: Final = "EXECUTION_ENV_PATH"
_MODEL_DIRECTORY: Final = "$$TRITON_MODEL_DIRECTORY"

_DEFAULT_ISOLATION: Final = "execution-isolation"
_ARENA: Final = "arena-max-byte-size"
_START_TIMEOUT: Final = "stub-timeout-seconds"
_DEFAULT_ARENA_BYTES: Final = 8 << 30
_FEWEST_ARENA_BYTES: Final = 1 << 20


class Isolation(enum.Enum):
    """Where a model's instances run: on threads of the server, or each in a process of its own."""

    THREAD = "thread"
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What `--backend-config=python,...` says. `start_timeout_s` limits starting up; None does not."""

    default_isolation: Isolation = Isolation.THREAD
    arena_bytes: int = _DEFAULT_ARENA_BYTES
    start_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelIsolation:
    """What holds for one model. `timeout_s` limits each hook and each batch; None does not.

    `environment` is the folder or the archive of the interpreter that runs the model; None is the server's own.
    """

    isolation: Isolation
    timeout_s: float | None = None
    environment: Path | None = None


def process_settings(values: Mapping[str, str]) -> ProcessSettings:
    """Raises InferenceError for a value that cannot be."""
    default = _isolation(values.get(_DEFAULT_ISOLATION, Isolation.THREAD.value))
    if default is None:
        raise _setting_error(_DEFAULT_ISOLATION, "thread or process", values[_DEFAULT_ISOLATION])
    arena = values.get(_ARENA, str(_DEFAULT_ARENA_BYTES))
    if not arena.isdigit() or int(arena) < _FEWEST_ARENA_BYTES:
        raise _setting_error(_ARENA, f"a number of bytes, {_FEWEST_ARENA_BYTES} or more", arena)
    start_timeout_s = None
    if _START_TIMEOUT in values:
        start_timeout_s = _seconds(values[_START_TIMEOUT])
        if start_timeout_s is None:
            raise _setting_error(_START_TIMEOUT, "a number of seconds", values[_START_TIMEOUT])
    # Whole pages.
    return ProcessSettings(default, int(arena) // mmap.PAGESIZE * mmap.PAGESIZE, start_timeout_s)


def model_isolation(config: ModelConfig, model_directory: Path, settings: ProcessSettings) -> ModelIsolation:
    """What a model's configuration asks for; raises InferenceError (INVALID_ARG) where it contradicts itself."""
    environment = _parameter(config, _ENVIRONMENT)
    timeout_text = _parameter(config, _TIMEOUT)
    timeout_s = None
    if timeout_text:
        timeout_s = _seconds(timeout_text)
        if timeout_s is None:
            raise _parameter_error(config, _TIMEOUT, "a number of seconds", timeout_text)
    asked = _parameter(config, _ISOLATION)
    isolation = _isolation(asked) if asked else None
    if asked and isolation is None:
        raise _parameter_error(config, _ISOLATION, "thread or process", asked)
    if isolation is Isolation.THREAD:
        for name, value in ((_ENVIRONMENT, environment), (_TIMEOUT, timeout_text)):
            if value:
                raise invalid_argument(
                    f"model '{config.name}', parameter {name}: needs a process, but {_ISOLATION} is thread"
                )
    if isolation is None:
        in_process = environment or timeout_s is not None or _instance_count(config) > 1
        isolation = Isolation.PROCESS if in_process else settings.default_isolation
    path = Path(environment.replace(_MODEL_DIRECTORY, str(model_directory))) if environment else None
    return ModelIsolation(isolation, timeout_s, path)


def _instance_count(config: ModelConfig) -> int:
    return sum(max(group.count, 1) * max(len(group.gpus), 1) for group in config.instance_group)


def _parameter(config: ModelConfig, name: str) -> str:
    parameter = config.parameters.get(name)
    return "" if parameter is None else parameter.string_value


def _isolation(text: str) -> Isolation | None:
    return next((isolation for isolation in Isolation if isolation.value == text), None)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def _setting_error(name: str, expected: str, got: str) -> InferenceError:
    return invalid_argument(f"--backend-config=python,{name} expects {expected}, got '{got}'")


def _parameter_error(config: ModelConfig, name: str, expected: str, got: str) -> InferenceError:
    return invalid_argument(f"model '{config.name}', parameter {name}: expected {expected}, got '{got}'")
