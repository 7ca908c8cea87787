"""The one thread that calls back at given times."""

from __future__ import annotations

import threading

import pytest

from cantata.runtime.scheduling.timer import Timer


def test_a_callback_that_raises_keeps_no_other_from_being_called(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by nothing")

    timer = Timer()
    was_called = threading.Event()
    timer.call_at(1, fail)
    timer.call_at(2, was_called.set)
    assert was_called.wait(10)
    timer.close()
    assert "by nothing" in caplog.text
