"""Fixtures of the integration tests: servers in processes of their own, on the examples or on built repositories."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.repositories import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty model repository."""
    return Repository(tmp_path / "models")
