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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from cantata.bls.worker import messages
from cantata.bls.worker.arena import ArenaReader, ArenaWriter, create_memory
from cantata.bls.worker.channel import Channel, ChannelClosedError, Message, open_pair
from cantata.bls.worker.exchange import Exchange, RemoteSender, outcome_of
from cantata.bls.worker.process_watch import ProcessWatch, WatchedProcess
from cantata.bls.worker.questions import Questions
from cantata.bls.worker.time_limit import TimeLimit
from cantata.bls.worker.wire import (
    Again,
    WireRequest,
    WireResponse,
    WireSequel,
    WireWait,
    decode_error,
    decode_request,
    decode_response,
    decode_tensors,
    encode_request,
    encode_response,
)
from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.errors import InferenceError, internal_error, unavailable
from cantata.runtime.execution.calls import WaitingSender, submit_and_wait
from cantata.runtime.execution.execution import Execution
from cantata.runtime.request import Cancellation, InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.timer import Timer

# Of what a process said last, this much is told to clients.
_MOST_STDERR_CHARACTERS: Final = 2000
# A process whose sockets are closed has this long to be seen to end by itself.
_ENDING_S: Final = 1.0
# A little more than a model's `is_ready` has there.
_READINESS_S: Final = 6.0


class SharedFiles:
    """The file descriptors that the process inherits, under the same numbers."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        with contextlib.ExitStack() as opened:
            self.inputs = create_memory(capacity)
            opened.callback(os.close, self.inputs)
            self.outputs = create_memory(capacity)
            opened.callback(os.close, self.outputs)
            self.own_direct, self.direct = open_pair()
            opened.callback(self.direct.close)
            self.own_events, self.events = open_pair()
            opened.callback(self.events.close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close what only the process needs."""
        self._opened.close()


class Command:
    """A process to start: its arguments, its variables, and the file that tells it what to do."""

    def __init__(self, arguments: Sequence[str], variables: dict[str, str], launch_file: int) -> None:
        self.arguments = arguments
        self.variables = variables
        self.launch_file = launch_file


class WorkerProcess:
    """A process that has been started.

    `_direct_lock` is held by whoever uses the direct channel; `_state_lock` guards `_kill_reason`.
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
    ) -> None:
        self._name = name
        self._services = services
        self._questions = Questions(services)
        self._on_end = on_end
        writer = ArenaWriter(shared.inputs, shared.capacity)
        reader = ArenaReader(shared.outputs, shared.capacity)
        self._direct = Channel(shared.own_direct, writer, reader)
        self._events = Channel(shared.own_events, writer, reader)
        self._exchange = Exchange(self._events, writer, reader, services.workers, wait_to_send=False)
        self._direct_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._kill_reason = ""
        self._limit = self._time_limit(timer, timeout_s, "execute", "EXECUTION_TIMEOUT")
        self._initialize_limit = self._time_limit(timer, timeout_s, "initialize", "EXECUTION_TIMEOUT")
        self._start_limit = self._time_limit(timer, start_timeout_s, "starting up", "stub-timeout-seconds")
        self._process: WatchedProcess | None = None
        # Batches that run in the background, by their number.
        self._batches: dict[int, tuple[Execution, list[int]]] = {}
        # The batches that keep the instance busy, by their number: those of a coroutine do not.
        self._running: dict[int, Execution] = {}
        # The requests that `execute` waits for.
        self._executing: list[int] = []
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
            self._process = watch.spawn(command.arguments, files, command.variables, self._shut_down)
        except OSError as error:
            self._close()
            raise internal_error(
                f"the process of model instance '{self._name}' could not start: {error}"
            ) from error
        finally:
            os.close(command.launch_file)
            shared.close()
        threading.Thread(target=self._read_events, name=f"cantata-process-{self._name}", daemon=True).start()
        self._wait_until_started()

    def execute(self, execution: Execution) -> bool:
        """See BackendInstance."""
        if self.is_async:
            self._start_in_background(execution)
            return False
        with self._direct_lock:
            if self.end_error is not None:
                raise unavailable(self.end_error.message)
            keys = self._add(execution)
            batch = keys[0]
            self._executing = keys
            self._running[batch] = execution
            if self._limit is not None:
                self._limit.begin(batch)
            try:
                self._direct.send(self._batch_message(batch, keys, execution))
                while (message := self._direct.receive())[0] != messages.DONE:
                    self._answer_directly(message)
                self._settle(execution, keys, message)
            except ChannelClosedError:
                raise self._end_of_process(keys) from None
            except BaseException:
                self._forget(keys)
                raise
            finally:
                self._executing = []
                self._running.pop(batch, None)
                if self._limit is not None:
                    self._limit.end(batch)
            if self._gone.is_set():
                # The batch ended just before the process did, which left these requests to it.
                self._exchange.end(self._wait_until_gone())
        return True

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
        """End the process at once; `reason` completes `the process ...`."""
        with self._state_lock:
            self._kill_reason = self._kill_reason or reason
        assert self._process is not None
        self._process.kill()

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

    def _add(self, execution: Execution) -> list[int]:
        add = self._exchange.add
        # A request that comes again to its response sender is known by its key.
        return [
            request.carried if isinstance(request.carried, int) else add(request)
            for request in execution.requests
        ]

    def _forget(self, keys: list[int]) -> None:
        for key in keys:
            self._exchange.take_back(key)

    def _batch_message(self, batch: int, keys: list[int], execution: Execution) -> Message:
        writer = self._exchange.writer
        requests = [
            encode_request(key, request, writer)
            for key, request in zip(keys, execution.requests, strict=True)
        ]
        return (messages.EXECUTE, batch, execution.start_ns, execution.batch_size, requests)

    def _start_in_background(self, execution: Execution) -> None:
        keys = self._add(execution)
        batch = keys[0]
        try:
            message = self._batch_message(batch, keys, execution)
            self._batches[batch] = (execution, keys)
            if self._limit is not None:
                self._limit.begin(batch)
            self._exchange.send(message)
        except BaseException:
            self._batches.pop(batch, None)
            self._forget(keys)
            raise
        if self.end_error is not None and self._batches.pop(batch, None) is not None:
            # It came too late to be failed with the others.
            self._forget(keys)
            raise unavailable(self.end_error.message)

    def _settle(self, execution: Execution, keys: list[int], message: Message) -> None:
        """Take the end of a batch; what else it may be is a broken process."""
        try:
            _, _, execution.input_end_ns, execution.output_start_ns, responses, sequels = message
            spec = execution.spec
            reader = self._exchange.reader
            for index, (key, response) in enumerate(zip(keys, responses, strict=True)):
                if response is not None:
                    self._exchange.take_back(key)
                    execution.responses[index] = decode_response(
                        response, spec.model_name, spec.model_version, execution.requests[index].id, reader
                    )
            for request, key, sequel in zip(
                execution.requests, keys, sequels or (), strict=sequels is not None
            ):
                self._take_sequel(execution, request, key, sequel)
        except (ValueError, TypeError, KeyError) as error:
            self._break_off()
            raise ChannelClosedError from error

    def _take_sequel(
        self, execution: Execution, request: InferenceRequest, key: int, sequel: WireSequel
    ) -> None:
        number, states = sequel
        again = Again(number)
        request.carried = key if again is Again.CARRIED else None
        if again is not Again.NO:
            execution.reschedule(request)
            if again is Again.YES:
                self._exchange.take_back(key)
        if states is not None and request.states is not None:
            request.states.update(decode_tensors(states, self._exchange.reader))

    def _end_of_process(self, keys: list[int]) -> InferenceError:
        """The error of a batch whose process has ended under it."""
        error = self._wait_until_gone()
        self._forget(keys)
        return error

    def _wait_until_gone(self) -> InferenceError:
        self._gone.wait()
        assert self.end_error is not None
        return unavailable(self.end_error.message)

    def _answer_directly(self, message: Message) -> None:
        """Do what the executing thread asks for, on this one, which waits for it."""
        match message:
            case (messages.CALL, waiting, caller, encoded):
                outcome = outcome_of(lambda: self._call_and_wait(waiting, caller, encoded))
            case (messages.QUERY, _, name, arguments):
                outcome = outcome_of(lambda: self._answer_to(name, arguments))
            case _:
                self._break_off()
                raise ChannelClosedError
        self._direct.send((messages.ANSWER, *outcome))

    def _call_and_wait(
        self, waiting: list[WireWait], caller: int, encoded: WireRequest
    ) -> list[WireResponse]:
        outer = self._exchange.sent.get(caller)
        cancellation = Cancellation() if outer is None else outer.cancellation
        request = decode_request(encoded, WaitingSender(), cancellation, self._exchange.reader)
        request.waiting = self._executions_of(waiting)
        responses = submit_and_wait(self._services.submit, self._services.workers, request)
        return [encode_response(response, self._exchange.writer) for response in responses]

    def _answer_to(self, name: str, arguments: tuple[Any, ...]) -> Any:
        match name, arguments:
            case messages.IS_CANCELLED, (int(key),):
                return self._exchange.watch(key)
            case _:
                return self._questions.answer(name, arguments)

    def _answer_question(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        self._exchange.answer(number, lambda: self._answer_to(name, arguments))

    def _answer_slowly(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        with contextlib.suppress(ChannelClosedError):
            self._answer_question(number, name, arguments)

    def _read_events(self) -> None:
        """Take events until the process has ended, then end what was left to it."""
        assert self._process is not None
        try:
            while True:
                self._take_event(self._events.receive())
        except (ChannelClosedError, ValueError, TypeError, KeyError):
            self._break_off()
        except BaseException:
            logging.getLogger("cantata.python").exception("a message of '%s' was not understood", self._name)
            self._break_off()
        self._process.ended.wait()
        error = self.end_error = unavailable(self._describe_end(self._process))
        # First, so that who is told of the end no longer finds the instance among those that run.
        self._on_end(error)
        self._gone.set()
        for batch in list(self._batches):
            self._fail_batch(batch, error)
        # Those that `execute` waits for are failed by it.
        self._exchange.end(error, self._executing)
        self._questions.close()
        with self._direct_lock:
            self._close()

    def _close(self) -> None:
        self._events.close()
        self._direct.close()
        self._exchange.writer.close()
        self._exchange.reader.close()

    def _take_event(self, message: Message) -> None:
        exchange = self._exchange
        if exchange.handle(message):
            return
        match message:
            case (messages.DONE, batch, *_):
                self._finish(batch, message)
            case (messages.CALL, waiting, _, encoded):
                self._call(waiting, encoded)
            case (messages.QUERY, number, name, arguments):
                if self._questions.is_slow(name):
                    threading.Thread(
                        target=self._answer_slowly, args=(number, name, arguments), daemon=True
                    ).start()
                else:
                    self._answer_question(number, name, arguments)
            case (messages.LOG, name, level, text, path, line):
                _log(name, level, text, path, line)
            case _:
                raise ChannelClosedError

    def _finish(self, batch: int, message: Message) -> None:
        found = self._batches.pop(batch, None)
        if self._limit is not None:
            self._limit.end(batch)
        if found is None:
            return
        execution, keys = found
        try:
            self._settle(execution, keys, message)
        except ChannelClosedError:
            self._batches[batch] = found
            raise
        execution.finish()

    def _fail_batch(self, batch: int, error: InferenceError) -> None:
        found = self._batches.pop(batch, None)
        if found is None:
            return
        execution, keys = found
        self._forget(keys)
        for index, request in enumerate(execution.requests):
            if execution.responses[index] is None and not request.is_finished:
                execution.responses[index] = InferenceResponse(
                    request.model_name, request.model_version, request.id, {}, error=error
                )
        execution.finish()

    def _executions_of(self, waiting: list[WireWait]) -> tuple[Execution, ...]:
        """The executions that wait for a call: batches of this process, and those that wait for its requests."""
        found: dict[Execution, None] = {}
        for is_batch, number in waiting:
            if is_batch:
                execution = self._running.get(number)
                if execution is not None:
                    found[execution] = None
            elif (request := self._exchange.sent.get(number)) is not None:
                found.update(dict.fromkeys(request.waiting))
        return tuple(found)

    def _call(self, waiting: list[WireWait], encoded: WireRequest) -> None:
        """Send a request of the model's on its way; its responses go back as they come."""
        cancellation = Cancellation()
        key, name = encoded[0], encoded[1]
        sender = RemoteSender(self._exchange, key, cancellation)
        self._exchange.answering[key] = sender
        try:
            request = decode_request(encoded, sender, cancellation, self._exchange.reader)
            request.waiting = self._executions_of(waiting)
            self._services.submit(request)
        except InferenceError as error:
            refusal = error.within(f"Model {name} - Error when running inference: ")
            sender.send(InferenceResponse(name, -1, "", {}, error=refusal), True)

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


def _log(name: str, level: int, text: str, path: str, line: int) -> None:
    log = logging.getLogger(name)
    if log.isEnabledFor(level):
        log.handle(log.makeRecord(name, level, path, line, text, (), None))
