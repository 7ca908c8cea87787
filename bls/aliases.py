"""Models' modules under their plain names, for those who import by a string: pickle, `importlib.import_module`.

Such code looks into `sys.modules`, which is everybody's. What it finds there is an alias that belongs to no model:
each attribute is looked up in the module of that name of the model that asks. Installed modules come first.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from cantata.bls.current_model import find_activity


class SiblingAlias(ModuleType):
    """Stands in `sys.modules` for the modules of that name that models have."""

    def __getattr__(self, attribute: str) -> Any:
        activity = find_activity()
        if activity is None:
            raise AttributeError(
                f"module '{self.__name__}' is a model's, and no model that has it is running"
            )
        return getattr(importlib.import_module(f"{activity.model.package}.{self.__name__}"), attribute)


class AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an alias where nothing installed has the name and the model that asks has."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        activity = find_activity()
        if activity is None or fullname.startswith(activity.model.package):
            return None
        try:
            found = importlib.util.find_spec(f"{activity.model.package}.{fullname}")
        except ModuleNotFoundError:
            return None
        # As a package without a place: its own submodules must come here as well.
        return None if found is None else ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return SiblingAlias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """An alias has nothing to execute."""


def is_installed(name: str) -> bool:
    """Whether `import name` finds something that is not a model's."""
    if name in sys.modules:
        return not isinstance(sys.modules[name], SiblingAlias)
    spec = importlib.util.find_spec(name)
    return spec is not None and not isinstance(spec.loader, AliasFinder)


def drop_aliases() -> None:
    """Clear `sys.modules` of aliases; whoever still needs one gets it anew."""
    # Copied in one step: other threads import meanwhile.
    for name, module in sys.modules.copy().items():
        if isinstance(module, SiblingAlias):
            sys.modules.pop(name, None)
