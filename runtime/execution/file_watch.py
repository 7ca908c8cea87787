"""Work that goes on once a file has something to read, on a thread that has an event loop and must not wait for it.

Owns which files the loop hears of, and what waits for each. Knows nothing of what is read.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cantata.runtime.execution.worker_pool import Work


class FileWatch:
    """One event loop's. `fileno` is readable when some work can go on; all else but `remove` is the loop's own.

    `_lock` guards `_is_closed`, since files are removed by whoever reads them next.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, Work] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def fileno(self) -> int:
        """What the loop is to watch for reading."""
        return self._epoll.fileno()

    def add(self, file: int) -> None:
        """Hear of a file until it is removed, or closed. What was there before and is read by others does not count."""
        self._epoll.register(file, select.EPOLLIN | select.EPOLLET)

    def remove(self, file: int) -> None:
        """Hear of a file no more; any thread may call."""
        with self._lock:
            if not self._is_closed:
                self._epoll.unregister(file)

    def wait_for(self, file: int, work: Work) -> None:
        """Keep `work` until there is something to read in `file`, which was added before anybody could write to it."""
        self._waiting[file] = work

    def take_ready(self) -> list[Work]:
        """The work whose files have something to read, or have come to their end."""
        # What nobody waits for here was read by others.
        return [self._waiting.pop(file) for file, _ in self._epoll.poll(0) if file in self._waiting]

    @property
    def has_work(self) -> bool:
        """Whether some work waits."""
        return bool(self._waiting)

    def give_away(self, take: Callable[[Work], None]) -> None:
        """Have `take` take all that waits. What it raises is raised, and what it has not taken waits on."""
        while self._waiting:
            file, work = self._waiting.popitem()
            try:
                take(work)
            except BaseException:
                self._waiting[file] = work
                raise

    def close(self) -> list[Work]:
        """Hear of nothing any more; what still waits is the caller's."""
        with self._lock:
            self._is_closed = True
            self._epoll.close()
        waiting, self._waiting = self._waiting, {}
        return list(waiting.values())
