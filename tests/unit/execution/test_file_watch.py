"""Work that goes on once there is something to read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from cantata.runtime.execution.file_watch import FileWatch
from cantata.runtime.execution.worker_pool import (
    WorkerPool,
    about_to_wait,
    enter_model_code,
    leave_model_code,
    watch_here,
)


class Task:
    is_quick = True
    is_quick_alone = False
    may_wait = False

    def run(self) -> None:
        raise AssertionError("whoever takes it runs it")


class Pipe:
    def __init__(self) -> None:
        self.end, self._other = os.pipe2(os.O_NONBLOCK)

    def write(self) -> None:
        os.write(self._other, b".")

    def read(self) -> None:
        os.read(self.end, 1)

    def close_other(self) -> None:
        if self._other != -1:
            os.close(self._other)
            self._other = -1

    def close(self) -> None:
        self.close_other()
        os.close(self.end)


@pytest.fixture
def watch() -> Iterator[FileWatch]:
    watch = FileWatch()
    yield watch
    watch.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_work_goes_on_when_its_file_has_something_to_read(watch: FileWatch, pipe: Pipe) -> None:
    task = Task()
    watch.add(pipe.end)
    watch.wait_for(pipe.end, task)
    assert watch.take_ready() == []
    pipe.write()
    assert watch.take_ready() == [task]
    assert watch.take_ready() == []


def test_what_was_written_before_it_waits_counts(watch: FileWatch, pipe: Pipe) -> None:
    task = Task()
    watch.add(pipe.end)
    pipe.write()
    watch.wait_for(pipe.end, task)
    assert watch.take_ready() == [task]


def test_what_was_read_by_others_does_not_count(watch: FileWatch, pipe: Pipe) -> None:
    watch.add(pipe.end)
    for _ in range(3):
        pipe.write()
        pipe.read()
    task = Task()
    watch.wait_for(pipe.end, task)
    assert watch.take_ready() == []
    pipe.write()
    assert watch.take_ready() == [task]


def test_the_end_of_a_file_is_something_to_read(watch: FileWatch, pipe: Pipe) -> None:
    task = Task()
    watch.add(pipe.end)
    watch.wait_for(pipe.end, task)
    pipe.close_other()
    assert watch.take_ready() == [task]


def test_nothing_is_heard_of_a_file_that_was_removed(watch: FileWatch, pipe: Pipe) -> None:
    watch.add(pipe.end)
    watch.wait_for(pipe.end, Task())
    watch.remove(pipe.end)
    pipe.write()
    assert watch.take_ready() == []


def test_a_number_that_comes_again_is_another_file(watch: FileWatch) -> None:
    numbers = set()
    for _ in range(3):
        pipe, task = Pipe(), Task()
        numbers.add(pipe.end)
        watch.add(pipe.end)
        watch.wait_for(pipe.end, task)
        pipe.write()
        assert watch.take_ready() == [task]
        pipe.close()
    assert len(numbers) == 1


def test_what_is_not_taken_waits_on(watch: FileWatch) -> None:
    pipes = [Pipe(), Pipe()]
    taken: list[object] = []

    def take_one(work: object) -> None:
        if taken:
            raise RuntimeError
        taken.append(work)

    for pipe in pipes:
        watch.add(pipe.end)
        watch.wait_for(pipe.end, Task())
        pipe.write()
    with pytest.raises(RuntimeError):
        watch.give_away(take_one)
    assert watch.has_work
    assert len(watch.take_ready()) == 1
    assert not watch.has_work
    for pipe in pipes:
        pipe.close()


def test_what_still_waits_at_the_end_is_given_back(pipe: Pipe) -> None:
    watch, task = FileWatch(), Task()
    watch.add(pipe.end)
    watch.wait_for(pipe.end, task)
    assert watch.close() == [task]
    watch.remove(pipe.end)


class Noting:
    """Work that is quick alone, and notes where it runs, and in which thread."""

    is_quick = False
    is_quick_alone = True

    def __init__(self, *, may_wait: bool) -> None:
        self.may_wait = may_wait
        self.watches: list[FileWatch | None] = []
        self.threads: list[int] = []
        self.has_run = threading.Event()

    def run(self) -> None:
        self.watches.append(watch_here())
        self.threads.append(threading.get_ident())
        self.has_run.set()

    @property
    def ran_here(self) -> bool:
        return self.threads == [threading.get_ident()]


class Waiting:
    """Quick work that waits for other work, though nobody knew."""

    is_quick = True
    is_quick_alone = False
    may_wait = False

    def __init__(self, *others: Noting) -> None:
        self._others = others
        self.has_seen = False

    def run(self) -> None:
        collected = enter_model_code()
        about_to_wait()
        self.has_seen = all(other.has_run.wait(10) for other in self._others)
        leave_model_code(collected)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    pool.close()


def test_all_that_can_be_left_to_the_watch_runs_on_its_thread(watch: FileWatch, pool: WorkerPool) -> None:
    here = [Noting(may_wait=False) for _ in range(3)]
    with pool.collecting(watch) as collected:
        for work in here:
            pool.dispatch(work)
        assert watch_here() is None
        collected.run()
        assert watch_here() is None
    assert all(work.ran_here for work in here)
    assert [work.watches for work in here] == [[watch]] * 3


def test_of_what_waits_for_others_one_piece_runs_on_its_thread(watch: FileWatch, pool: WorkerPool) -> None:
    here, elsewhere = (Noting(may_wait=True) for _ in range(2))
    with pool.collecting(watch) as collected:
        pool.dispatch(here)
        pool.dispatch(elsewhere)
        collected.run()
    assert elsewhere.has_run.wait(10)
    assert here.ran_here
    assert not elsewhere.ran_here


def test_a_thread_that_waits_itself_leaves_nothing_to_the_watch(watch: FileWatch, pool: WorkerPool) -> None:
    """Its event loop does not turn meanwhile."""
    inner = Noting(may_wait=False)

    class Outer(Task):
        def run(self) -> None:
            with pool.collecting() as collected:
                pool.dispatch(inner)
                collected.run()
                pool.dispatch(inner)
                collected.run_until(lambda: False)

    with pool.collecting(watch) as collected:
        pool.dispatch(Outer())
        collected.run()
    assert inner.watches == [None, None]


@pytest.mark.parametrize("is_quick", [True, False])
def test_before_code_that_may_wait_runs_workers_wait_for_the_watch(
    watch: FileWatch, pool: WorkerPool, pipe: Pipe, is_quick: bool
) -> None:
    left = Noting(may_wait=False)
    watch.add(pipe.end)
    watch.wait_for(pipe.end, left)

    class MayWait(Task):
        may_wait = True
        has_seen = False

        def run(self) -> None:
            self.has_seen = left.has_run.wait(10)

    work = MayWait()
    work.is_quick, work.is_quick_alone = is_quick, not is_quick
    with pool.collecting(watch) as collected:
        pool.dispatch(work)
        collected.run()
    assert work.has_seen
    assert not left.ran_here


def test_who_waits_unexpectedly_holds_nothing_back(watch: FileWatch, pool: WorkerPool, pipe: Pipe) -> None:
    left, alone, behind = (Noting(may_wait=True) for _ in range(3))
    watch.add(pipe.end)
    watch.wait_for(pipe.end, left)
    work = Waiting(left, alone, behind)
    said: list[str] = []
    with pool.collecting(watch) as collected:
        for each in (alone, work, behind):
            pool.dispatch(each)
        collected.run(lambda: said.append("after"), lambda: said.append("before"))
    assert work.has_seen
    assert said == ["before", "after"]


def test_nor_does_a_worker(pool: WorkerPool) -> None:
    behind = Noting(may_wait=True)
    work = Waiting(behind)

    class First(Task):
        def run(self) -> None:
            pool.dispatch(work)
            pool.dispatch(behind)

    pool.hand_over(First())
    assert behind.has_run.wait(10)
    pool.close()
    assert work.has_seen


def test_workers_take_over_what_an_ended_loop_was_to_hear_of(pool: WorkerPool, pipe: Pipe) -> None:
    watch = FileWatch()
    task = Noting(may_wait=False)
    watch.add(pipe.end)
    watch.wait_for(pipe.end, task)
    pool.take_over(watch)
    assert task.has_run.wait(10)
    assert not task.ran_here
