"""One process that hosts one instance, from its start to its end, as the server sees it.

Owns the process, its channels and arenas, the batches that it runs in the background, and what becomes of requests when
it ends. Plain batches are the affair of `direct_batches.py`. Starting again is nobody's here: a process ends once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final

from cantata.bls.worker import messages
from cantata.bls.worker.arena import ArenaReader, ArenaWriter
from cantata.bls.worker.batches import Batches, BrokenMessageError
from cantata.bls.worker.channel import Channel, ChannelClosedError, Message
from cantata.bls.worker.direct_batches import DirectBatches
from cantata.bls.worker.exchange import Exchange
from cantata.bls.worker.inherited import Command, SharedFiles
from cantata.bls.worker.process_requests import ProcessRequests
from cantata.bls.worker.process_watch import ProcessWatch, WatchedProcess
from cantata.bls.worker.time_limit import TimeLimit
from cantata.bls.worker.wire import decode_error
from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.errors import InferenceError, internal_error, unavailable
from cantata.runtime.execution.execution import Execution
from cantata.runtime.scheduling.timer import Timer

_log = logging.getLogger("cantata.python")

# Of what a process said last, this much is told to clients.
_MOST_STDERR_CHARACTERS: Final = 2000
# A process whose sockets are closed has this long to be seen to end by itself.
_ENDING_S: Final = 1.0
# A little more than a model's `is_ready` has there.
_READINESS_S: Final = 6.0


class WorkerProcess:
    """A process, once `start` has been called. `_state_lock` guards `_kill_reason` and `_process`."""

    def __init__(
        self,
        name: str,
        shared: SharedFiles,
        services: ServerServices,
        timer: Timer,
        timeout_s: float | None,
        start_timeout_s: float | None,
        on_end: Callable[[InferenceError], None],
        busy: set[DirectBatches],
    ) -> None:
        """`busy`: see DirectBatches."""
        self._name = name
        self._on_end = on_end
        writer = ArenaWriter(shared.inputs, shared.capacity)
        reader = ArenaReader(shared.outputs, shared.capacity)
        self._direct = Channel(shared.own_direct, writer, reader)
        self._events = Channel(shared.own_events, writer, reader)
        self._exchange = Exchange(self._events, writer, reader, services.workers, wait_to_send=False)
        self._batches = Batches(self._exchange)
        self._requests = ProcessRequests(services, self._exchange, self._batches)
        self._state_lock = threading.Lock()
        self._kill_reason = ""
        self._limit = self._time_limit(timer, timeout_s, "execute", "EXECUTION_TIMEOUT")
        self._plain = DirectBatches(
            self,
            self._direct,
            self._batches,
            self._requests,
            self._exchange,
            services.workers,
            self._limit,
            busy,
        )
        self._initialize_limit = self._time_limit(timer, timeout_s, "initialize", "EXECUTION_TIMEOUT")
        self._start_limit = self._time_limit(timer, start_timeout_s, "starting up", "stub-timeout-seconds")
        self._process: WatchedProcess | None = None
        self._gone = threading.Event()
        # Why the process is no more; None while it lives.
        self.end_error: InferenceError | None = None
        # What a process that completes a configuration has made of it, as JSON.
        self.completed: str | None = None
        self.is_async = False
        self.has_readiness_hook = False
        self.has_timed_out = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """See ProcessLife."""
        return self._gone.is_set()

    @property
    def has_run(self) -> bool:
        """Whether it has come to the end of a batch."""
        return self._batches.has_settled

    @property
    def is_executing(self) -> bool:
        """Whether it has batches that have not ended."""
        return self._batches.has_any

    def start(self, watch: ProcessWatch, shared: SharedFiles, command: Command) -> None:
        """Start the process and wait until its instance is initialized; raises InferenceError when it is not."""
        files = (
            command.launch_file,
            shared.direct.fileno(),
            shared.events.fileno(),
            shared.inputs,
            shared.outputs,
        )
        try:
            process = watch.spawn(command.arguments, files, command.variables, self._shut_down)
        except OSError as error:
            self._close()
            raise internal_error(
                f"the process of model instance '{self._name}' could not start: {error}"
            ) from error
        finally:
            os.close(command.launch_file)
            shared.close()
        with self._state_lock:
            self._process = process
            is_killed = bool(self._kill_reason)
        if is_killed:
            process.kill()
        threading.Thread(target=self._read_events, name=f"cantata-process-{self._name}", daemon=True).start()
        self._wait_until_started()

    def execute(self, execution: Execution) -> bool:
        """See BackendInstance."""
        if not self.is_async:
            return self._plain.execute(execution)
        self._start_in_background(execution)
        return False

    def ask_whether_ready(self) -> bool:
        """What the model's own `is_ready` says; raises InferenceError."""
        answer: bool = self._exchange.ask(messages.IS_READY, timeout_s=_READINESS_S)
        return answer

    def stop(self, timeout_s: float) -> None:
        """Have the model finalized, and the process end; it is killed when that takes longer."""
        assert self._process is not None
        # A batch that still runs has been waited for long enough.
        is_told = self._plain.send_when_idle((messages.STOP,), _ENDING_S)
        if not (is_told and self._process.ended.wait(timeout_s)):
            self.kill(f"was ended because it took longer than {timeout_s:g} s to finish")
        self._gone.wait()

    def wait_until_gone(self) -> InferenceError:
        """See ProcessLife."""
        self._gone.wait()
        assert self.end_error is not None
        return unavailable(self.end_error.message)

    def break_off(self) -> None:
        """See ProcessLife."""
        assert self._process is not None
        if not self._process.ended.wait(_ENDING_S):
            self.kill("was ended because it no longer talked to the server")

    def kill(self, reason: str) -> None:
        """End the process at once, or as soon as it starts; `reason` completes `the process ...`."""
        with self._state_lock:
            self._kill_reason = self._kill_reason or reason
            process = self._process
        if process is not None:
            process.kill()

    def _exceed(self, reason: str) -> None:
        self.has_timed_out = True
        self.kill(reason)

    def _time_limit(self, timer: Timer, limit_s: float | None, what: str, setting: str) -> TimeLimit | None:
        if limit_s is None:
            return None
        reason = f"was ended because {what} took longer than {setting} ({limit_s:g} s)"
        return TimeLimit(timer, limit_s, lambda: self._exceed(reason))

    def _wait_until_started(self) -> None:
        with _limited(self._start_limit), contextlib.ExitStack() as initializing:
            try:
                message = self._direct.receive()
                if message == (messages.LOADED,):
                    initializing.enter_context(_limited(self._initialize_limit))
                    message = self._direct.receive()
            except ChannelClosedError:
                raise self.wait_until_gone() from None
        match message:
            case (messages.STARTED, (bool(is_async), bool(has_readiness_hook))):
                self.is_async = is_async
                self.has_readiness_hook = has_readiness_hook
            case (messages.STARTED, completed):
                self.completed = completed
            case (messages.FAILED, error):
                self._gone.wait()
                raise decode_error(error)
            case _:
                self.break_off()
                raise self.wait_until_gone()

    def _start_in_background(self, execution: Execution) -> None:
        batches = self._batches
        keys = batches.begin_in_background(execution)
        batch = keys[0]
        try:
            message = batches.message(keys, execution)
            if self._limit is not None:
                self._limit.begin(batch)
            self._exchange.send(message)
        except BaseException:
            batches.take_from_background(batch)
            batches.forget(keys)
            raise
        if self.end_error is not None and batches.take_from_background(batch) is not None:
            # It came too late to be failed with the others.
            batches.forget(keys)
            raise unavailable(self.end_error.message)

    def _read_events(self) -> None:
        """Take events until the process has ended, then end what was left to it."""
        assert self._process is not None
        try:
            while True:
                self._take_event(self._events.receive())
        except (ChannelClosedError, BrokenMessageError, ValueError, TypeError, KeyError):
            self.break_off()
        except BaseException:
            _log.exception("a message of '%s' was not understood", self._name)
            self.break_off()
        self._process.ended.wait()
        error = self.end_error = unavailable(self._describe_end(self._process))
        # First, so that who is told of the end no longer finds the instance among those that run.
        self._on_end(error)
        self._gone.set()
        self._batches.fail(error)
        self._requests.close()
        self._close()

    def _close(self) -> None:
        self._plain.close()
        self._events.close()
        self._exchange.writer.close()
        self._exchange.reader.close()

    def _take_event(self, message: Message) -> None:
        if self._exchange.handle(message):
            return
        if message[0] == messages.DONE:
            self._finish(message[1], message)
        elif not self._requests.take(message):
            raise ChannelClosedError

    def _finish(self, batch: int, message: Message) -> None:
        if self._limit is not None:
            self._limit.end(batch)
        found = self._batches.in_background(batch)
        if found is None:
            return
        execution, keys = found
        # Where it is no end of a batch, the batch fails with all the others that the process had.
        self._batches.settle(execution, keys, message)
        self._batches.take_from_background(batch)
        execution.finish()

    def _shut_down(self) -> None:
        """The process has ended: let who reads come to the end of what it said."""
        self._events.shut_down()
        self._direct.shut_down()

    def _describe_end(self, process: WatchedProcess) -> str:
        code = process.return_code
        if self._kill_reason:
            how = self._kill_reason
        elif code < 0:
            how = f"was killed by {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                how += " (the system does that, too, when memory runs out)"
        else:
            how = f"ended with exit code {code}"
        text = f"the process of model instance '{self._name}' {how}"
        said = process.last_lines()[-_MOST_STDERR_CHARACTERS:].strip("\n")
        return f"{text}; its stderr ended with:\n{said}" if said else text


@contextlib.contextmanager
def _limited(limit: TimeLimit | None) -> Iterator[None]:
    if limit is not None:
        limit.begin(0)
    try:
        yield
    finally:
        if limit is not None:
            limit.end(0)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
