"""The backends there are: their names, platforms and files, and where each one's module is found.

The only place that knows of backends above it, and only by name: a module is imported when a model first needs
it, so that nobody waits for, or must install, a library that no model uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cantata.grammars.model_config import ModelConfig
from cantata.grammars.problems import suggest
from cantata.runtime.backends.backend import Backend, BackendSettings, ServerServices
from cantata.runtime.errors import invalid_argument, unavailable

CreateBackend = Callable[[BackendSettings, ServerServices], Backend]


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """One backend. `package` is what its module imports and `extra` installs; empty where it needs none.

    The models of one that `runs_user_code` may look at more of a request than its tensors, and call other models.
    """

    name: str
    module: str
    package: str = ""
    extra: str = ""
    runs_user_code: bool = False


class BackendFiles(NamedTuple):
    """What a version directory's files say of a model whose configuration does not name its backend."""

    backend: str
    platform: str
    filename: str


_ENTRIES: Final = {
    entry.name: entry
    for entry in (
        BackendEntry("onnxruntime", "cantata.runtime.backends.onnx_backend", "onnxruntime", "onnx"),
        BackendEntry("pytorch", "cantata.runtime.backends.torch_backend", "torch", "torch"),
        BackendEntry("python", "cantata.bls.python_backend", runs_user_code=True),
    )
}

_BACKEND_OF_PLATFORM: Final = {
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "libtorch": "pytorch",
    "torch_aoti": "pytorch",
}

# In the order they are looked for (reference, section 6.11). Some belong to backends that are not in the table:
# a model of theirs is reported by its own backend's name.
_BY_FILE: Final = (
    BackendFiles("tensorrt", "tensorrt_plan", "model.plan"),
    BackendFiles("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    BackendFiles("openvino", "", "model.xml"),
    BackendFiles("pytorch", "pytorch_libtorch", "model.pt"),
    BackendFiles("pytorch", "torch_aoti", "model.pt2"),
    BackendFiles("python", "", "model.py"),
)


def backend_names() -> tuple[str, ...]:
    """The names that a configuration's `backend` may have."""
    return tuple(_ENTRIES)


def sees_tensors_only(backend: str) -> bool:
    """Whether a backend's models are told nothing of a request but its tensors, and call no other models."""
    return not _entry(backend).runs_user_code


def open_backend(name: str, settings: BackendSettings, services: ServerServices) -> Backend:
    """Make the backend called `name`.

    Raises InferenceError: INVALID_ARG when there is none of that name, UNAVAILABLE when what it needs is not
    installed, with the command that installs it.
    """
    return _creator(_entry(name))(settings, services)


def backend_of_config(config: ModelConfig) -> str:
    """The backend that a configuration names, by `backend` or by `platform`; empty when by neither."""
    return config.backend or _BACKEND_OF_PLATFORM.get(config.platform, "")


def backend_of_files(version_directory: Path) -> BackendFiles | None:
    """The backend whose model file the directory holds, or None."""
    for candidate in _BY_FILE:
        if (version_directory / candidate.filename).exists():
            return candidate
    return None


def backend_of_model_name(model_name: str) -> str:
    """The backend of a model called `<anything>.<backend>`; raises InferenceError when the name says none."""
    _, dot, backend = model_name.rpartition(".")
    if not dot or not backend:
        raise invalid_argument(
            f"Invalid model name: Could not determine backend for model '{model_name}' with no backend in "
            "model configuration. Expected model name of the form 'model.<backend_name>'."
        )
    return backend


def default_filename(backend: str, platform: str, version_directory: Path | None) -> str:
    """The name of a model's file where its configuration gives none; empty for an unknown backend.

    Of the names that the backend and platform allow, the one that the directory holds, else the usual one.
    """
    candidates = [files for files in _BY_FILE if files.backend == backend]
    of_platform = [files for files in candidates if files.platform == platform] or candidates
    names = [files.filename for files in of_platform]
    present = [
        name for name in names if version_directory is not None and (version_directory / name).exists()
    ]
    return next(iter(present or names), "")


def default_platform(backend: str, filename: str) -> str:
    """The platform of a backend's models where the configuration gives none; empty where the backend has none."""
    candidates = [files for files in _BY_FILE if files.backend == backend]
    of_suffix = [files for files in candidates if Path(files.filename).suffix == Path(filename).suffix]
    return next((files.platform for files in of_suffix or candidates), "")


def _entry(name: str) -> BackendEntry:
    entry = _ENTRIES.get(name)
    if entry is None:
        known = ", ".join(_ENTRIES)
        hint = suggest(name, _ENTRIES)
        raise invalid_argument(
            f"unknown backend '{name}'"
            + (f" ({hint})" if hint else "")
            + f"; the known backends are: {known}"
        )
    return entry


def _creator(entry: BackendEntry) -> CreateBackend:
    try:
        module = importlib.import_module(entry.module)
    except ImportError as error:
        if not entry.package:
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == entry.package:
            text = f'which is not installed: pip install "cantata[{entry.extra}]"'
        else:
            text = f"which cannot be imported: {error}"
        raise unavailable(f"backend '{entry.name}' needs the package {entry.package}, {text}") from error
    create: CreateBackend = module.create_backend
    return create
