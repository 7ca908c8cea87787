"""In which order models are loaded: what an ensemble's steps call comes before the ensemble. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set


def load_order(depends_on: Mapping[str, Set[str]]) -> list[str]:
    """The names of `depends_on`, each after those it depends on; names on a circle come last, as they are.

    Names that are no key (models that do not exist) are left out.
    """
    waiting = {name: set(needed) & depends_on.keys() - {name} for name, needed in depends_on.items()}
    order: list[str] = []
    while True:
        free = sorted(name for name, needed in waiting.items() if not needed)
        if not free:
            return order + sorted(waiting)
        order += free
        for name in free:
            del waiting[name]
        for needed in waiting.values():
            needed.difference_update(free)
