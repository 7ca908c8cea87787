"""Imports a model's Python files, so that models never meet each other's modules.

Every loaded model version is a package of its own, with a name nobody else has, over its version directory and its
model directory. Inside it `import utils` finds the model's own utils.py, at any time and in any thread, because its
modules have an `__import__` of their own. Knows nothing of what the files define, except their TritonPythonModel, or
what stands for it.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from cantata.bls.aliases import AliasFinder, drop_aliases, is_installed
from cantata.bls.failures import describe_import_failure
from cantata.bls.pipeline_hooks import hosted_pipeline
from cantata.runtime.errors import internal_error, invalid_argument

_PREFIX: Final = "cantata_model_"
_API_NAME: Final = "triton_python_backend_utils"
_numbers = itertools.count(1)
# Models are loaded by several threads, and the import system's caches take only one that invalidates them.
_install_lock = threading.Lock()
_MOST_TRIES: Final = 100


class ModelCode:
    """The imported files of one model version. `package` is the name that all their modules begin with."""

    __slots__ = ("model_class", "package", "path")

    def __init__(self, package: str, path: Path) -> None:
        self.package = package
        self.path = path
        self.model_class: Any = None

    def load(self, model_name: str) -> None:
        """Import the model's file; raises InferenceError with the file, the line and the reason."""
        module = self._import(model_name)
        model_class = getattr(module, "TritonPythonModel", None)
        if not isinstance(model_class, type):
            self.model_class = hosted_pipeline(module)
            if self.model_class is not None:
                return
            raise invalid_argument(f"Python model {self.path} does not define the class `TritonPythonModel`.")
        if not callable(getattr(model_class, "execute", None)):
            raise invalid_argument(f"Python model {self.path} does not implement `execute` method.")
        self.model_class = model_class

    def unload(self) -> None:
        """Forget the modules, so that they go with their last user."""
        self.model_class = None
        _finder.packages.pop(self.package, None)
        for name in [name for name in list(sys.modules) if name.partition(".")[0] == self.package]:
            del sys.modules[name]
        drop_aliases()

    def _import(self, model_name: str) -> ModuleType:
        try:
            spec = importlib.util.spec_from_file_location(
                f"{self.package}.{self.path.stem}", self.path, loader=_loader(self.package, self.path)
            )
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        except BaseException as error:
            raise internal_error(
                f"model '{model_name}' could not be imported: {describe_import_failure(error)}"
            ) from error
        return module


def open_model_code(name: str, model_directory: Path, version_directory: Path, filename: str) -> ModelCode:
    """The code of a model version, not imported yet, in a package of its own.

    Raises InferenceError when there is no such file.
    """
    path = version_directory / (filename or "model.py")
    if path.suffix != ".py":
        raise invalid_argument(
            f"model '{name}': the name of a Python model's file must end in .py, not '{path.name}'"
        )
    if not path.is_file():
        raise invalid_argument(f"model '{name}': there is no file {path}")
    _look_at_files_anew()
    _finder.install()
    _register_api()
    package = f"{_PREFIX}{next(_numbers)}_{re.sub(r'[^0-9A-Za-z]', '_', name)}"
    _finder.packages[package] = _model_builtins(package, (version_directory, model_directory))
    module = ModuleType(package, f"The files of model '{name}'.")
    module.__path__ = [str(version_directory), str(model_directory)]
    sys.modules[package] = module
    return ModelCode(package, path)


def _look_at_files_anew() -> None:
    """Files may have changed since an earlier load."""
    for _ in range(_MOST_TRIES):
        # Where another thread imports something new meanwhile, it fails half-way.
        with _install_lock, contextlib.suppress(RuntimeError):
            importlib.invalidate_caches()
            return


def _register_api() -> None:
    sys.modules[_API_NAME] = importlib.import_module("cantata.bls.pb_utils")


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Loads a model's source with the model's builtins.

    Always from the source, and without writing bytecode: the repository is not ours to write in, and a file edited
    twice in a second must not be taken for its older self.
    """

    def __init__(self, fullname: str, path: str, model_builtins: Mapping[str, Any]) -> None:
        super().__init__(fullname, path)
        self._model_builtins = model_builtins

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._model_builtins
        super().exec_module(module)


class _ModelFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of the models' packages; `packages` holds the builtins of each."""

    def __init__(self) -> None:
        self.packages: dict[str, Mapping[str, Any]] = {}

    def install(self) -> None:
        """Take part in imports from now on."""
        with _install_lock:
            if self not in sys.meta_path:
                sys.meta_path.insert(0, self)
                sys.meta_path.append(AliasFinder())

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package not in self.packages:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _loader(package, Path(spec.loader.path), fullname)
        return spec


_finder: Final = _ModelFinder()


def _loader(package: str, path: Path, fullname: str = "") -> _SourceLoader:
    return _SourceLoader(fullname or f"{package}.{path.stem}", str(path), _finder.packages[package])


def _model_builtins(package: str, directories: Sequence[Path]) -> dict[str, Any]:
    """The builtins of a model's modules: everybody's, with an `__import__` that looks among the model's files first."""
    siblings = _Siblings(package, directories)
    import_module: Callable[..., ModuleType] = builtins.__import__

    def import_for_model(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        importer = str((globals or {}).get("__name__", ""))
        if level == 0 and siblings.has(top, importer):
            module = import_module(f"{package}.{name}", globals, locals, fromlist, 0)
            if isinstance(fromlist, list) and not fromlist:
                # Not a statement but pickle and its kind (PyImport_Import): they look into sys.modules next.
                importlib.import_module(name)
            return module if fromlist else sys.modules[f"{package}.{top}"]
        return import_module(name, globals, locals, fromlist, level)

    return {**vars(builtins), "__import__": import_for_model}


class _Siblings:
    """Which top-level names are files of the model.

    The standard library's names and the API's never are. A directory without `__init__.py` is a package of the
    model only where nothing installed has its name: model directories also hold data.
    """

    __slots__ = ("_directories", "_known", "_package")

    def __init__(self, package: str, directories: Sequence[Path]) -> None:
        self._package = package
        self._directories = directories
        self._known: dict[str, bool] = {_API_NAME: False}

    def has(self, name: str, importer: str) -> bool:
        """Whether `name` is the model's, to the module `importer`: tokenizers.py means the library by its own name."""
        if importer == f"{self._package}.{name}" and is_installed(name):
            return False
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = name not in sys.stdlib_module_names and self._finds(name)
        return known

    def _finds(self, name: str) -> bool:
        paths = [str(directory) for directory in self._directories]
        spec = importlib.machinery.PathFinder.find_spec(name, paths)
        if spec is None:
            return False
        if spec.origin is not None:
            return True
        return not is_installed(name)
