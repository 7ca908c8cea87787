"""Which model versions are known, and finding one for a request.

Owns the map from names and versions to model versions, the lookup errors (reference, section 3) and the repository
index. Loads nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from cantata.runtime.errors import InferenceError, invalid_argument, not_found, unavailable
from cantata.runtime.repository.model_version import ModelState, ModelVersion

UNLOADED = "unloaded"


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


class Registry:
    """The known models. Lookups take no lock: they read dictionaries that are replaced, never changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[str, dict[int, ModelVersion]] = {}
        # The highest READY version of each model: what a request without a version gets.
        self._latest: dict[str, ModelVersion] = {}
        self._failures: dict[str, tuple[FailedVersion, ...]] = {}
        # Names that were found on disk but not loaded.
        self._unloaded_names: frozenset[str] = frozenset()

    def find(self, name: str, version: int) -> ModelVersion:
        """The READY version asked for, or with -1 the highest; raises InferenceError as section 3 says."""
        if version == -1:
            latest = self._latest.get(name)
            if latest is not None:
                return latest
        else:
            found = self._versions.get(name, {}).get(version)
            if found is not None and found.state is ModelState.READY:
                return found
        raise self._lookup_error(name, version)

    def ready_versions(self, name: str) -> list[int]:
        """The READY versions of a model, ascending."""
        versions = self._versions.get(name, {})
        return sorted(version for version, found in versions.items() if found.is_ready)

    def all_versions(self) -> list[ModelVersion]:
        """Every version that is loaded or being unloaded, by name and version."""
        return [
            versions[number] for _, versions in sorted(self._versions.items()) for number in sorted(versions)
        ]

    def is_known(self, name: str) -> bool:
        """Whether the model was ever loaded, or tried to be."""
        return name in self._versions or name in self._failures

    def failures(self) -> list[FailedVersion]:
        """What could not be loaded, by name."""
        return [failure for _, failures in sorted(self._failures.items()) for failure in failures]

    def set_model(
        self, name: str, versions: Iterable[ModelVersion], failures: Iterable[FailedVersion] = ()
    ) -> None:
        """Make `versions` the ones that serve under `name`, and remember what failed."""
        by_number = {version.version: version for version in versions}
        failed = tuple(failures)
        with self._lock:
            self._versions = (
                {**self._versions, name: by_number} if by_number or not failed else self._versions
            )
            self._failures = {**self._failures, name: failed}
            self._unloaded_names -= {name}
            self._refresh(name)

    def set_unloaded_names(self, names: Iterable[str]) -> None:
        """Names to show in the index that have never been loaded."""
        with self._lock:
            self._unloaded_names = frozenset(names) - self._versions.keys() - self._failures.keys()

    def set_state(self, version: ModelVersion, state: ModelState, reason: str = "") -> None:
        """Change the state of a version."""
        with self._lock:
            version.state = state
            version.reason = reason
            self._refresh(version.name)

    def index(self, ready_only: bool) -> list[ModelIndexEntry]:
        """The repository index (reference, sections 3 and 6.12)."""
        entries = [
            ModelIndexEntry(found.name, str(found.version), found.state.value, found.reason)
            for found in self.all_versions()
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
                for failure in self.failures()
            ]
            entries += [ModelIndexEntry(name, "", "", "") for name in self._unloaded_names]
        return sorted(entries, key=lambda entry: (entry.name, entry.version))

    def _refresh(self, name: str) -> None:
        """Find the highest READY version anew; the caller holds the lock."""
        ready = self.ready_versions(name)
        latest = dict(self._latest)
        latest.pop(name, None)
        if ready:
            latest[name] = self._versions[name][ready[-1]]
        self._latest = latest

    def _lookup_error(self, name: str, version: int) -> InferenceError:
        unknown = f"Request for unknown model: '{name}'"
        if not self.is_known(name):
            return invalid_argument(f"{unknown} is not found")
        versions = self._versions.get(name, {})
        failed = {failure.version for failure in self._failures.get(name, ())}
        if version == -1:
            return not_found(f"{unknown} has no available versions")
        if version in versions or version in failed:
            return unavailable(f"{unknown} version {version} is not at ready state")
        return not_found(f"{unknown} version {version} is not found")
