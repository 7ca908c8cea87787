"""How an instance whose processes end starts anew, with processes and a timer that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cantata.bls.worker import process_instance
from cantata.bls.worker.process_instance import ProcessInstance
from cantata.runtime.errors import InferenceError, internal_error, unavailable
from cantata.runtime.observe.snapshots import ProcessFigures


class Timer:
    """Keeps the appointments that the test asks for."""

    def __init__(self) -> None:
        self.appointments: list[tuple[int, Callable[[], None]]] = []

    def call_at(self, time_ns: int, callback: Callable[[], None]) -> None:
        self.appointments.append((time_ns, callback))

    def take(self) -> tuple[float, Callable[[], None]]:
        """The one appointment there is: in how many seconds, and what is called then."""
        [(time_ns, callback)] = self.appointments
        self.appointments.clear()
        return time_ns / 1e9, callback


class Process:
    """A process as its instance sees it. The test says when it ends."""

    def __init__(self, on_end: Callable[[InferenceError], None]) -> None:
        self._on_end = on_end
        self.pid = id(self)
        self.has_readiness_hook = False
        self.has_timed_out = False
        self.has_run = False
        self.end_error: InferenceError | None = None
        self.stopped: float | None = None
        self.killed = threading.Event()

    def end(self, text: str = "it ended") -> None:
        self.end_error = unavailable(text)
        self._on_end(self.end_error)

    def stop(self, timeout_s: float) -> None:
        self.stopped = timeout_s
        self.end()

    def kill(self, reason: str) -> None:
        self.killed.set()


class Host:
    """Starts processes for one instance; `start` decides what becomes of the next one."""

    def __init__(self) -> None:
        self.timer = Timer()
        self.processes: list[Process] = []
        self.start: Callable[[Process], None] = lambda process: None
        self.changes = 0
        self.instance = ProcessInstance("model_0", self._start, self.timer, 3.0)  # type: ignore[arg-type]
        self.instance.watch(self._count_change)

    def _start(self, on_made: Callable[[Process], None], on_end: Callable[[InferenceError], None]) -> Process:
        process = Process(on_end)
        self.processes.append(process)
        on_made(process)
        self.start(process)
        return process

    def _count_change(self) -> None:
        self.changes += 1

    def restart(self) -> float:
        """Have the restart happen that is due next; returns what it was delayed by, in seconds."""
        delay_s, callback = self.timer.take()
        callback()
        for thread in threading.enumerate():
            if thread.name == "cantata-restart-model_0":
                thread.join(10)
        return delay_s


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(process_instance, "monotonic_ns", lambda: 0)
    return Host()


def refuse(process: Process) -> None:
    process.has_timed_out = True
    raise internal_error("initialize failed")


def test_a_process_that_ends_is_replaced_and_counted(host: Host) -> None:
    host.instance.start()
    host.processes[0].has_timed_out = True
    host.processes[0].end("it was killed")
    assert host.instance.pid is None
    assert str(host.instance.unavailability()) == "it was killed"
    assert host.restart() == 0.1
    assert host.instance.pid == host.processes[1].pid
    assert host.instance.unavailability() is None
    assert host.instance.figures() == ProcessFigures(deaths=1, restarts=1, timeouts=1)
    assert host.changes == 2


def test_each_restart_waits_twice_as_long_until_a_batch_was_run(host: Host) -> None:
    host.instance.start()
    delays = []
    for _ in range(9):
        host.processes[-1].end()
        delays.append(host.restart())
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    host.processes[-1].has_run = True
    host.processes[-1].end()
    assert host.restart() == 0.1


def test_a_process_that_cannot_be_initialized_again_is_tried_again(host: Host) -> None:
    host.instance.start()
    host.start = refuse
    host.processes[-1].end()
    assert host.restart() == 0.1
    assert str(host.instance.unavailability()) == "initialize failed"
    host.start = lambda process: None
    assert host.restart() == 0.2
    assert host.instance.figures() == ProcessFigures(deaths=2, restarts=1, timeouts=1)


def test_one_that_ends_before_it_is_taken_over_is_noticed_once(host: Host) -> None:
    host.start = Process.end
    host.instance.start()
    assert host.instance.pid is None
    assert host.instance.figures() == ProcessFigures(deaths=1, restarts=0, timeouts=0)
    assert len(host.timer.appointments) == 1


def test_closing_stops_the_process_and_starts_no_other(host: Host) -> None:
    host.instance.start()
    host.instance.close()
    assert host.processes[0].stopped == 3.0
    assert host.timer.appointments == []
    assert host.instance.figures() == ProcessFigures(deaths=0, restarts=0, timeouts=0)


def test_closing_cancels_a_restart_that_is_due(host: Host) -> None:
    host.instance.start()
    host.processes[0].end()
    host.instance.close()
    host.restart()
    assert len(host.processes) == 1


def test_closing_kills_a_process_that_is_starting(host: Host) -> None:
    def start_for_ever(process: Process) -> None:
        starting.set()
        assert process.killed.wait(10)
        raise unavailable("it was killed")

    starting = threading.Event()
    host.instance.start()
    host.start = start_for_ever
    host.processes[0].end()
    _, begin = host.timer.take()
    begin()
    assert starting.wait(10)
    host.instance.close()
    assert host.processes[1].killed.is_set()
    assert host.timer.appointments == []


def test_a_process_that_comes_while_closing_is_stopped(host: Host) -> None:
    def close_meanwhile(process: Process) -> None:
        closing = threading.Thread(target=host.instance.close)
        closing.start()
        closers.append(closing)
        assert process.killed.wait(10)

    closers: list[threading.Thread] = []
    host.instance.start()
    host.start = close_meanwhile
    host.processes[0].end()
    host.restart()
    closers[0].join(10)
    assert host.processes[1].stopped == 3.0
    assert host.instance.pid is None
