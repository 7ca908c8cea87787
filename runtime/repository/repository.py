"""The models of the repositories: loading them all at start, unloading them all at the end.

Owns the order of loading and unloading, and what becomes of a model that fails. How one is loaded is the loader's;
where requests find it is the registry's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cantata.dag.checks import check_cycles
from cantata.dag.composition import ComposingModel, MissingModel
from cantata.grammars.problems import Problem
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.repository.completion import Completing, PreparedModel, prepare_model
from cantata.runtime.repository.load_order import load_order
from cantata.runtime.repository.loader import ModelLoader
from cantata.runtime.repository.model_version import ModelState, ModelVersion
from cantata.runtime.repository.registry import UNLOADED, FailedVersion, Registry
from cantata.runtime.repository.source import ModelDirectory, scan_repositories

_log = logging.getLogger("cantata.repository")

_DUPLICATED = "model appears in two or more repositories"


class ModelRepository:
    """Loads models into a registry, and unloads them. Called by one thread at a time."""

    def __init__(
        self,
        paths: Sequence[Path],
        loader: ModelLoader,
        registry: Registry,
        *,
        config_name: str,
        auto_complete: bool,
        thread_count: int,
    ) -> None:
        self._paths = paths
        self._loader = loader
        self._registry = registry
        self._config_name = config_name
        self._completing = Completing.ALWAYS if auto_complete else Completing.NEVER
        # Names whose configuration is at fault: to an ensemble they are invalid, not merely not loaded.
        self._invalid: set[str] = set()
        self._found_names: list[str] = []
        self._thread_count = thread_count

    def load_all(self) -> None:
        """Load every model of the repositories; what fails is left in the registry with its reason.

        Raises InferenceError when a repository cannot be read.
        """
        contents = scan_repositories(self._paths, self._config_name)
        self._found_names = sorted(contents.models)
        for name in sorted(contents.duplicated):
            self._failed(name, None, internal_error(_DUPLICATED), _DUPLICATED)
        with ThreadPoolExecutor(self._thread_count, "cantata-load") as executor:
            prepared = list(executor.map(self._prepare, contents.models.values()))
            plain = [model for model in prepared if not model.is_ensemble]
            list(executor.map(self._load_model, plain))
        self._load_ensembles([model for model in prepared if model.is_ensemble])

    def unload_all(self, deadline_ns: int) -> bool:
        """Stop every model, wait for accepted requests until `deadline_ns`, and close what was loaded.

        Returns False when requests were left: they are answered with an error.
        """
        versions = self._registry.all_versions()
        all_ended = _wait_until_idle(versions, deadline_ns)
        for version in versions:
            self._registry.set_state(version, ModelState.UNLOADING)
            version.scheduler.stop()
        # An ensemble goes before the models that its steps call.
        for version in sorted(versions, key=_depth, reverse=True):
            version.close()
            self._registry.set_state(version, ModelState.UNAVAILABLE, UNLOADED)
        self._loader.close()
        return all_ended

    def _prepare(self, directory: ModelDirectory) -> PreparedModel:
        return prepare_model(directory, self._loader.backend, self._completing)

    def _load_model(self, prepared: PreparedModel) -> None:
        self._load_versions(prepared, ())

    def _load_ensembles(self, ensembles: list[PreparedModel]) -> None:
        by_name = {ensemble.directory.name: ensemble for ensemble in ensembles}
        needed = {name: _step_models(ensemble) for name, ensemble in by_name.items()}
        sound = {name: ensemble for name, ensemble in by_name.items() if ensemble.failure() is None}
        circular: dict[str, list[Problem]] = {}
        for problem in check_cycles(
            {name: ensemble.config for name, ensemble in sound.items()},
            {name: ensemble.positions for name, ensemble in sound.items()},
        ):
            circular.setdefault(problem.model, []).append(problem)
        for name in load_order(needed):
            self._load_versions(by_name[name], tuple(circular.get(name, ())))

    def _load_versions(self, prepared: PreparedModel, problems: tuple[Problem, ...]) -> None:
        name = prepared.directory.name
        if problems:
            prepared = PreparedModel(
                prepared.directory, prepared.config, prepared.positions, prepared.versions, problems
            )
        failure = prepared.failure()
        if failure is not None:
            if prepared.error is None:
                self._invalid.add(name)
            for failed_version in prepared.versions or (None,):
                self._failed(name, failed_version, failure)
            return
        loaded: list[ModelVersion] = []
        failures: list[FailedVersion] = []
        for version in prepared.versions:
            try:
                loaded.append(self._load_version(prepared, version))
            except InferenceError as error:
                failures.append(FailedVersion(name, version, error.status_text()))
                _log.error("model '%s' version %d failed to load: %s", name, version, error)
            except Exception as error:
                _log.exception("model '%s' version %d failed to load", name, version)
                text = internal_error(f"{type(error).__name__}: {error}").status_text()
                failures.append(FailedVersion(name, version, text))
        self._registry.set_model(name, loaded, failures)
        for ready in loaded:
            self._registry.set_state(ready, ModelState.READY)
            _log.info("model '%s' version %d is ready after %.3f s", name, ready.version, ready.load_seconds)

    def _load_version(self, prepared: PreparedModel, version: int) -> ModelVersion:
        if prepared.is_ensemble:
            return self._loader.load_ensemble(prepared, version, self._describe, self._registry.find)
        return self._loader.load(prepared, version)

    def _failed(
        self, name: str, version: int | None, error: InferenceError, reason: str | None = None
    ) -> None:
        known = [failure for failure in self._registry.failures() if failure.name == name]
        failed = FailedVersion(name, version, error.status_text() if reason is None else reason)
        self._registry.set_model(name, (), [*known, failed])
        _log.error("model '%s' failed to load: %s", name, error)

    def _describe(self, name: str, version: int) -> ComposingModel | MissingModel:
        """What an ensemble's checks need to know of a model that a step names."""
        ready = self._registry.ready_versions(name)
        if ready:
            found = self._registry.find(name, version if version in ready else -1)
            return ComposingModel(found.config, tuple(ready))
        if not self._registry.is_known(name):
            return MissingModel(is_known=False, known_models=tuple(self._found_names))
        reasons = [failure.reason for failure in self._registry.failures() if failure.name == name]
        return MissingModel(is_known=True, reason="; ".join(reasons), is_valid=name not in self._invalid)


def _step_models(prepared: PreparedModel) -> set[str]:
    ensemble = prepared.config.ensemble_scheduling
    return set() if ensemble is None else {step.model_name for step in ensemble.step}


def _depth(version: ModelVersion) -> int:
    """How many levels of ensembles stand on each other below this version."""
    return 1 + max((_depth(needed) for needed in version.depends_on), default=0)


def _wait_until_idle(versions: Sequence[ModelVersion], deadline_ns: int) -> bool:
    """Wait until no version has a request in flight, all at once: one model's requests call on others."""
    while any(version.scheduler.in_flight for version in versions):
        for version in versions:
            left_s = (deadline_ns - monotonic_ns()) / 1e9
            if left_s <= 0 or not version.scheduler.wait_until_idle(left_s):
                return False
    return True
