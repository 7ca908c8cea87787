"""The arrows between the packages, where heavy libraries may be imported, and that what exists is installed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
# Where the module is that is installed beside the packages.
TOP_LEVEL = ROOT / "bls" / "toplevel"
# From the bottom up: a package imports itself and what stands before it.
LAYERS = ("grammars", "dag", "runtime", "bls")
FOLDERS = ("cantata", *LAYERS)

# What loads a backend by name when a model first needs it, and thereby the only arrow that points up.
UPWARD_REFERENCES = {("runtime/backends/catalog.py", "cantata.bls")}

# Tells a process of another interpreter where all the packages lie, the public one included; it uses nothing of them.
NAMES_EVERY_FOLDER = "bls/worker/process_model.py"

MODULE_NAME = re.compile(rf"cantata\.({'|'.join(LAYERS)})(\.\w+)*")

# Where each library may be imported. "runtime/backends/torch" stands for every file whose path begins so.
HEAVY_LIBRARIES = {
    "lark": ("grammars/",),
    "pydantic": ("grammars/",),
    "google": ("grammars/", "runtime/frontends/grpc/"),
    "networkx": ("dag/",),
    "onnxruntime": ("runtime/backends/onnx",),
    "torch": ("runtime/backends/torch",),
    "hpack": ("runtime/frontends/grpc/http2/",),
    "starlette": ("runtime/frontends/http/",),
    "httptools": ("runtime/frontends/http/",),
    "uvloop": ("runtime/frontends/http/", "runtime/frontends/grpc/call_loop.py", "bls/async_loop.py"),
    "redis": ("runtime/caching/redis_cache.py",),
    "opentelemetry": ("runtime/observe/otel.py",),
}
# Imported anywhere: the arrays themselves, and the JSON of both edges.
SHARED_LIBRARIES = {"numpy", "orjson"}


class Import(NamedTuple):
    file: str
    line: int
    module: str


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> Iterator[Import]:
    """Every module that a file imports, wherever in it, or names in a string to import it later."""
    file = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(), file)):
        match node:
            case ast.Import(names=names):
                yield from (Import(file, node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, level=level):
                yield Import(file, node.lineno, "." * level + (module or ""))
            case ast.Constant(value=str(text)) if MODULE_NAME.fullmatch(text):
                yield Import(file, node.lineno, text)


def all_imports(*folders: str) -> list[Import]:
    return [found for path in sources(*folders) for found in imports_of(path)]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_nothing_that_stands_above_it(layer: str) -> None:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    upward = [
        found
        for found in all_imports(layer)
        if found.module.startswith(tuple(f"cantata.{name}" for name in above))
        and not any(
            found.file == file and found.module.startswith(target) for file, target in UPWARD_REFERENCES
        )
    ]
    assert upward == []


def test_imports_are_absolute() -> None:
    assert [found for found in all_imports(*FOLDERS) if found.module.startswith(".")] == []


def test_the_packages_below_do_not_import_the_public_one() -> None:
    importing = [found.file for found in all_imports(*LAYERS) if found.module == "cantata"]
    assert importing == [NAMES_EVERY_FOLDER]


@pytest.mark.parametrize("library", HEAVY_LIBRARIES)
def test_a_heavy_library_is_imported_in_its_one_place(library: str) -> None:
    places = HEAVY_LIBRARIES[library]
    elsewhere = [
        found
        for found in all_imports(*FOLDERS)
        if found.module.split(".")[0] == library and not found.file.startswith(places)
    ]
    assert elsewhere == []


def test_every_other_import_is_ours_or_pythons_own() -> None:
    known = {"cantata", "triton_python_backend_utils", *SHARED_LIBRARIES, *HEAVY_LIBRARIES}
    known |= sys.stdlib_module_names
    unknown = [found for found in all_imports(*FOLDERS) if found.module.split(".")[0] not in known]
    assert unknown == []


def test_every_package_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    found = {package_of(path.parent) for path in sources(*FOLDERS) if path.parent != TOP_LEVEL}
    assert setuptools["package-dir"][""] == str(TOP_LEVEL.relative_to(ROOT))
    assert sorted(setuptools["packages"]) == sorted(found)
    assert all(setuptools["package-dir"][package_of(ROOT / folder)] == folder for folder in FOLDERS)


def test_every_file_opens_by_saying_what_it_owns() -> None:
    silent = [
        path.as_posix() for path in sources(*FOLDERS) if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def package_of(folder: Path) -> str:
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "cantata" else ("cantata", *parts))
