"""The event loop of a model whose `execute` is a coroutine, on a thread of its own.

Owns the thread and the tasks started here. Nothing that a model's task raises ends the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

_log = logging.getLogger("cantata.python")

# How long a model's tasks may take to end when they are cancelled.
_PATIENCE_S: Final = 5.0


class AsyncLoop:
    """An event loop that runs from `start` to `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        # A task that nobody else holds may be collected while it runs.
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start the thread."""
        self._loop = _new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"cantata-loop-{self._name}", daemon=True)
        self._thread.start()

    def spawn(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine as a task of its own, soon. From any thread, until `close`."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._create_task, make)

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine whose result another thread waits for."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    @property
    def has_tasks(self) -> bool:
        """Whether something that was spawned has not ended."""
        return bool(self._tasks)

    def close(self, timeout_s: float = _PATIENCE_S) -> None:
        """Cancel what still runs, wait for it to end, and end the thread.

        A task that will not end keeps the thread; that is logged, and nobody waits for it any longer.
        """
        if self._loop is None or self._thread is None:
            return
        ended = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        try:
            ended.result(timeout_s)
        except FutureTimeoutError:
            ended.cancel()
            _log.error("tasks of model instance '%s' did not end when they were cancelled", self._name)
            return
        self._is_stopped = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    def _create_task(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._loop is not None
        task = self._loop.create_task(make())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self._loop is not None
        await self._loop.shutdown_asyncgens()

    def _run(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        while not self._is_stopped:
            try:
                self._loop.run_forever()
            except BaseException:
                # SystemExit and the like, raised in a task that the model started, come out here.
                _log.exception("a task of model instance '%s' failed", self._name)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    # Imported by those who need it: most models do not, and each process of a model would pay for it.
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
