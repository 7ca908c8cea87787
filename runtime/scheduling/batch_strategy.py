"""A model's own say in which requests share a batch: Python functions beside the model (docs/scheduling.md).

Owns the file's discovery, the functions' contract and the containment of what they raise. The other rules of
batches are the batcher's, and are asked first.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

from cantata.grammars.model_config import ModelConfig
from cantata.grammars.reading import model_config_to_json
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import ParameterValue
from cantata.runtime.tensor import Tensor

_log = logging.getLogger("cantata.scheduler")

STRATEGY_PARAMETER: Final = "TRITON_BATCH_STRATEGY_PATH"
STRATEGY_FILENAME: Final = "batchstrategy.py"


class BatchStrategy(Protocol):
    """Decides whether a request may join a batch that is being formed. Called under the scheduler's lock."""

    def start(self, request: InferenceRequest) -> None:
        """A batch is begun with `request`; one that was begun before is forgotten."""

    def admits(self, request: InferenceRequest) -> bool:
        """Whether `request` joins; if not the batch is complete."""


class Candidate:
    """A request as a strategy sees it; nothing of it may be changed."""

    __slots__ = ("_request",)

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request

    @property
    def id(self) -> str:
        return self._request.id

    @property
    def batch_size(self) -> int:
        """How many items the request has."""
        return self._request.batch_size

    @property
    def priority(self) -> int:
        return self._request.priority

    @property
    def correlation_id(self) -> int | str:
        return self._request.correlation_id

    @property
    def parameters(self) -> Mapping[str, ParameterValue]:
        return self._request.parameters or {}

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The tensors by name; each has `datatype`, `shape`, `array`."""
        return self._request.inputs

    @property
    def requested_outputs(self) -> tuple[str, ...]:
        """Empty for all."""
        return self._request.requested_outputs


class PythonBatchStrategy:
    """The functions of a strategy's file at work.

    `batch_include_request(batch, request) -> bool` is asked about every request, in order; the first of a batch is in
    it whatever the answer. `batch` is what `batch_initialize(batcher)` returns for each batch, and `batcher` what
    `batcher_initialize(config)` returns at load; both functions may be left out.
    """

    def __init__(self, model_name: str, module: ModuleType, config: dict[str, Any]) -> None:
        self._model_name = model_name
        include = getattr(module, "batch_include_request", None)
        if not callable(include):
            raise invalid_argument(
                f"model '{model_name}': the batching strategy '{module.__file__}' must define "
                "batch_include_request(batch, request)"
            )
        self._include: Callable[[object, Candidate], object] = include
        self._new_batch: Callable[[object], object] | None = getattr(module, "batch_initialize", None)
        initialize = getattr(module, "batcher_initialize", None)
        self._batcher = initialize(config) if callable(initialize) else None
        self._batch: object = None

    def start(self, request: InferenceRequest) -> None:
        try:
            self._batch = None if self._new_batch is None else self._new_batch(self._batcher)
        except Exception:
            _log.exception("model '%s': the batching strategy failed to begin a batch", self._model_name)
            self._batch = None
        self.admits(request)

    def admits(self, request: InferenceRequest) -> bool:
        try:
            return bool(self._include(self._batch, Candidate(request)))
        except Exception:
            _log.exception("model '%s': the batching strategy failed", self._model_name)
            return False


def load_batch_strategy(
    config: ModelConfig, model_directory: Path, version_directory: Path
) -> PythonBatchStrategy | None:
    """The strategy that a model brings, named in its configuration or found by its name; None without one.

    Raises InferenceError when it is named and not there, or cannot be run.
    """
    path = _strategy_path(config, model_directory, version_directory)
    if path is None:
        return None
    try:
        spec = importlib.util.spec_from_file_location(f"_cantata_batch_strategy_{config.name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        settings: dict[str, Any] = model_config_to_json(config)
        return PythonBatchStrategy(config.name, module, settings)
    except InferenceError:
        raise
    except Exception as error:
        raise internal_error(
            f"model '{config.name}': the batching strategy '{path}' cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def _strategy_path(config: ModelConfig, model_directory: Path, version_directory: Path) -> Path | None:
    parameter = config.parameters.get(STRATEGY_PARAMETER)
    if parameter is not None:
        named = model_directory / parameter.string_value
        if named.suffix != ".py":
            raise invalid_argument(
                f"model '{config.name}': {STRATEGY_PARAMETER} must name a Python file, got '{parameter.string_value}'"
            )
        if not named.is_file():
            raise invalid_argument(f"model '{config.name}': the batching strategy '{named}' does not exist")
        return named
    for directory in (version_directory, model_directory):
        if (directory / STRATEGY_FILENAME).is_file():
            return directory / STRATEGY_FILENAME
    return None
