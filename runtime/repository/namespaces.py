"""Which model a name means: one among several of that name, each in a repository of its own (--model-namespacing).

Pure. A model is known by its identifier: its name or, where every repository is a namespace, that and the name. A name
has no slash, so no identifier is both.
"""

from __future__ import annotations

from collections.abc import Iterable


def identifier_of(name: str, namespace: str) -> str:
    """What a model is known by; `namespace` is empty where there are none."""
    return f"{namespace}/{name}" if namespace else name


def name_in(identifier: str) -> str:
    """The name of the model that an identifier is of."""
    return identifier.rpartition("/")[2]


def identifiers_named(name: str, identifiers: Iterable[str]) -> list[str]:
    """Those of models of that name, in order."""
    return sorted(identifier for identifier in identifiers if name_in(identifier) == name)


def resolved(name: str, namespace: str, identifiers: Iterable[str]) -> str | None:
    """The model that `name` means in a namespace: its own of that name, else the only one; None where there are more.

    Without any, the name itself.
    """
    candidates = identifiers_named(name, identifiers)
    own = identifier_of(name, namespace)
    if own in candidates:
        return own
    if len(candidates) > 1:
        return None
    return candidates[0] if candidates else name


def ambiguity(name: str, count: int) -> str:
    """What is said of a name that `count` models have."""
    return (
        f"There are {count} identifiers of model '{name}' in global map, model namespace must be provided to resolve "
        "ambiguity."
    )
