from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.python_models import PythonModelHost


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PythonModelHost]:
    host = PythonModelHost(tmp_path)
    yield host
    host.close()
