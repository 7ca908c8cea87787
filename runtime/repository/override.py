"""What takes the place of a model's own files for one load: a configuration, and files (reference, section 6.12).

Owns the rules of a load's parameters, and the temporary directories that files given with a load are written to.
Knows nothing of loading, nor of the protocols that carry the parameters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cantata.grammars.reading import read_model_config_json
from cantata.runtime.errors import internal_error, invalid_argument
from cantata.runtime.repository.source import OVERRIDE_PREFIX, ModelDirectory, Print, read_model_directory

CONFIG_PARAMETER: Final = "config"
FILE_PARAMETER_PREFIX: Final = "file:"
# What file systems allow for the name of a file or directory.
_LONGEST_NAME: Final = 255


@dataclass(frozen=True, slots=True)
class LoadOverride:
    """`config` is a configuration as JSON. `files` are by their path in the model's directory; where there are any,
    the model sees them and nothing of what its repository holds."""

    config: str
    files: Mapping[str, bytes]


def read_load_parameters(name: str, parameters: Mapping[str, str | bytes]) -> LoadOverride | None:
    """What the parameters of a load of model `name` ask for, None without any.

    Raises InferenceError where they break a rule.
    """
    files: dict[str, bytes] = {}
    config: str | None = None
    for parameter, value in parameters.items():
        if parameter == CONFIG_PARAMETER and isinstance(value, str):
            config = value
        elif parameter.startswith(FILE_PARAMETER_PREFIX) and isinstance(value, bytes):
            files[_checked_path(parameter)] = value
        else:
            raise invalid_argument(
                f"Unrecognized load parameter '{parameter}' with type '{_type_name(value)}'"
            )
    if config is None:
        if files:
            raise invalid_argument("Load parameter 'config' must be specified for model file override")
        return None
    problems = read_model_config_json(config).problems
    if problems:
        text = f"failed to load '{name}', failed to poll from model repository: invalid config override: "
        raise internal_error(text + "; ".join(map(str, problems)))
    return LoadOverride(config, files)


def _checked_path(parameter: str) -> str:
    path = posixpath.normpath(parameter.removeprefix(FILE_PARAMETER_PREFIX))
    if path.startswith(("/", "../")) or path in (".", ".."):
        raise invalid_argument(
            f"Invalid file parameter '{parameter}' with normalized path '{path}' must stay within model directory."
        )
    longest = max(path.split("/"), key=lambda part: len(part.encode()))
    if len(longest.encode()) > _LONGEST_NAME:
        raise invalid_argument(f"Invalid file path: '{longest[:32]}...' is longer than {_LONGEST_NAME} bytes")
    return path


def _type_name(value: str | bytes) -> str:
    return "string" if isinstance(value, str) else "bytes"


class OverrideDirectories:
    """The temporary directories of one server. Not for several threads at once; `close` removes them all."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()

    def overridden(
        self, name: str, directory: ModelDirectory | None, override: LoadOverride
    ) -> ModelDirectory:
        """The model's directory as `override` makes it; `directory` is what the repository holds, if anything.

        Raises InferenceError where there is nothing to put a configuration in the place of, or no room for files.
        """
        if override.files:
            namespace = "" if directory is None else directory.namespace
            directory = dataclasses.replace(self._written(name, override.files), namespace=namespace)
        elif directory is None:
            raise internal_error(f"failed to load '{name}', failed to poll from model repository")
        return dataclasses.replace(
            directory,
            config_json=override.config,
            fingerprint=directory.fingerprint | {_content_print("", override.config.encode())},
        )

    def remove_unused(self, used: Collection[Path]) -> None:
        """Remove all directories but those in `used`."""
        for path in self._paths - set(used):
            shutil.rmtree(path, ignore_errors=True)
            self._paths.discard(path)

    def close(self) -> None:
        self.remove_unused(())

    def _written(self, name: str, files: Mapping[str, bytes]) -> ModelDirectory:
        path = Path(tempfile.mkdtemp(prefix="cantata_model_"))
        self._paths.add(path)
        try:
            for file, content in files.items():
                target = path / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        except OSError as error:
            raise internal_error(f"failed to load '{name}', its files cannot be written: {error}") from error
        # The same files given again are no change, whenever they were written.
        fingerprint = frozenset(_content_print(file, content) for file, content in files.items())
        return dataclasses.replace(read_model_directory(path, name=name), fingerprint=fingerprint)


def _content_print(name: str, content: bytes) -> Print:
    return (
        f"{OVERRIDE_PREFIX}{name}",
        int.from_bytes(hashlib.sha256(content).digest()[:8], "little"),
        len(content),
    )
