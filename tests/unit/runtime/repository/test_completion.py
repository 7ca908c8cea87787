"""A model's configuration on the way from disk to service."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cantata.runtime.backends.backend import Backend
from cantata.runtime.repository.completion import Completing, prepare_model
from cantata.runtime.repository.source import read_model_directory
from tests.support.model_files import IDENTITY, write_identity, write_model


def failing_backend(name: str) -> Backend:
    raise ZeroDivisionError(f"a bug of {name}'s")


def test_a_bug_in_a_backend_is_the_failure_of_the_model_and_of_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_identity(tmp_path)
    with caplog.at_level(logging.CRITICAL, "cantata"):
        prepared = prepare_model(
            read_model_directory(tmp_path / "identity"), failing_backend, Completing.ALWAYS
        )
    assert str(prepared.failure()) == "ZeroDivisionError: a bug of python's"


def test_a_model_without_a_configuration_is_refused_where_none_is_completed(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "bare", None, IDENTITY)
    prepared = prepare_model(read_model_directory(directory), failing_backend, Completing.NEVER)
    assert "model 'bare' has no config.pbtxt" in str(prepared.failure())
