"""Free memory is given back after it was short, once however often that was said, and never while nobody says so."""

from __future__ import annotations

import queue
import threading

from cantata.runtime.memory_return import MemoryReturn


def test_memory_is_given_back_each_time_it_was_short() -> None:
    returns: queue.SimpleQueue[str] = queue.SimpleQueue()
    memory = MemoryReturn(lambda: returns.put(threading.current_thread().name), interval_s=0.0)
    memory.start()
    for _ in range(2):
        memory.note()
        assert returns.get(timeout=10) == "cantata-memory"
    memory.close()
    assert returns.empty()


def test_what_is_said_many_times_at_once_is_done_once() -> None:
    returns: list[int] = []
    memory = MemoryReturn(lambda: returns.append(1), interval_s=10.0)
    for _ in range(5):
        memory.note()
    memory.start()
    memory.close()
    # It was closed before its interval was over.
    assert returns == []


def test_one_that_was_never_started_can_be_closed() -> None:
    MemoryReturn(lambda: None).close()
