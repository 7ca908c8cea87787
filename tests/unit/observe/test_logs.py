"""Settings of the log, and what they let through."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cantata.runtime.observe.logs import LogSettings, configure_logging, log_settings, update_logging

LOGGER = logging.getLogger("cantata.test")


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    logger = logging.getLogger("cantata")
    handlers, level, propagates = logger.handlers[:], logger.level, logger.propagate
    before = log_settings()
    file = tmp_path / "log"
    configure_logging(LogSettings(file=str(file), format="json"))
    yield file
    logger.handlers[0].close()
    configure_logging(before)
    logger.handlers[:], logger.propagate = handlers, propagates
    logger.setLevel(level)


def messages(file: Path) -> list[str]:
    return [json.loads(line)["message"] for line in file.read_text().splitlines()]


def test_levels_are_switched_one_by_one(log_file: Path) -> None:
    update_logging({"info": False})
    LOGGER.info("dropped")
    LOGGER.warning("kept")
    update_logging({"info": True, "warning": False, "verbose_level": 1})
    LOGGER.warning("dropped")
    LOGGER.debug("verbose")
    LOGGER.info("told")
    assert messages(log_file) == ["kept", "verbose", "told"]


def test_the_form_changes_while_the_place_stays(log_file: Path) -> None:
    settings = update_logging({"format": "ISO8601"})
    LOGGER.info("text")
    assert settings == LogSettings(file=str(log_file), format="ISO8601") == log_settings()
    assert log_file.read_text().endswith(" test] text\n")


def test_an_unknown_form_changes_nothing(log_file: Path) -> None:
    with pytest.raises(ValueError, match="xml"):
        update_logging({"format": "xml", "info": False})
    assert log_settings() == LogSettings(file=str(log_file), format="json")
