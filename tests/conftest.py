"""What every module of tests leaves as it found it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from cantata.runtime.observe import logs


@pytest.fixture(autouse=True, scope="module")
def log_as_it_was() -> Iterator[None]:
    """There is one log in a process; whoever configures it must not do so for the modules that follow."""
    logger = logging.getLogger("cantata")
    handlers, level, propagates, settings = (
        list(logger.handlers),
        logger.level,
        logger.propagate,
        logs._settings,
    )
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagates
    logs._settings = settings
