"""From a model directory to the configuration it is served with: read, completed, normalised and validated.

Every problem is found and reported at once, with its position. Knows nothing of loading or of other models: what an
ensemble's steps must be is checked when it is loaded.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cantata.dag.checks import check_ensemble
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.problems import Positions, Problem
from cantata.grammars.reading import read_model_config, read_model_config_json
from cantata.grammars.rules import normalize_model_config, validate_model_config
from cantata.runtime.backends.backend import Backend, ModelFiles
from cantata.runtime.backends.catalog import (
    backend_of_config,
    backend_of_files,
    backend_of_model_name,
    default_filename,
    default_platform,
)
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument
from cantata.runtime.execution.devices import complete_instance_groups
from cantata.runtime.repository.source import ModelDirectory
from cantata.runtime.repository.version_policy import chosen_versions

_log = logging.getLogger("cantata.repository")

ENSEMBLE_PLATFORM = "ensemble"
OpenBackend = Callable[[str], Backend]


class Completing(enum.Enum):
    """When the backend is asked to complete a configuration."""

    ALWAYS = enum.auto()
    # For checks offline: a configuration that declares its tensors says enough.
    WHEN_INCOMPLETE = enum.auto()
    NEVER = enum.auto()


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that may be loaded if it has no problems. `versions` are those that its policy chooses, ascending."""

    directory: ModelDirectory
    config: ModelConfig
    positions: Positions
    versions: tuple[int, ...]
    problems: tuple[Problem, ...]
    # What completing the configuration failed with, where that was not a problem of its text.
    error: InferenceError | None = None
    # The models that the names in an ensemble's steps mean, where that is not those of these names.
    meanings: Mapping[str, str] = field(default_factory=dict)
    # The names in its steps that could mean several models.
    ambiguous: frozenset[str] = frozenset()

    @property
    def is_ensemble(self) -> bool:
        return self.config.platform == ENSEMBLE_PLATFORM or self.config.ensemble_scheduling is not None

    @property
    def step_models(self) -> frozenset[str]:
        """The identifiers of the models that an ensemble's steps name."""
        return frozenset(self.meanings.get(name, name) for name in self.step_names)

    @property
    def step_names(self) -> frozenset[str]:
        """The names that an ensemble's steps give."""
        ensemble = self.config.ensemble_scheduling
        return frozenset(() if ensemble is None else (step.model_name for step in ensemble.step))

    def failure(self) -> InferenceError | None:
        """Why the model cannot be loaded, or None."""
        if self.error is not None:
            return self.error
        if self.problems:
            return problems_error(self.problems)
        return None

    def files(self, version: int) -> ModelFiles:
        """Where one version's files lie."""
        path = self.directory.path
        return ModelFiles(self.directory.name, version, path, path / str(version))


def problems_error(problems: tuple[Problem, ...]) -> InferenceError:
    """All of a configuration's problems as one error."""
    return invalid_argument("\n".join(map(str, problems)))


def prepare_model(
    directory: ModelDirectory, open_backend: OpenBackend, completing: Completing
) -> PreparedModel:
    """Read and complete a model's configuration. `open_backend` is asked for the backend that completes it."""
    if directory.config_json is not None:
        parsed = read_model_config_json(directory.config_json)
    else:
        parsed = read_model_config(directory.config_text or "", str(directory.config_path))
    positions = parsed.positions
    has_config = directory.config_json is not None or directory.config_text is not None
    if not has_config and completing is Completing.NEVER:
        return PreparedModel(
            directory,
            ModelConfig(name=directory.name),
            positions,
            (),
            (_missing_config(directory, positions),),
        )
    if parsed.config is None:
        return PreparedModel(
            directory, ModelConfig(name=directory.name), positions, (), tuple(parsed.problems)
        )
    config = parsed.config
    problems = list(_check_name(config, directory, positions))
    config = config.model_copy(update={"name": directory.name})
    versions = tuple(chosen_versions(config.version_policy, directory.versions))
    prepared = PreparedModel(directory, config, positions, versions, ())
    try:
        if not prepared.is_ensemble:
            config = _complete(prepared, open_backend, completing)
        config = normalize_model_config(config)
    except InferenceError as error:
        return PreparedModel(directory, config, positions, versions, tuple(problems), error)
    except Exception as error:
        _log.exception("the configuration of model '%s' could not be completed", directory.name)
        failure = internal_error(f"{type(error).__name__}: {error}")
        return PreparedModel(directory, config, positions, versions, tuple(problems), failure)
    problems += validate_model_config(config, positions)
    if prepared.is_ensemble:
        problems += check_ensemble(config, positions)
    if not versions:
        problems.append(_no_version(directory, config, positions))
    return PreparedModel(directory, config, positions, versions, tuple(problems))


def _complete(prepared: PreparedModel, open_backend: OpenBackend, completing: Completing) -> ModelConfig:
    """Fill in the backend, the model's file name, what the model itself says, and the instance groups."""
    config = _with_backend(prepared, completing)
    says_enough = bool(config.input) and bool(config.output)
    if not config.backend or (completing is Completing.WHEN_INCOMPLETE and says_enough):
        return config
    backend = open_backend(config.backend)
    if completing is not Completing.NEVER and prepared.versions:
        config = backend.complete_config(prepared.files(prepared.versions[0]), config)
    return config if completing is Completing.WHEN_INCOMPLETE else complete_instance_groups(config, backend)


def _with_backend(prepared: PreparedModel, completing: Completing) -> ModelConfig:
    config = prepared.config
    backend, platform, filename = backend_of_config(config), config.platform, config.default_model_filename
    directory = prepared.files(prepared.versions[0]).version_directory if prepared.versions else None
    if not backend and not platform and completing is not Completing.NEVER:
        found = backend_of_files(directory) if directory is not None else None
        if found is not None:
            backend, platform, filename = found.backend, found.platform, filename or found.filename
        elif directory is not None:
            backend = backend_of_model_name(config.name)
    if backend and not filename:
        filename = default_filename(backend, platform, directory)
    if not platform:
        platform = default_platform(backend, filename)
    return config.model_copy(
        update={"backend": backend, "platform": platform, "default_model_filename": filename}
    )


def _check_name(config: ModelConfig, directory: ModelDirectory, positions: Positions) -> list[Problem]:
    if config.name in ("", directory.name):
        return []
    return [
        positions.problem(
            ("name",),
            f"unexpected directory name '{directory.name}' for model '{config.name}', "
            "directory name must equal model name",
            "leave the name out, or rename one of the two",
        )
    ]


def _missing_config(directory: ModelDirectory, positions: Positions) -> Problem:
    return positions.problem(
        (), f"model '{directory.name}' has no config.pbtxt, and completing configurations is disabled"
    )


def _no_version(directory: ModelDirectory, config: ModelConfig, positions: Positions) -> Problem:
    found = ", ".join(map(str, directory.versions)) or "none"
    return positions.problem(
        ("version_policy",),
        f"at least one version must be available under the version policy of model '{config.name}'",
        f"version directories found: {found}",
    )
