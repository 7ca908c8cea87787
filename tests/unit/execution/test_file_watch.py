"""Work that goes on once there is something to read."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cantata.runtime.execution.file_watch import FileWatch
from cantata.runtime.execution.worker_pool import WorkerPool, watch_here


class Task:
    is_quick = True
    is_quick_alone = False
    leaves_slow_batches = False

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


def test_what_still_waits_at_the_end_is_given_back(pipe: Pipe) -> None:
    watch, task = FileWatch(), Task()
    watch.add(pipe.end)
    watch.wait_for(pipe.end, task)
    assert watch.close() == [task]
    watch.remove(pipe.end)


class Noting:
    """Work that notes where it runs."""

    is_quick = False
    is_quick_alone = True

    def __init__(self, *, leaves_slow_batches: bool) -> None:
        self.leaves_slow_batches = leaves_slow_batches
        self.watches: list[FileWatch | None] = []

    def run(self) -> None:
        self.watches.append(watch_here())


def test_all_that_can_be_left_to_the_watch_runs_on_its_thread(watch: FileWatch) -> None:
    pool = WorkerPool()
    here = [Noting(leaves_slow_batches=True) for _ in range(3)]
    with pool.collecting(watch) as collected:
        for work in here:
            pool.dispatch(work)
        assert watch_here() is None
        collected.run()
        assert watch_here() is None
    pool.close()
    assert [work.watches for work in here] == [[watch]] * 3


def test_of_what_waits_for_others_one_piece_runs_on_its_thread(watch: FileWatch) -> None:
    pool = WorkerPool()
    elsewhere, here = (Noting(leaves_slow_batches=False) for _ in range(2))
    with pool.collecting(watch) as collected:
        pool.dispatch(here)
        pool.dispatch(elsewhere)
        collected.run()
    pool.close()
    assert here.watches == [watch]
    assert elsewhere.watches == [None]


def test_a_thread_that_waits_itself_leaves_nothing_to_the_watch(watch: FileWatch) -> None:
    """Its event loop does not turn meanwhile."""
    pool = WorkerPool()
    inner = Noting(leaves_slow_batches=True)

    class Outer:
        is_quick = True
        is_quick_alone = False
        leaves_slow_batches = False

        def run(self) -> None:
            with pool.collecting() as collected:
                pool.dispatch(inner)
                collected.run()
                pool.dispatch(inner)
                collected.run_until(lambda: False)

    with pool.collecting(watch) as collected:
        pool.dispatch(Outer())
        collected.run()
    pool.close()
    assert inner.watches == [None, None]


def test_workers_take_over_what_an_ended_loop_was_to_hear_of(pipe: Pipe) -> None:
    watch, pool = FileWatch(), WorkerPool()
    task = Noting(leaves_slow_batches=False)
    watch.add(pipe.end)
    watch.wait_for(pipe.end, task)
    pool.take_over(watch)
    pool.close()
    assert task.watches == [None]
