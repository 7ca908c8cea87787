"""The models of the repositories: loading, reloading and unloading them while the server serves.

Owns what is to be loaded when something changes, and the moment at which it takes the place of what served before.
How a model is loaded is the loader's, where requests find it is the registry's, how the old ones end is retirement's.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cantata.runtime.errors import InferenceError, internal_error, invalid_argument, unavailable
from cantata.runtime.repository.completion import Completing, PreparedModel, prepare_model
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.repository.kept_versions import kept_versions
from cantata.runtime.repository.load_set import LoadSet
from cantata.runtime.repository.loader import ModelLoader
from cantata.runtime.repository.meanings import with_meanings
from cantata.runtime.repository.model_version import ModelState, ModelVersion
from cantata.runtime.repository.namespaces import ambiguity, identifiers_named
from cantata.runtime.repository.override import OverrideDirectories, read_load_parameters
from cantata.runtime.repository.registry import DUPLICATED, FailedVersion, ModelEntry, Registry
from cantata.runtime.repository.retirement import Retirement
from cantata.runtime.repository.source import (
    ModelDirectory,
    RepositoryContents,
    list_repositories,
    scan_repositories,
)

_log = logging.getLogger("cantata.repository")

_NOT_EXPLICIT: Final = "explicit model load / unload is not allowed if polling is enabled"


@dataclass(slots=True)
class _Known:
    """A model that is loaded or was tried: what it was made from, and who asked for it.

    `served` is what the versions were made from that serve: the same, unless the last try has failed.
    """

    prepared: PreparedModel
    is_explicit: bool
    served: PreparedModel | None


class ModelRepository:
    """Loads models into a registry, replaces them and unloads them.

    `_lock` is held through each operation: one at a time, however long it takes. Lookups never wait for it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        loader: ModelLoader,
        registry: Registry,
        *,
        mode: ModelControlMode,
        config_name: str,
        auto_complete: bool,
        thread_count: int,
        namespacing: bool = False,
    ) -> None:
        self._namespacing = namespacing
        self._paths = paths
        self._loader = loader
        self._registry = registry
        self._mode = mode
        self._config_name = config_name
        self._completing = Completing.ALWAYS if auto_complete else Completing.NEVER
        self._thread_count = thread_count
        self._lock = threading.Lock()
        self._retirement = Retirement()
        self._overrides = OverrideDirectories()
        self._known: dict[str, _Known] = {}

    def load_startup_models(self, names: Sequence[str]) -> None:
        """Load what is served from the start: everything or, under explicit control, `names` ('*' is all of them).

        What fails is left in the registry with its reason. Raises InferenceError when a repository cannot be read.
        """
        with self._lock:
            contents = self._scan()
            if self._mode is ModelControlMode.EXPLICIT and "*" not in names:
                wanted: set[str] = set()
                for name in sorted(set(names)):
                    identifiers = identifiers_named(name, contents.models)
                    wanted.update(identifiers)
                    if not identifiers:
                        self._note_failure(name, "failed to poll from model repository")
                directories = [contents.models[name] for name in sorted(wanted)]
                prepared = self._with_composing(self._prepare_all(directories), contents)
            else:
                prepared = self._prepare_all(list(contents.models.values()))
                wanted = set(contents.models)
                for name in sorted(contents.duplicated):
                    self._note_failure(name, DUPLICATED)
            self._change(prepared, wanted, ())

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> None:
        """Load or reload a model, and the models that it needs, from disk; one that is unchanged stays as it is.

        `parameters` may put something in the place of what is on disk, for this load alone. Raises InferenceError when
        loading is not under explicit control, or fails; then what served goes on serving.
        """
        self._require_explicit()
        _check_name(name)
        override = read_load_parameters(name, parameters)
        with self._lock:
            contents = self._scan()
            directories = [contents.models[found] for found in identifiers_named(name, contents.models)]
            if override is not None:
                if len(directories) > 1:
                    raise invalid_argument(ambiguity(name, len(directories)))
                on_disk = directories[0] if directories else None
                directories = [self._overrides.overridden(name, on_disk, override)]
            if not directories:
                raise internal_error(f"failed to load '{name}', failed to poll from model repository")
            prepared = self._with_composing(self._prepare_all(directories), contents)
            asked = {directory.identifier for directory in directories}
            self._change([model for model in prepared if self._is_due(model)], asked, ())
            self._overrides.remove_unused(self._directories_in_use())
            for model in prepared:
                failures = self._registry.entry(model.directory.identifier).failures
                if model.directory.identifier in asked and failures:
                    is_configured = model.failure() is None or model.error is not None
                    raise _load_error(name, failures) if is_configured else _poll_error(name, failures)

    def unload(self, name: str, unload_dependents: bool = False) -> None:
        """Stop serving a model and the ensembles that need it; requests in flight finish.

        With `unload_dependents` the models that an ensemble calls go too, unless they were loaded by their own name
        or something else needs them. A model that is not loaded is no error.
        """
        self._require_explicit()
        with self._lock:
            removed = set(identifiers_named(name, self._known))
            if unload_dependents:
                removed.update(*map(self._unneeded_without, tuple(removed)))
            self._change((), (), removed)

    def poll(self) -> None:
        """Load what is new, reload what has changed, unload what is gone; see `load` for what a failure does."""
        with self._lock:
            contents = self._scan()
            removed = self._known.keys() - contents.models.keys()
            changed = [
                found
                for found in contents.models.values()
                if self._is_changed(found) or self._means_others(found)
            ]
            if changed or removed:
                self._change(self._prepare_all(changed), {found.identifier for found in changed}, removed)

    def look_at_disk(self) -> None:
        """Have the index tell what the repositories hold now; what cannot be read is told as it was."""
        try:
            self._registry.set_on_disk(*list_repositories(self._paths, namespacing=self._namespacing))
        except InferenceError as error:
            _log.warning("%s", error)

    def unload_all(self, deadline_ns: int) -> bool:
        """Stop every model, wait for accepted requests until `deadline_ns`, and close what was loaded.

        Returns False when requests were left: they are answered with an error.
        """
        with self._lock:
            versions = [version for version in self._registry.all_versions() if version.is_ready]
            all_ended = self._retirement.close_all(versions, deadline_ns)
            self._registry.refresh()
            self._loader.close()
            self._overrides.close()
            return all_ended

    def _change(
        self, prepared: Sequence[PreparedModel], explicit: Collection[str], removed: Collection[str]
    ) -> None:
        """Load `prepared`, take `removed` away, rebuild the ensembles over either, and show it all at once."""
        before = {name: self._registry.entry(name) for name in self._known}
        load_set = LoadSet(self._loader, self._registry, self._thread_count)
        load_set.load(prepared, removed, self._kept(prepared, before))
        refused = self._withdraw_failed(load_set, [model.directory.identifier for model in prepared], before)
        while orphans := _orphans(load_set, prepared):
            # Their steps' models were taken out again: they are made once more, over what serves.
            for model in orphans:
                self._retirement.discard(load_set.withdraw(model.directory.identifier))
            load_set.load(orphans)
            refused |= self._withdraw_failed(
                load_set, [model.directory.identifier for model in orphans], before
            )
        dependents = self._dependents_of(
            name
            for name, entry in load_set.entries.items()
            if name not in before or entry.versions != before[name].versions
        )
        # Those whose last try failed are tried again: what they serve was made from something else.
        serving = {
            name: before[name].versions
            for name in dependents
            if self._known[name].served is self._known[name].prepared
        }
        load_set.load([self._known[name].prepared for name in dependents], kept=serving)
        keep = [name for name in dependents if not self._known[name].prepared.step_models & set(removed)]
        refused.update(self._withdraw_failed(load_set, keep, before))

        self._retirement.hold(load_set.new_versions())
        entries = {name: _entry_after(entry, before.get(name)) for name, entry in load_set.entries.items()}
        # Those that are leaving already were let go by an earlier change.
        leaving = [
            version
            for name in entries
            for number, version in before.get(name, ModelEntry()).versions.items()
            if version.is_ready and load_set.entries[name].versions.get(number) is not version
        ]
        # A version that is replaced is READY until the new one is found in its place: no request falls between.
        for version in leaving:
            if entries[version.identifier].versions.get(version.version) is version:
                version.state = ModelState.UNLOADING
        self._registry.replace(entries | refused)
        for version in leaving:
            version.state = ModelState.UNLOADING
        endings = load_set.change_kept()
        self._remember(prepared, explicit, removed, refused.keys())
        for name in set(dependents) - refused.keys():
            self._known[name].served = self._known[name].prepared
        self._retirement.retire(leaving)
        self._retirement.end_later(endings)

    def _kept(
        self, prepared: Iterable[PreparedModel], before: Mapping[str, ModelEntry]
    ) -> dict[str, dict[int, ModelVersion]]:
        """The versions of `prepared` that may serve on: what they are made from has not changed."""
        kept: dict[str, dict[int, ModelVersion]] = {}
        for model in prepared:
            name = model.directory.identifier
            known = self._known.get(name)
            if known is None or known.served is None or model.failure() is not None:
                continue
            versions = before[name].versions
            kept[name] = {
                number: versions[number]
                for number in kept_versions(known.served, model)
                if number in versions and versions[number].is_ready
            }
        return kept

    def _withdraw_failed(
        self, load_set: LoadSet, names: Iterable[str], before: Mapping[str, ModelEntry]
    ) -> dict[str, ModelEntry]:
        """Take models that failed out of the set where older versions serve: better an old answer than none."""
        kept: dict[str, ModelEntry] = {}
        for name in names:
            failures = load_set.entries[name].failures
            old = before.get(name)
            if failures and old is not None and old.ready_versions:
                _log.error("model '%s' goes on serving what it served before", name)
                self._retirement.discard(load_set.withdraw(name))
                kept[name] = ModelEntry(old.versions, failures)
        return kept

    def _remember(
        self,
        prepared: Iterable[PreparedModel],
        explicit: Collection[str],
        removed: Iterable[str],
        refused: Collection[str],
    ) -> None:
        for model in prepared:
            name = model.directory.identifier
            known = self._known.get(name)
            was_explicit = known is not None and known.is_explicit
            served: PreparedModel | None = model
            if name in refused:
                served = None if known is None else known.served
            self._known[name] = _Known(model, was_explicit or name in explicit, served)
        for name in removed:
            self._known.pop(name, None)

    def _scan(self) -> RepositoryContents:
        contents = scan_repositories(self._paths, self._config_name, namespacing=self._namespacing)
        self._registry.set_on_disk(contents.models.keys(), contents.duplicated)
        return contents

    def _prepare_all(self, directories: Collection[ModelDirectory]) -> list[PreparedModel]:
        if len(directories) < 2:
            return [self._prepare(directory) for directory in directories]
        with ThreadPoolExecutor(self._thread_count, "cantata-load") as executor:
            return list(executor.map(self._prepare, directories))

    def _prepare(self, directory: ModelDirectory) -> PreparedModel:
        prepared = prepare_model(directory, self._loader.backend, self._completing)
        return with_meanings(prepared, self._registry.identifiers_on_disk())

    def _with_composing(
        self, prepared: Sequence[PreparedModel], contents: RepositoryContents
    ) -> list[PreparedModel]:
        """`prepared`, and the models on disk that its ensembles need, and those that these need."""
        found = {model.directory.identifier: model for model in prepared}
        waiting = list(prepared)
        while waiting:
            for name in sorted(waiting.pop().step_models - found.keys()):
                if name in contents.models:
                    found[name] = self._prepare(contents.models[name])
                    waiting.append(found[name])
        return list(found.values())

    def _directories_in_use(self) -> set[Path]:
        serving = {
            version.directory
            for version in self._registry.all_versions()
            if version.state is not ModelState.UNAVAILABLE
        }
        return serving | {known.prepared.directory.path for known in self._known.values()}

    def _is_changed(self, directory: ModelDirectory) -> bool:
        known = self._known.get(directory.identifier)
        return known is None or known.prepared.directory.fingerprint != directory.fingerprint

    def _means_others(self, directory: ModelDirectory) -> bool:
        """Whether a name in a known ensemble's steps has come to mean another model."""
        known = self._known.get(directory.identifier)
        if known is None or not directory.namespace:
            return False
        now = with_meanings(known.prepared, self._registry.identifiers_on_disk())
        return (now.meanings, now.ambiguous) != (known.prepared.meanings, known.prepared.ambiguous)

    def _is_due(self, model: PreparedModel) -> bool:
        """Whether loading it would change anything, or may succeed where it failed before."""
        entry = self._registry.entry(model.directory.identifier)
        return self._is_changed(model.directory) or bool(entry.failures) or not entry.ready_versions

    def _dependents_of(self, names: Iterable[str]) -> list[str]:
        """The known ensembles that need one of `names`, directly or through others, and are not among them."""
        changed = set(names)
        dependents: set[str] = set()
        while True:
            touched = dependents | changed
            more = {
                name
                for name, known in self._known.items()
                if name not in touched and known.prepared.step_models & touched
            }
            if not more:
                return sorted(dependents)
            dependents |= more

    def _unneeded_without(self, name: str) -> set[str]:
        """The models that only `name` needs, or models that only it needs, and that nobody asked for."""
        unneeded = {name}
        waiting = [name]
        while waiting:
            for needed in self._known[waiting.pop()].prepared.step_models & self._known.keys():
                users = {user for user, known in self._known.items() if needed in known.prepared.step_models}
                if users <= unneeded and not self._known[needed].is_explicit and needed not in unneeded:
                    unneeded.add(needed)
                    waiting.append(needed)
        return unneeded

    def _note_failure(self, name: str, reason: str) -> None:
        _log.error("model '%s' failed to load: %s", name, reason)
        self._registry.replace({name: ModelEntry(failures=(FailedVersion(name, None, reason),))})

    def _require_explicit(self) -> None:
        if self._mode is not ModelControlMode.EXPLICIT:
            raise unavailable(_NOT_EXPLICIT)


def _orphans(load_set: LoadSet, prepared: Iterable[PreparedModel]) -> list[PreparedModel]:
    """The ensembles of the set whose steps call what was closed before it served."""
    return [
        model
        for model in prepared
        if (entry := load_set.entries.get(model.directory.identifier)) is not None
        and any(
            step.state is ModelState.UNAVAILABLE
            for version in entry.versions.values()
            for step in version.depends_on
        )
    ]


def _entry_after(entry: ModelEntry, old: ModelEntry | None) -> ModelEntry:
    """What the registry shows: a model without versions still shows those that it had, as they leave."""
    if entry.versions or old is None:
        return entry
    return dataclasses.replace(entry, versions=old.versions, is_unloaded=not entry.failures)


def _check_name(name: str) -> None:
    if not name:
        raise invalid_argument("Model name cannot be empty. Please enter a valid name to deploy.")
    if "/" in name or ".." in name:
        raise invalid_argument(
            f"invalid model name '{name}', model name must not contain path traversal characters"
        )


def _poll_error(name: str, failures: Sequence[FailedVersion]) -> InferenceError:
    """The configuration is wrong, so Triton does not find the model; unlike it, we say why."""
    return internal_error(
        f"failed to load '{name}', failed to poll from model repository: {failures[0].reason}"
    )


def _load_error(name: str, failures: Iterable[FailedVersion]) -> InferenceError:
    states = "".join(
        f"version {failure.version or 1} is at UNAVAILABLE state: {failure.reason};\n" for failure in failures
    )
    return invalid_argument(f"load failed for model '{name}': {states}")
