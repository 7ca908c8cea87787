"""The threads that run model instances, and who runs what.

Work is, mostly, an idle instance that has been reserved because requests wait for it. A model instance is owned by
whoever reserved it, not by a thread, so work may run on any thread: on a worker, or on a thread that would otherwise
only wait (a front-end's, a blocking caller's). Handing work to another thread is the largest single cost of a small
request; this module decides when that cost is worth paying. Knows nothing of requests or models.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol

from cantata.runtime.execution.file_watch import FileWatch

_log = logging.getLogger("cantata.workers")


class Work(Protocol):
    """A reserved instance, or something else to do. It must be run, exactly once for each time it was dispatched."""

    @property
    def is_quick(self) -> bool:
        """Whether it is known to take well under a millisecond, so that running it here delays nobody."""

    @property
    def is_quick_alone(self) -> bool:
        """Whether it is as quick, but waits for other work: its thread must hold none back while it runs."""

    @property
    def may_wait(self) -> bool:
        """Whether it runs code that may wait for other work, known to or not.

        What is quick alone and never does so waits for nothing where its thread has a FileWatch to leave the rest to.
        """

    def run(self) -> None:
        """Run it; never raises."""


class Dispatcher(Protocol):
    """What has work run; a WorkerPool, or something that asks one when the time has come."""

    def dispatch(self, work: Work) -> None:
        """Have `work` run, on this thread or another."""


class _ThreadState(threading.local):
    # The thread's own list of work it has taken on, or None while work must go to other threads at once: always so
    # inside a model's code, which may wait for the very requests it sends.
    collected: deque[Work] | None = None
    # The collector whose work this thread runs: of several, the innermost.
    holder: Collector | None = None


_thread = _ThreadState()


def enter_model_code() -> deque[Work] | None:
    """To be called before a model's own code: what that enqueues goes to other threads at once.

    What it returns is for `leave_model_code`, which must follow. Functions, since it is done for every execution.
    """
    collected = _thread.collected
    if collected is not None:
        _thread.collected = None
    return collected


def leave_model_code(collected: deque[Work] | None) -> None:
    """The model's own code has returned."""
    if collected is not None:
        _thread.collected = collected


def serves_others() -> bool:
    """Whether the current thread runs work between what it does for others, and so must not wait for long.

    Not inside a model's code: what that waits for holds up its thread anyhow.
    """
    holder = _thread.holder
    return holder is not None and holder.serves_others and _thread.collected is not None


def watch_here() -> FileWatch | None:
    """Where the current thread serves others by an event loop of its own, what work may be left to; else None."""
    holder = _thread.holder
    return holder.watch if holder is not None and serves_others() else None


def about_to_wait() -> None:
    """To be called before the current thread waits for other work: what it holds back could be just that."""
    holder = _thread.holder
    while holder is not None:
        holder.let_go()
        holder = holder.outer_holder


def _nothing() -> None:
    """What is done after each piece of work, and before waiting, mostly."""


def _never() -> bool:
    """For whoever runs work as long as there is some."""
    return False


class Collector:
    """Work taken on by the current thread between `collecting()` and the end of its `with` block.

    Whatever is left when the block ends is handed to workers. Not for use from any other thread.
    """

    __slots__ = (
        "_alone",
        "_before_wait",
        "_collected",
        "_outer",
        "_pool",
        "outer_holder",
        "serves_others",
        "watch",
    )

    def __init__(self, pool: WorkerPool, watch: FileWatch | None) -> None:
        self._pool = pool
        self.watch = watch
        # Whether its thread, the last time that it ran the work, did so between what it does for others.
        self.serves_others = False
        self._collected: deque[Work] = deque()
        # What is to run when nothing else is held back, and what is to be done before the thread waits.
        self._alone: Work | None = None
        self._before_wait = _nothing
        self.outer_holder: Collector | None = None

    def __enter__(self) -> Collector:
        self._outer = _thread.collected
        _thread.collected = self._collected
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        _thread.collected = self._outer
        while self._collected:
            self._pool.hand_over(self._collected.popleft())

    def run(
        self, after_each: Callable[[], None] = _nothing, before_wait: Callable[[], None] = _nothing
    ) -> None:
        """Run what is quick here, and what that leads to; hand the rest to workers.

        For threads that serve others (front-ends): a model that is not known to be quick never holds them up.
        `after_each` is called after each piece that was run here, `before_wait` before one that waits all the same.
        """
        self._hold(before_wait, serves_others=True)
        try:
            while self._collected:
                self._run_quick(after_each)
                alone, self._alone = self._alone, None
                if alone is not None:
                    self._run_here(alone)
                    after_each()
        finally:
            self._release()

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Run what was collected on this thread, which has nothing better to do, until `is_done()`.

        May return earlier, when nothing is left that this thread could run.
        """
        collected = self._collected
        self._hold(_nothing, serves_others=False)
        try:
            while collected and not is_done():
                work = collected.popleft()
                # The last piece is run here even if it is slow: this thread would only go idle.
                if work.is_quick or not collected:
                    work.run()
                else:
                    self._pool.hand_over(work)
        finally:
            self._release()

    def let_go(self) -> None:
        """Hold nothing back: the thread is about to wait."""
        alone, self._alone = self._alone, None
        if alone is not None:
            self._collected.append(alone)
        collected = self._collected
        while collected:
            work = collected.popleft()
            try:
                self._pool.hand_over(work)
            except RuntimeError:
                # No thread can be started.
                collected.appendleft(work)
                break
        self._leave_to_workers()
        self._before_wait()

    def _run_quick(self, after_each: Callable[[], None]) -> None:
        """Run what is quick; keeps one piece that is quick alone, for when nothing else is held back any more."""
        collected = self._collected
        has_watch = self.watch is not None
        while collected:
            work = collected.popleft()
            if work.is_quick or (has_watch and work.is_quick_alone and not work.may_wait):
                self._run_here(work)
                after_each()
            elif work.is_quick_alone and self._alone is None:
                self._alone = work
            else:
                self._pool.hand_over(work)

    def _run_here(self, work: Work) -> None:
        # Code that may wait may do so in ways that nobody is told of: nothing is left to this thread meanwhile.
        if work.may_wait:
            self._leave_to_workers()
        work.run()

    def _leave_to_workers(self) -> None:
        watch = self.watch
        if watch is not None and watch.has_work:
            # RuntimeError: no thread can be started.
            with suppress(RuntimeError):
                watch.give_away(self._pool.hand_over)

    def _hold(self, before_wait: Callable[[], None], *, serves_others: bool) -> None:
        self._before_wait = before_wait
        self.serves_others = serves_others
        self.outer_holder, _thread.holder = _thread.holder, self

    def _release(self) -> None:
        _thread.holder, self.outer_holder = self.outer_holder, None
        self._before_wait = _nothing


class WorkerPool:
    """Threads that run work, made when first needed and kept until `close`.

    Work that holds a reserved instance needs no more threads than there are instances. What holds none, as an answer
    that is sent later, is rare or short.
    `_lock` guards `_idle`, `_threads` and `_is_closed`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Work | None]] = []
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def collecting(self, watch: FileWatch | None = None) -> Collector:
        """Keep the work that this thread causes inside a `with` block for this thread to run.

        `watch` is the thread's event loop's, where it has one that goes on after the block.
        """
        return Collector(self, watch)

    def dispatch(self, work: Work) -> None:
        """Have `work` run: by this thread if it is collecting, else by a worker."""
        collected = _thread.collected
        if collected is None:
            self.hand_over(work)
        else:
            collected.append(work)

    def hand_over(self, work: Work) -> None:
        """Have a worker run `work`. The worker that went idle last is used first: its caches are warm."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else self._start_worker()
        inbox.put(work)

    def take_over(self, watch: FileWatch) -> None:
        """Have workers wait for what an event loop that has ended was to hear of."""
        for work in watch.close():
            try:
                self.hand_over(work)
            except RuntimeError:
                # No thread can be started: this one has to wait.
                work.run()

    def close(self) -> None:
        """End the threads, each after the work it has; no work may be dispatched any more."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            threads = list(self._threads)
        for inbox in idle:
            inbox.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _start_worker(self) -> SimpleQueue[Work | None]:
        inbox: SimpleQueue[Work | None] = SimpleQueue()
        thread = threading.Thread(
            target=self._serve, args=(inbox,), name=f"cantata-worker-{len(self._threads)}", daemon=True
        )
        self._threads.append(thread)
        thread.start()
        return inbox

    def _serve(self, inbox: SimpleQueue[Work | None]) -> None:
        with self.collecting() as collected:
            while (first := inbox.get()) is not None:
                self.dispatch(first)
                collected.run_until(_never)
                with self._lock:
                    if self._is_closed:
                        return
                    self._idle.append(inbox)
