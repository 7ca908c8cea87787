"""The timer's thread: it calls what is due, whatever else it was asked for."""

from __future__ import annotations

import threading

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.scheduling.timer import Timer


def test_a_time_that_no_condition_can_wait_for_stops_nothing() -> None:
    timer = Timer()
    timer.call_at(2**63 * 1000, lambda: None)
    # Each waits for the one before: by the second, the thread has had to wait for what is far away.
    for _ in range(3):
        called = threading.Event()
        timer.call_at(monotonic_ns(), called.set)
        assert called.wait(20)
    timer.close()
