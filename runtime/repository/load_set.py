"""Models that are loaded together, beside those that serve: nothing of them is seen until all are there.

Owns the order of loading within the set, what an ensemble of the set finds (a model of the set, else one that serves),
and what is to change in versions that serve on. Puts nothing into the registry.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from cantata.dag.checks import check_cycles
from cantata.dag.composition import ComposingModel, MissingModel
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.problems import Problem
from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.repository.completion import PreparedModel
from cantata.runtime.repository.hosted_instances import InstanceChange
from cantata.runtime.repository.load_order import load_order
from cantata.runtime.repository.loader import ModelLoader
from cantata.runtime.repository.meanings import by_identifier
from cantata.runtime.repository.model_version import ModelState, ModelVersion
from cantata.runtime.repository.namespaces import ambiguity, identifiers_named, name_in
from cantata.runtime.repository.registry import FailedVersion, ModelEntry, Registry

_log = logging.getLogger("cantata.repository")

# Fields that are read and validated, and that nothing acts on (docs/configuration.md lists what does what).
_WITHOUT_EFFECT = ("model_repository_agents",)


# Versions that serve already, by number.
Serving = Mapping[int, ModelVersion]
_NONE: Final[Serving] = {}


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of a version that serves on."""

    version: ModelVersion
    config: ModelConfig
    instances: InstanceChange | None


class LoadSet:
    """One set. After `load`, `entries` holds what came of each model, by name: new versions, and some that serve on."""

    def __init__(self, loader: ModelLoader, registry: Registry, thread_count: int) -> None:
        self._loader = loader
        self._registry = registry
        self._thread_count = thread_count
        self.entries: dict[str, ModelEntry] = {}
        self._changes: dict[str, list[_Change]] = {}

    def load(
        self,
        models: Iterable[PreparedModel],
        unavailable: Iterable[str] = (),
        kept: Mapping[str, Serving] | None = None,
    ) -> None:
        """Load every version of `models`; to its ensembles, the models called `unavailable` are not there.

        Of those that are `kept`, versions serve on where they can; of an ensemble, while its steps' models do.
        """
        kept = kept or {}
        prepared = {model.directory.identifier: model for model in models}
        self.entries.update((name, ModelEntry()) for name in unavailable)
        plain = [model for model in prepared.values() if not model.is_ensemble]
        if len(plain) > 1:
            with ThreadPoolExecutor(self._thread_count, "cantata-load") as executor:
                serving = [kept.get(model.directory.identifier, _NONE) for model in plain]
                loaded = list(executor.map(self._load_model, plain, serving))
        else:
            loaded = [self._load_model(model, kept.get(model.directory.identifier, _NONE)) for model in plain]
        self.entries.update(
            (model.directory.identifier, entry) for model, entry in zip(plain, loaded, strict=True)
        )
        ensembles = {name: model for name, model in prepared.items() if model.is_ensemble}
        circles = _circular(ensembles)
        for name in load_order({name: model.step_models for name, model in ensembles.items()}):
            ensemble = ensembles[name]
            if name in circles:
                ensemble = dataclasses.replace(ensemble, problems=tuple(circles[name]))
            self.entries[name] = self._load_model(ensemble, kept.get(name, _NONE))

    def withdraw(self, name: str) -> list[ModelVersion]:
        """Take a model out of the set again, so that its ensembles find what serves; returns its new versions."""
        new = self._new_versions(name)
        del self.entries[name]
        for change in self._changes.pop(name, ()):
            if change.instances is not None and change.version.instances is not None:
                change.version.instances.discard(change.instances)
        return new

    def new_versions(self) -> list[ModelVersion]:
        """What was loaded."""
        return [version for name in self.entries for version in self._new_versions(name)]

    def change_kept(self) -> list[Callable[[], None]]:
        """Carry out what changes in versions that serve on. What is returned ends, in its own time, what they lose."""
        endings: list[Callable[[], None]] = []
        for changes in self._changes.values():
            for change in changes:
                change.version.reconfigure(change.config)
                if change.instances is not None and change.version.instances is not None:
                    endings.append(change.version.instances.commit(change.instances))
        return endings

    def _new_versions(self, name: str) -> list[ModelVersion]:
        kept = {change.version for change in self._changes.get(name, ())}
        return [version for version in self.entries[name].versions.values() if version not in kept]

    def _load_model(self, model: PreparedModel, kept: Serving) -> ModelEntry:
        name = model.directory.name
        failure = model.failure()
        if failure is not None:
            _log.error("model '%s' failed to load: %s", name, failure)
            failures = tuple(
                FailedVersion(name, version, failure.status_text()) for version in model.versions or (None,)
            )
            return ModelEntry({}, failures, is_invalid=model.error is None)
        for field in _WITHOUT_EFFECT:
            if getattr(model.config, field):
                _log.warning("model '%s': '%s' has no effect in this version of cantata", name, field)
        loaded: dict[int, ModelVersion] = {}
        failed: list[FailedVersion] = []
        for version in model.versions:
            try:
                loaded[version] = self._kept(model, kept.get(version)) or self._load_version(model, version)
            except InferenceError as error:
                _log.error("model '%s' version %d failed to load: %s", name, version, error)
                failed.append(FailedVersion(name, version, error.status_text()))
            except Exception as error:
                _log.exception("model '%s' version %d failed to load", name, version)
                text = internal_error(f"{type(error).__name__}: {error}").status_text()
                failed.append(FailedVersion(name, version, text))
        for ready in loaded.values():
            if ready.is_ready:
                continue
            ready.state = ModelState.READY
            _log.info("model '%s' version %d is ready after %.3f s", name, ready.version, ready.load_seconds)
        return ModelEntry(loaded, tuple(failed))

    def _kept(self, model: PreparedModel, serving: ModelVersion | None) -> ModelVersion | None:
        """`serving`, if it can serve on as the version of `model`; raises InferenceError where its instances cannot."""
        if serving is None or (model.is_ensemble and not self._has_same_steps(model, serving)):
            return None
        change: InstanceChange | None = None
        if serving.instances is not None and serving.config.instance_group != model.config.instance_group:
            if not self._loader.can_change_instances(serving, model):
                return None
            change = serving.instances.prepare(model.config)
        config = model.config
        if model.is_ensemble:
            # Whether it is decoupled was found out when it was loaded.
            policy = serving.config.model_transaction_policy
            config = config.model_copy(update={"model_transaction_policy": policy})
        self._changes.setdefault(model.directory.identifier, []).append(_Change(serving, config, change))
        return serving

    def _has_same_steps(self, model: PreparedModel, serving: ModelVersion) -> bool:
        ensemble = model.config.ensemble_scheduling
        steps = () if ensemble is None else ensemble.step
        try:
            found = tuple(self._find(model, step.model_name, step.model_version) for step in steps)
        except LookupError:
            return False
        return found == serving.depends_on

    def _load_version(self, model: PreparedModel, version: int) -> ModelVersion:
        if model.is_ensemble:
            return self._loader.load_ensemble(
                model, version, partial(self._describe, model), partial(self._find, model)
            )
        return self._loader.load(model, version)

    def _entry(self, name: str) -> ModelEntry | None:
        entry = self.entries.get(name)
        if entry is not None:
            return entry
        return self._registry.entry(name) if self._registry.is_known(name) else None

    def _find(self, ensemble: PreparedModel, name: str, version: int) -> ModelVersion:
        """A version that a step of `ensemble` calls."""
        entry = self._entry(ensemble.meanings.get(name, name)) or ModelEntry()
        ready = entry.ready_versions
        return entry.versions[ready[-1] if version == -1 else version]

    def _describe(self, ensemble: PreparedModel, name: str, version: int) -> ComposingModel | MissingModel:
        """What the checks of `ensemble` need to know of a model that a step names."""
        entry = self._entry(ensemble.meanings.get(name, name))
        if entry is None:
            known = {*self.entries, *self._registry.identifiers(), *self._registry.identifiers_on_disk()}
            if name in ensemble.ambiguous:
                count = len(identifiers_named(name, known))
                return MissingModel(is_known=True, reason=ambiguity(name, count), is_valid=False)
            return MissingModel(is_known=False, known_models=tuple(sorted(map(name_in, known))))
        ready = entry.ready_versions
        if ready:
            chosen = version if version in ready else ready[-1]
            return ComposingModel(entry.versions[chosen].config, tuple(ready))
        reason = "; ".join(failure.reason for failure in entry.failures)
        return MissingModel(is_known=True, reason=reason, is_valid=not entry.is_invalid)


def _circular(ensembles: Mapping[str, PreparedModel]) -> dict[str, list[Problem]]:
    """The problems of ensembles that need themselves, by name."""
    sound = {name: ensemble for name, ensemble in ensembles.items() if ensemble.failure() is None}
    circles: dict[str, list[Problem]] = {}
    for problem in check_cycles(
        {name: by_identifier(ensemble) for name, ensemble in sound.items()},
        {name: ensemble.positions for name, ensemble in sound.items()},
    ):
        circles.setdefault(problem.model, []).append(problem)
    return circles
