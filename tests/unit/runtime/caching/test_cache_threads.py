"""The threads beside a cache: everything they take is run, whatever becomes of it, and they do not take too much."""

from __future__ import annotations

import threading

import pytest

from cantata.runtime.caching import cache_threads
from cantata.runtime.caching.cache_threads import CacheThreads


def test_what_was_taken_is_run_before_they_close() -> None:
    threads = CacheThreads()
    done: list[int] = []
    taken = [threads.run(lambda number=number: done.append(number)) for number in range(50)]  # type: ignore[misc]
    threads.close()
    assert (all(taken), sorted(done)) == (True, list(range(50)))
    assert not threads.run(lambda: done.append(99))
    assert 99 not in done


def test_no_more_is_taken_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_threads, "_MOST_WAITING", 3)
    threads, gate = CacheThreads(), threading.Event()
    assert [threads.run(lambda: gate.wait(60) and None) for _ in range(5)] == [True] * 3 + [False] * 2
    gate.set()
    threads.close()


def test_what_fails_is_logged_and_makes_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_threads, "_MOST_WAITING", 1)
    threads, failed = CacheThreads(), threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("broken")

    assert threads.run(fail)
    assert failed.wait(60)
    while not threads.run(lambda: None):
        pass
    threads.close()
    assert "a question to the response cache failed" in caplog.text
