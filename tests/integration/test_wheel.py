"""What `pip install` puts on another machine: every module and data file, and a server that imports without ours."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("cantata", "grammars", "dag", "runtime", "bls")
# What a model.py imports: installed beside the packages, not within.
TOP_LEVEL = Path("bls", "toplevel")
PB_UTILS = "triton_python_backend_utils.py"
INSTALLED_SUFFIXES = {".py", ".pyi", ".lark", ".proto", ".binpb", ".typed"}

# One model through everything: configuration, ensemble, model.py, both ways in.
PROGRAM = """
import sys
import cantata
import triton_python_backend_utils as pb_utils
from cantata import Server
from cantata.runtime.cli import main

assert cantata.__file__.startswith(sys.argv[1]), cantata.__file__
assert pb_utils.TritonError("no").message() == "no" and pb_utils.__file__.startswith(sys.argv[1]), pb_utils
with Server(sys.argv[2]) as server:
    answer = server.infer("double", {"A": [[1, 2, 3, 4]], "B": [[5, 6, 7, 8]]})
assert answer["TWICE_B"].tolist() == [[10, 12, 14, 16]]
assert main(["check", sys.argv[2]]) == 0
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # The build writes into its source tree: it gets one of its own.
    source = folder / "source"
    source.mkdir()
    for name in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stdout + run.stderr
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    expected = {
        str(Path("cantata", path.relative_to(ROOT / ("" if folder != "cantata" else folder))))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in INSTALLED_SUFFIXES and path.parent != ROOT / TOP_LEVEL
    }
    expected.add(PB_UTILS)
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_a_server_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The libraries are those of this environment; its editable install is not among them, for `.pth` files are
    # read in site directories only.
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    command = [tmp_path / "venv" / "bin" / "python", "-c", PROGRAM, site]
    run = subprocess.run(
        [*command, ROOT / "examples" / "ensembles" / "add_sub" / "models"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stdout + run.stderr
