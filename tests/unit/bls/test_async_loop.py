from __future__ import annotations

import asyncio
import threading

import pytest

from cantata.bls.async_loop import AsyncLoop


def test_a_task_that_will_not_end_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    loop = AsyncLoop("stubborn")
    loop.start()
    started, released = threading.Event(), threading.Event()

    async def refuse_to_end() -> None:
        started.set()
        while not released.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    loop.spawn(refuse_to_end)
    assert started.wait(10)
    loop.close(timeout_s=0.05)
    assert "tasks of model instance 'stubborn' did not end when they were cancelled" in caplog.text
    released.set()
    loop.close(timeout_s=10)


def test_tasks_are_cancelled_before_the_loop_ends() -> None:
    loop = AsyncLoop("plain")
    loop.start()
    started, cancelled = threading.Event(), threading.Event()

    async def wait_for_ever() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    loop.spawn(wait_for_ever)
    assert started.wait(10)
    loop.close()
    assert cancelled.is_set()
