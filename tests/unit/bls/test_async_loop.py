from __future__ import annotations

import asyncio
import threading
from functools import partial

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


def test_all_that_is_spawned_at_once_runs_in_its_order() -> None:
    loop = AsyncLoop("many")
    loop.start()
    ran: list[int] = []
    is_held, has_ended = threading.Event(), threading.Event()

    async def hold() -> None:
        is_held.wait(10)

    async def note(number: int) -> None:
        ran.append(number)
        if number == 99:
            has_ended.set()

    # The loop's thread is held up, so that all the others are there when it next looks.
    loop.spawn(hold)
    for number in range(100):
        loop.spawn(partial(note, number))
    is_held.set()
    assert has_ended.wait(10)
    assert ran == list(range(100))
    loop.close()
