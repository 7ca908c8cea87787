"""Which versions of a model serve on when it is loaded again: those whose own files, and configuration, are the same.

Pure. The configuration may differ in its instance groups and its version policy: these change while a version serves
(reference, section 6.8).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cantata.grammars.model_config import ModelConfig
from cantata.runtime.repository.completion import PreparedModel
from cantata.runtime.repository.source import CONFIG_DIRECTORY, CONFIG_FILE, OVERRIDE_PREFIX, Print

# The part of a model that no single version has to itself.
_SHARED: Final = -1


def kept_versions(old: PreparedModel, new: PreparedModel) -> frozenset[int]:
    """The versions of `old` that serve on as versions of `new`; both are sound."""
    is_same_place = old.directory.path == new.directory.path
    if not is_same_place or _unchanging(old.config) != _unchanging(new.config):
        return frozenset()
    before, after = _by_version(old.directory.fingerprint), _by_version(new.directory.fingerprint)
    if before.get(_SHARED) != after.get(_SHARED):
        return frozenset()
    both = set(old.versions) & set(new.versions)
    return frozenset(version for version in both if before.get(version) == after.get(version))


def _unchanging(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"instance_group": (), "version_policy": None})


def _by_version(prints: Iterable[Print]) -> dict[int, set[Print]]:
    """The files of each version, and those that all share; configurations are compared by what they say."""
    found: dict[int, set[Print]] = {}
    for entry in prints:
        path = entry[0].removeprefix(OVERRIDE_PREFIX)
        top, _, below = path.partition("/")
        if path in ("", CONFIG_FILE) or top == CONFIG_DIRECTORY:
            continue
        version = int(top) if below and top.isascii() and top.isdigit() else _SHARED
        found.setdefault(version, set()).add(entry)
    return found
