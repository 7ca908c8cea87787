"""One process that hosts one instance, from its start to its end, as the server sees it.

Owns the process, the two channels, the two arenas, and what becomes of requests when it ends. Starting again is not
its affair: a process ends once.
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
from cantata.bls.worker.exchange import Exchange
from cantata.bls.worker.inherited import Command, SharedFiles
from cantata.bls.worker.process_requests import ProcessRequests
from cantata.bls.worker.process_watch import ProcessWatch, WatchedProcess
from cantata.bls.worker.time_limit import TimeLimit
from cantata.bls.worker.wire import decode_error
from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, internal_error, unavailable
from cantata.runtime.execution.containment import run_contained
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.worker_pool import about_to_wait
from cantata.runtime.scheduling.timer import Timer

_log = logging.getLogger("cantata.python")

# Of what a process said last, this much is told to clients.
_MOST_STDERR_CHARACTERS: Final = 2000
# A process whose sockets are closed has this long to be seen to end by itself.
_ENDING_S: Final = 1.0
# How long a thread that serves others waits for the end of a batch, in milliseconds: where it has no FileWatch, or
# where nothing else is on the way to a process.
_PATIENCE_MS: Final = 1
# Where the last batch took longer, it does not wait at all.
_INSTANT_NS: Final = 1_000_000
# Stands for one that could not be read.
_NO_MESSAGE: Final[Message] = (-1,)
# A little more than a model's `is_ready` has there.
_READINESS_S: Final = 6.0


class WorkerProcess:
    """A process, once `start` has been called.

    `_direct_lock` is held by whoever uses the direct channel; `_state_lock` guards `_kill_reason` and `_process`.
    """

    def __init__(
        self,
        name: str,
        shared: SharedFiles,
        services: ServerServices,
        timer: Timer,
        timeout_s: float | None,
        start_timeout_s: float | None,
        on_end: Callable[[InferenceError], None],
        busy: set[WorkerProcess],
    ) -> None:
        """`busy` are the server's processes that execute a plain batch; it is touched by single operations only."""
        self._name = name
        self._busy = busy
        self._on_end = on_end
        writer = ArenaWriter(shared.inputs, shared.capacity)
        reader = ArenaReader(shared.outputs, shared.capacity)
        self._direct = Channel(shared.own_direct, writer, reader)
        self._events = Channel(shared.own_events, writer, reader)
        self._workers = services.workers
        self._exchange = Exchange(self._events, writer, reader, services.workers, wait_to_send=False)
        self._batches = Batches(self._exchange)
        self._requests = ProcessRequests(services, self._exchange, self._batches)
        self._direct_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._kill_reason = ""
        self._limit = self._time_limit(timer, timeout_s, "execute", "EXECUTION_TIMEOUT")
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
        # Whether it has come to the end of a batch, and whether the last one was over in an instant.
        self.has_run = False
        self._is_quick = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

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
        """See BackendInstance. On a thread that serves others, only a batch that ends in an instant is waited for."""
        if self.is_async:
            self._start_in_background(execution)
            return False
        self._direct_lock.acquire()
        keys: list[int] = []
        try:
            keys = self._begin(execution)
            self._direct.tell(execution.watch)
            message = self._sent(self._batches.message(keys, execution))
            sent_ns = monotonic_ns()
            if execution.may_be_left:
                message = message or self._said_at_once(execution)
                if not _is_end(message) and self._is_left(execution, keys, message):
                    return False
        except BaseException:
            if keys:
                self._batches.forget(keys)
                self._end(keys)
            self._direct_lock.release()
            raise
        if not _is_end(message):
            about_to_wait()
        try:
            self.wait_for_end(execution, keys, message)
        finally:
            execution.waited_ns = (execution.resumed_ns or monotonic_ns()) - sent_ns
        return True

    def wait_for_end(self, execution: Execution, keys: list[int], message: Message | None) -> None:
        """Wait for the end of a batch that has begun, and do what its model asks for meanwhile.

        `message` is what the process has said already. Raises InferenceError when the process ends before the batch.
        Gives the direct channel back.
        """
        try:
            try:
                while message is None or message[0] != messages.DONE:
                    if message is not None:
                        self._answer_directly(message)
                    message = self._direct.receive()
                execution.resumed_ns = now_ns = monotonic_ns()
                self._is_quick = now_ns - execution.start_ns < _INSTANT_NS
                self._settle(execution, keys, message)
                self.has_run = True
            except ChannelClosedError:
                raise self._end_of_process(keys) from None
            except BaseException:
                self._batches.forget(keys)
                raise
            finally:
                self._end(keys)
            if self._gone.is_set():
                # The batch ended just before the process did, which left these requests to it.
                self._exchange.end(self._wait_until_gone())
        finally:
            self._direct_lock.release()

    def ask_whether_ready(self) -> bool:
        """What the model's own `is_ready` says; raises InferenceError."""
        answer: bool = self._exchange.ask(messages.IS_READY, timeout_s=_READINESS_S)
        return answer

    def stop(self, timeout_s: float) -> None:
        """Have the model finalized, and the process end; it is killed when that takes longer."""
        assert self._process is not None
        # A batch that still runs has been waited for long enough.
        has_lock = self._direct_lock.acquire(timeout=_ENDING_S)
        if has_lock:
            with contextlib.suppress(ChannelClosedError):
                self._direct.send((messages.STOP,))
            self._direct_lock.release()
        if not (has_lock and self._process.ended.wait(timeout_s)):
            self.kill(f"was ended because it took longer than {timeout_s:g} s to finish")
        self._gone.wait()

    def wait_until_ended(self) -> None:
        """Wait for a process that ends by itself."""
        self._wait_until_gone()

    def kill(self, reason: str) -> None:
        """End the process at once, or as soon as it starts; `reason` completes `the process ...`."""
        with self._state_lock:
            self._kill_reason = self._kill_reason or reason
            process = self._process
        if process is not None:
            process.kill()

    def _begin(self, execution: Execution) -> list[int]:
        """A batch keeps the process busy, until `_end`; the caller has the direct channel."""
        if self.end_error is not None:
            raise unavailable(self.end_error.message)
        keys = self._batches.begin(execution)
        self._busy.add(self)
        if self._limit is not None:
            self._limit.begin(keys[0])
        return keys

    def _is_left(self, execution: Execution, keys: list[int], message: Message | None) -> bool:
        """Have somebody else wait for the end of a batch, with the direct channel; False where there is nobody."""
        rest = RestOfBatch(self, execution, keys)
        execution.keeps_instance = True
        if message is None and execution.watch is not None:
            self._direct.leave(rest)
        else:
            execution.keeps_instance = self.hand_over_rest(rest, message)
        return execution.keeps_instance

    def hand_over_rest(self, rest: RestOfBatch, message: Message | None) -> bool:
        """Have a worker go on with a batch; False where there is none, and no thread for one can be started."""
        self._direct.tell(None)
        rest.message, rest.is_quick = message, False
        try:
            self._workers.hand_over(rest)
        except RuntimeError:
            return False
        return True

    def _end(self, keys: list[int]) -> None:
        """A batch keeps the process busy no longer."""
        self._busy.discard(self)
        self._batches.end(keys)
        if self._limit is not None:
            self._limit.end(keys[0])

    def _sent(self, message: Message) -> Message | None:
        """Send on the direct channel; `_NO_MESSAGE` where the process hears no more.

        It is not raised: that a process has ended is noticed by whoever waits for its answer.
        """
        try:
            self._direct.send(message)
        except ChannelClosedError:
            return _NO_MESSAGE
        return None

    def _said_at_once(self, execution: Execution) -> Message | None:
        """What the process says on the direct channel in an instant; None where it says nothing yet."""
        if not self._is_quick:
            return None
        # Where other processes have batches, or other requests wait, the processors have better things to do.
        stays_awake = len(self._busy) == 1 and len(execution.requests) == 1
        milliseconds = _PATIENCE_MS if stays_awake or execution.watch is None else 0
        if self._direct.has_message_within(milliseconds, stays_awake=stays_awake):
            return self.next_message()
        return None

    def next_message(self) -> Message:
        """What the process says on the direct channel; `_NO_MESSAGE` where it can say no more.

        Whoever waits on then asks nothing of the process, and sees it end.
        """
        try:
            return self._direct.receive()
        except ChannelClosedError:
            return _NO_MESSAGE

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
                raise self._wait_until_gone() from None
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
                self._break_off()
                raise self._wait_until_gone()

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

    def _settle(self, execution: Execution, keys: list[int], message: Message) -> None:
        """Take the end of a batch; what else it may be is a broken process."""
        try:
            self._batches.settle(execution, keys, message)
        except BrokenMessageError as error:
            self._break_off()
            raise ChannelClosedError from error

    def _answer_directly(self, message: Message) -> None:
        outcome = self._requests.answer_directly(message)
        if outcome is None:
            self._break_off()
            raise ChannelClosedError
        self._direct.send((messages.ANSWER, *outcome))

    def _end_of_process(self, keys: list[int]) -> InferenceError:
        """The error of a batch whose process has ended under it."""
        error = self._wait_until_gone()
        self._batches.forget(keys)
        return error

    def _wait_until_gone(self) -> InferenceError:
        self._gone.wait()
        assert self.end_error is not None
        return unavailable(self.end_error.message)

    def _read_events(self) -> None:
        """Take events until the process has ended, then end what was left to it."""
        assert self._process is not None
        try:
            while True:
                self._take_event(self._events.receive())
        except (ChannelClosedError, BrokenMessageError, ValueError, TypeError, KeyError):
            self._break_off()
        except BaseException:
            _log.exception("a message of '%s' was not understood", self._name)
            self._break_off()
        self._process.ended.wait()
        error = self.end_error = unavailable(self._describe_end(self._process))
        # First, so that who is told of the end no longer finds the instance among those that run.
        self._on_end(error)
        self._gone.set()
        self._batches.fail(error)
        self._requests.close()
        with self._direct_lock:
            self._close()

    def _close(self) -> None:
        self._events.close()
        self._direct.close()
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
        self.has_run = True
        execution.finish()

    def _shut_down(self) -> None:
        """The process has ended: let who reads come to the end of what it said."""
        self._events.shut_down()
        self._direct.shut_down()

    def _break_off(self) -> None:
        """The process no longer talks, or not what we understand: end it."""
        assert self._process is not None
        if not self._process.ended.wait(_ENDING_S):
            self.kill("was ended because it no longer talked to the server")

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


class RestOfBatch:
    """A batch that a thread which serves others has begun, and has left.

    To be run by that thread when the process has said something, or by a worker, which waits for the end.
    """

    __slots__ = ("_execution", "_keys", "_process", "is_quick", "message")

    is_quick_alone = False
    may_wait = False

    def __init__(self, process: WorkerProcess, execution: Execution, keys: list[int]) -> None:
        self._process = process
        self._execution = execution
        self._keys = keys
        # Whether it is run by the thread that has begun it; what the process has said to it, otherwise.
        self.is_quick = True
        self.message: Message | None = None

    def run(self) -> None:
        process = self._process
        if self.is_quick:
            message = self.message = process.next_message()
            if not _is_end(message) and process.hand_over_rest(self, message):
                return
        run_contained(self._go_on, self._execution)
        self._execution.finish()

    def _go_on(self, execution: Execution) -> bool:
        self._process.wait_for_end(execution, self._keys, self.message)
        return True


def _is_end(message: Message | None) -> bool:
    """Whether the process has said that the batch is over."""
    return message is not None and message[0] == messages.DONE


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
