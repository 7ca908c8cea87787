"""Which model versions are known, and finding one for a request.

Owns the map from names and versions to model versions, the lookup errors (reference, section 3) and the repository
index. Loads nothing and closes nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cantata.runtime.errors import InferenceError, invalid_argument, not_found, unavailable
from cantata.runtime.repository.model_version import ModelState, ModelVersion
from cantata.runtime.repository.namespaces import ambiguity, identifiers_named, name_in


@dataclass(frozen=True, slots=True)
class ModelIndexEntry:
    """One line of the repository index; `version` and `state` are empty for a model that never loaded."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class FailedVersion:
    """A model, or one version of it, that could not be loaded. `version` is None where none was tried."""

    name: str
    version: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """All that is known under one name. `is_invalid`: it failed by its own configuration; `is_unloaded`: on request."""

    versions: Mapping[int, ModelVersion] = field(default_factory=dict)
    failures: tuple[FailedVersion, ...] = ()
    is_invalid: bool = False
    is_unloaded: bool = False

    @property
    def ready_versions(self) -> list[int]:
        """The READY versions, ascending."""
        return sorted(number for number, version in self.versions.items() if version.is_ready)


_NOTHING: Final = ModelEntry()
_UNLOADED: Final = ModelEntry(is_unloaded=True)
DUPLICATED: Final = "model appears in two or more repositories"


class Registry:
    """The known models. Lookups take no lock: they read dictionaries that are replaced, never changed.

    `_lock` guards the replacing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, ModelEntry] = {}
        # The highest READY version of each model, and of each name that one model has: what a request without a version
        # gets.
        self._latest: dict[str, ModelVersion] = {}
        # What is on disk, loaded or not.
        self._identifiers_on_disk: frozenset[str] = frozenset()
        # What more than one repository holds, so that nobody can know which is meant.
        self._duplicated: frozenset[str] = frozenset()

    def find(self, name: str, version: int) -> ModelVersion:
        """The READY version asked for, or with -1 the highest; raises InferenceError as section 3 says."""
        if version == -1:
            latest = self._latest.get(name)
            if latest is not None:
                return latest
        else:
            found = self.entry(name).versions.get(version)
            if found is not None and found.is_ready:
                return found
        raise self._lookup_error(name, version)

    def entry(self, name: str) -> ModelEntry:
        """All that is known of a model, by its identifier or as the only one of a name; empty for one that is not."""
        entry = self._models.get(name)
        if entry is not None:
            return entry
        named = self._named(name)
        if len(named) == 1:
            return self._models[named[0]]
        return _NOTHING if named or not identifiers_named(name, self._models) else _UNLOADED

    def is_known(self, name: str) -> bool:
        """Whether the model was ever loaded, or tried to be."""
        return name in self._models

    def identifiers(self) -> list[str]:
        """The models that were ever loaded, or tried to be."""
        return sorted(self._models)

    def is_on_disk(self, name: str) -> bool:
        """Whether the repositories hold a model of that name, loaded or not."""
        return bool(identifiers_named(name, self._identifiers_on_disk))

    def identifiers_on_disk(self) -> frozenset[str]:
        """The models that the repositories hold."""
        return self._identifiers_on_disk

    def all_versions(self) -> list[ModelVersion]:
        """Every version, READY or not, by name and version."""
        models = self._models
        return [
            models[name].versions[number]
            for name in sorted(models)
            for number in sorted(models[name].versions)
        ]

    def is_every_model_ready(self) -> bool:
        """Whether every model that was ever wanted serves; one that was unloaded on request is not wanted."""
        return all(
            entry.is_unloaded
            or (entry.versions and all(version.can_serve for version in entry.versions.values()))
            for entry in self._models.values()
        )

    def failures(self) -> list[FailedVersion]:
        """What could not be loaded, by name."""
        models = self._models
        return [failure for name in sorted(models) for failure in models[name].failures]

    def replace(self, entries: Mapping[str, ModelEntry]) -> None:
        """Put new entries in the place of the old ones, all at the same moment for whoever looks."""
        with self._lock:
            models = {**self._models, **entries}
            self._models = models
            self._latest = _latest_of(models)

    def set_on_disk(self, identifiers: Iterable[str], duplicated: Iterable[str]) -> None:
        """Tell what the repositories hold now, once or more often."""
        self._duplicated = frozenset(duplicated)
        self._identifiers_on_disk = frozenset(identifiers) | self._duplicated

    def refresh(self) -> None:
        """Look at the states of all versions anew, after some have changed."""
        with self._lock:
            self._latest = _latest_of(self._models)

    def index(self, ready_only: bool) -> list[ModelIndexEntry]:
        """The repository index (reference, sections 3 and 6.12)."""
        models = {name: entry for name, entry in self._models.items() if self._is_shown(name, entry)}
        entries = [
            ModelIndexEntry(found.name, str(found.version), found.state.value, found.reason)
            for entry in models.values()
            for found in entry.versions.values()
            if found.is_ready or not ready_only
        ]
        if not ready_only:
            entries += [
                ModelIndexEntry(
                    failure.name,
                    "" if failure.version is None else str(failure.version),
                    ModelState.UNAVAILABLE.value,
                    failure.reason,
                )
                for entry in models.values()
                for failure in entry.failures
                if failure.version not in entry.versions
            ]
            unavailable = ModelState.UNAVAILABLE.value
            entries += [ModelIndexEntry(name, "", unavailable, DUPLICATED) for name in self._duplicated]
            unloaded = self._identifiers_on_disk - models.keys() - self._duplicated
            entries += [ModelIndexEntry(name_in(identifier), "", "", "") for identifier in unloaded]
        return sorted(entries, key=_index_order)

    def _is_shown(self, identifier: str, entry: ModelEntry) -> bool:
        """Whether the index tells of a model: it is on disk, or something else must be known of it."""
        if entry.ready_versions:
            return True
        if identifier in self._duplicated:
            return False
        return identifier in self._identifiers_on_disk or bool(entry.failures)

    def _named(self, name: str) -> list[str]:
        """The models of that name that are in namespaces and not unloaded."""
        models = self._models
        return [
            identifier
            for identifier in identifiers_named(name, models)
            if identifier != name and not models[identifier].is_unloaded
        ]

    def _lookup_error(self, name: str, version: int) -> InferenceError:
        unknown = f"Request for unknown model: '{name}'"
        named = self._named(name)
        if len(named) > 1:
            return invalid_argument(ambiguity(name, len(named)))
        entry = self.entry(name)
        if entry is _NOTHING:
            return invalid_argument(f"{unknown} is not found")
        if entry.is_unloaded:
            return not_found(f"Identifier of model '{name}' is not found in global map")
        if version == -1:
            return not_found(f"{unknown} has no available versions")
        if version in entry.versions or any(failure.version == version for failure in entry.failures):
            return unavailable(f"{unknown} version {version} is not at ready state")
        return not_found(f"{unknown} version {version} is not found")


def _latest_of(models: Mapping[str, ModelEntry]) -> dict[str, ModelVersion]:
    latest: dict[str, ModelVersion] = {}
    several: Counter[str] = Counter()
    for identifier, entry in models.items():
        name = name_in(identifier)
        if name != identifier and not entry.is_unloaded:
            several[name] += 1
        ready = entry.ready_versions
        if ready:
            latest[identifier] = latest[name] = entry.versions[ready[-1]]
    for name, count in several.items():
        if count > 1:
            latest.pop(name, None)
    return latest


def _index_order(entry: ModelIndexEntry) -> tuple[str, int]:
    return entry.name, int(entry.version or 0)
