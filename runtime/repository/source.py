"""What the model repositories hold on disk: model directories, their configuration texts and version directories.

Reads directories and config.pbtxt files; understands neither configurations nor models.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cantata.runtime.errors import internal_error
from cantata.runtime.repository.namespaces import identifier_of

_log = logging.getLogger("cantata.repository")

CONFIG_FILE: Final = "config.pbtxt"
# Where configurations with names of their own are (--model-config-name).
CONFIG_DIRECTORY: Final = "configs"
# What the prints of files that were given with a load begin with.
OVERRIDE_PREFIX: Final = "override:"
# Directories beside the versions that are none (reference, section 6.10).
_OTHER_DIRECTORIES = frozenset({CONFIG_DIRECTORY, "initial_state", "warmup"})

# A file by its path in its model's directory, and what changes with its contents.
Print = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """One model on disk. `config_text` is None where there is no config.pbtxt; `versions` ascend.

    `fingerprint` changes with any file below the directory: its name, size or time of change. `config_json` takes
    the place of `config_text` where a load was given a configuration.
    """

    name: str
    path: Path
    config_path: Path
    config_text: str | None
    versions: tuple[int, ...]
    fingerprint: frozenset[Print]
    config_json: str | None = None
    # The repository that it is in, where every repository is a namespace; else empty.
    namespace: str = ""

    @property
    def identifier(self) -> str:
        """What it is known by."""
        return identifier_of(self.name, self.namespace)


@dataclass(frozen=True, slots=True)
class RepositoryContents:
    """All that was found, by identifier. `duplicated` names are in two repositories or more, and so serve from none."""

    models: dict[str, ModelDirectory]
    duplicated: frozenset[str]


def scan_repositories(
    paths: Sequence[Path], config_name: str = "", *, namespacing: bool = False
) -> RepositoryContents:
    """Find the models in `paths`. `config_name` prefers configs/<config_name>.pbtxt where a model has it.

    With `namespacing` every path is a namespace: models of one name in several of them are several models.
    Raises InferenceError when a repository is not a directory that can be read.
    """
    models: dict[str, ModelDirectory] = {}
    duplicated: set[str] = set()
    for path in paths:
        for directory in _subdirectories(path):
            namespace = str(path) if namespacing else ""
            identifier = identifier_of(directory.name, namespace)
            if identifier in models:
                duplicated.add(identifier)
            else:
                model = read_model_directory(directory, config_name)
                models[identifier] = dataclasses.replace(model, namespace=namespace)
    return RepositoryContents(
        {name: model for name, model in models.items() if name not in duplicated}, frozenset(duplicated)
    )


def list_repositories(
    paths: Sequence[Path], *, namespacing: bool = False
) -> tuple[frozenset[str], frozenset[str]]:
    """The identifiers of the models in `paths`, and of these those that are duplicated, without looking into any.

    Raises InferenceError as `scan_repositories`.
    """
    counts = Counter(
        identifier_of(directory.name, str(path) if namespacing else "")
        for path in paths
        for directory in _subdirectories(path)
    )
    duplicated = frozenset(identifier for identifier, count in counts.items() if count > 1)
    return frozenset(counts) - duplicated, duplicated


def _subdirectories(repository: Path) -> list[Path]:
    try:
        return sorted(
            entry for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise internal_error(f"cannot read model repository '{repository}': {error.strerror}") from error


def read_model_directory(directory: Path, config_name: str = "", name: str = "") -> ModelDirectory:
    """What one model's directory holds; `name` is the model's where the directory is called something else."""
    config_path = directory / CONFIG_FILE
    if config_name and (custom := directory / CONFIG_DIRECTORY / f"{config_name}.pbtxt").is_file():
        config_path = custom
    config_text: str | None = None
    if config_path.is_file():
        config_text = config_path.read_text(encoding="utf-8", errors="replace")
    return ModelDirectory(
        name or directory.name,
        directory,
        config_path,
        config_text,
        _versions(directory),
        _fingerprint(directory),
    )


def _versions(directory: Path) -> tuple[int, ...]:
    versions: list[int] = []
    for entry in directory.iterdir():
        name = entry.name
        if not entry.is_dir() or name in _OTHER_DIRECTORIES or name.startswith((".", "__")):
            continue
        if not name.isascii() or not name.isdigit():
            _log.warning("model '%s': directory '%s' is not a version and is ignored", directory.name, name)
        elif name != "0" and name.startswith("0"):
            _log.warning(
                "model '%s': version directory '%s' begins with a zero and is ignored", directory.name, name
            )
        else:
            versions.append(int(name))
    return tuple(sorted(versions))


def _fingerprint(directory: Path) -> frozenset[Print]:
    files: set[Print] = set()
    for parent, directories, names in os.walk(directory):
        # What Python leaves behind when it imports a model is no change of the model.
        directories[:] = [name for name in directories if name != "__pycache__"]
        for name in names:
            path = os.path.join(parent, name)
            try:
                status = os.stat(path)
            except OSError:
                continue
            files.add((os.path.relpath(path, directory), status.st_mtime_ns, status.st_size))
    return frozenset(files)
