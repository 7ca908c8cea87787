"""docs/conformance.md: what it names exists, and what exists is named."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import cast

import pytest

from cantata.grammars.messages import METHODS
from cantata.runtime.flags import SERVE_FLAGS
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.routes import create_application
from cantata.runtime.server import Server
from tests.support.fake_server import FakeServer

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "conformance.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| .+? \| `(\S+?)::(\w+)` \|$", TABLE, re.MULTILINE)


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@pytest.mark.parametrize(("feature", "file", "test"), ROWS, ids=[row[0] for row in ROWS])
def test_a_features_test_exists(feature: str, file: str, test: str) -> None:
    assert test in names_in(file), feature


def test_every_row_has_a_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.endswith("| test |")]
    assert len(rows) == len(ROWS)


def test_every_endpoint_has_a_row() -> None:
    application = create_application(cast(Server, FakeServer()), HttpOptions())
    served = {
        f"{method} {re.sub(r':int}', '}', route.path)}"  # type: ignore[attr-defined]
        for route in application.routes
        for method in route.methods  # type: ignore[attr-defined]
    }
    named = set(re.findall(r"^\| `((?:GET|POST) /\S+)`", TABLE, re.MULTILINE))
    assert named == served


def test_every_flag_has_a_row() -> None:
    named = re.findall(
        r"^\| `--(\S+)` \| (.+?) \|", TABLE.partition("## Flags of the command line")[2], re.MULTILINE
    )
    inert = {name for name, state in named if "without effect" in state}
    assert [name for name, _ in named] == [flag.name for flag in SERVE_FLAGS]
    assert inert == {flag.name for flag in SERVE_FLAGS if flag.is_inert}


def test_every_method_has_a_row() -> None:
    prefix = "/inference.GRPCInferenceService/"
    named = set(
        re.findall(r"^\| `(\w+)` \|", TABLE.partition("## gRPC methods")[2].partition("##")[0], re.MULTILINE)
    )
    assert named == {path.removeprefix(prefix) for path in METHODS if path.startswith(prefix)}
