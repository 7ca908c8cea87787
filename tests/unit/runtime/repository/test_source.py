"""What is found in model repositories on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cantata.runtime.errors import InferenceError
from cantata.runtime.repository.source import scan_repositories
from tests.support.model_files import write_model


def test_models_are_directories_and_versions_are_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_model(tmp_path, "model", 'backend: "python"', code="x = 1\n")
    for name in (
        "2",
        "10",
        "0",
        "07",
        "1abc",
        "-3",
        "warmup",
        "configs",
        "initial_state",
        "__pycache__",
        ".git",
    ):
        (model / name).mkdir()
    (model / "5").touch()
    (tmp_path / "README.md").touch()
    (tmp_path / ".hidden").mkdir()
    contents = scan_repositories([tmp_path])
    assert list(contents.models) == ["model"]
    assert contents.models["model"].versions == (0, 1, 2, 10)
    ignored = {name for name in ("07", "1abc", "-3", "warmup", "configs") if f"'{name}'" in caplog.text}
    assert ignored == {"07", "1abc", "-3"}


def test_a_model_without_configuration_has_no_text(tmp_path: Path) -> None:
    write_model(tmp_path, "bare", None, code="x = 1\n")
    assert scan_repositories([tmp_path]).models["bare"].config_text is None


def test_a_named_configuration_is_preferred_where_there_is_one(tmp_path: Path) -> None:
    for name in ("with", "without"):
        write_model(tmp_path, name, 'backend: "python"', code="x = 1\n")
    (tmp_path / "with" / "configs").mkdir()
    (tmp_path / "with" / "configs" / "gpu.pbtxt").write_text('backend: "onnxruntime"')
    models = scan_repositories([tmp_path], "gpu").models
    assert {name: model.config_path.name for name, model in models.items()} == {
        "with": "gpu.pbtxt",
        "without": "config.pbtxt",
    }


def test_a_name_in_two_repositories_serves_from_neither(tmp_path: Path) -> None:
    for repository, names in (("one", ("a", "b")), ("two", ("b", "c"))):
        for name in names:
            write_model(tmp_path / repository, name, "", code="x = 1\n")
    contents = scan_repositories([tmp_path / "one", tmp_path / "two"])
    assert (sorted(contents.models), contents.duplicated) == (["a", "c"], {"b"})


def test_a_fingerprint_changes_with_any_file_but_not_with_what_python_leaves(tmp_path: Path) -> None:
    model = write_model(tmp_path, "model", "", code="x = 1\n")

    def fingerprint() -> frozenset[tuple[str, int, int]]:
        return scan_repositories([tmp_path]).models["model"].fingerprint

    before = fingerprint()
    (model / "1" / "__pycache__").mkdir()
    (model / "1" / "__pycache__" / "model.pyc").touch()
    assert fingerprint() == before
    os.utime(model / "1" / "model.py", ns=(1, 1))
    touched = fingerprint()
    (model / "labels.txt").touch()
    assert len({before, touched, fingerprint()}) == 3


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_repository_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InferenceError, match=f"cannot read model repository '{tmp_path / name}'"):
        scan_repositories([tmp_path / name])
