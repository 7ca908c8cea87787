"""A model's own process: hosts one instance, and does what the server's messages say.

Owns the process' main thread, on which plain `execute` runs, and the thread that reads the events. How the model is
hosted is the same as in the server (`hosting.py`).
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cantata.bls.abandoned import Reaper
from cantata.bls.hosting import HostedCode, import_code
from cantata.bls.instance import PythonInstance
from cantata.bls.worker import messages
from cantata.bls.worker.arena import ArenaFullError, ArenaReader, ArenaWriter
from cantata.bls.worker.channel import Channel, ChannelClosedError, Message
from cantata.bls.worker.child_services import ChildServices, DirectLine, OuterWait, RemoteCancellation
from cantata.bls.worker.exchange import Exchange, RemoteSender
from cantata.bls.worker.launch import Launch
from cantata.bls.worker.wire import (
    WireResponse,
    decode_request,
    encode_error,
    encode_response,
    encode_sequels,
    is_waited_for,
)
from cantata.runtime.backends.backend import InstancePlacement, ModelFiles
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest

# How long it looks for a batch that is likely to come at once. That keeps a processor awake, too.
_AWAKE_NS: Final = 150_000


def run(launch: Launch) -> None:
    """Load the model, and serve until the server says that it is over. Does not return."""
    inputs = ArenaReader(launch.inputs, launch.capacity)
    outputs = ArenaWriter(launch.outputs, launch.capacity)
    direct = Channel(socket.socket(fileno=launch.direct), outputs, inputs)
    events = Channel(socket.socket(fileno=launch.events), outputs, inputs)
    workers = WorkerPool()
    exchange = Exchange(events, outputs, inputs, workers, wait_to_send=True)
    _send_logs(launch, events)
    host = _Host(launch, direct, events, exchange, workers)
    threading.Thread(target=host.read_events, name="cantata-events", daemon=True).start()
    status = 0
    try:
        host.serve()
    except ChannelClosedError:
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that the model has left behind must not keep the process.
    os._exit(status)


def _never(execution: Execution) -> None:
    """For an execution that is over when `execute` returns."""


class _Host:
    def __init__(
        self, launch: Launch, direct: Channel, events: Channel, exchange: Exchange, workers: WorkerPool
    ) -> None:
        self._launch = launch
        self._direct = direct
        self._events = events
        self._exchange = exchange
        self._line = DirectLine(direct)
        self._services = ChildServices(exchange, self._line, workers)
        self._workers = workers
        self._reaper = Reaper()
        self._instance: PythonInstance | None = None
        self._spec: ModelSpec | None = None
        # Requests that come again, by their keys, whose response senders the model has.
        self._carried: dict[int, InferenceRequest] = {}

    def serve(self) -> None:
        """Load, and run what comes on the direct channel. Raises ChannelClosedError when the server is gone."""
        try:
            started = self._load()
        except InferenceError as error:
            self._direct.send((messages.FAILED, encode_error(error)))
            return
        self._direct.send((messages.STARTED, started))
        if self._instance is None:
            return
        while self._run_next():
            # Nothing of a batch is kept while the next one is waited for.
            continue
        self._instance.close()
        self._reaper.close()

    def _run_next(self) -> bool:
        """Run the next batch of the direct channel; False when there are no more."""
        message = self._direct.receive()
        if message[0] == messages.STOP:
            return False
        assert self._instance is not None
        self._line.open()
        execution = self._execution(message)
        # A plain `execute`: it is over when it returns.
        self._instance.execute(execution)
        self._line.close()
        self._direct.send(self._done(message[1], execution))
        if message[-1]:
            self._direct.looks_for_message(_AWAKE_NS)
        return True

    def read_events(self) -> None:
        """Take events until the server is gone, and end the process then."""
        try:
            while True:
                message = self._events.receive()
                if self._exchange.handle(message):
                    continue
                match message:
                    case (messages.EXECUTE, *_):
                        self._start_execution(message)
                    case (messages.QUERY, number, messages.IS_READY, ()):
                        self._workers.hand_over(_Answering(self._exchange, number, self._is_ready))
        finally:
            os._exit(1)

    def _load(self) -> Any:
        """What STARTED says; see messages.py."""
        launch = self._launch
        files = ModelFiles(
            launch.model_name,
            launch.model_version,
            Path(launch.model_directory),
            Path(launch.version_directory),
        )
        code = import_code(files, launch.filename, self._services, self._reaper, leaves_refusals=True)
        if not launch.spec:
            completed = code.complete(json.loads(launch.config_text))
            return None if completed is None else json.dumps(completed)
        self._reaper.start()
        self._direct.send((messages.LOADED,))
        return self._make_instance(code)

    def _make_instance(self, code: HostedCode) -> tuple[bool, bool]:
        launch = self._launch
        self._spec = pickle.loads(launch.spec)
        placement = InstancePlacement(launch.instance_name, launch.instance_kind, launch.device_id)
        instance = self._instance = code.create_instance(placement, self._spec, launch.config_text)
        return instance.is_async, instance.has_readiness_hook

    def _is_ready(self) -> bool:
        assert self._instance is not None
        return self._instance.is_ready()

    def _start_execution(self, message: Message) -> None:
        assert self._instance is not None
        batch = message[1]
        execution = self._execution(
            message, lambda execution: self._exchange.send(self._done(batch, execution))
        )
        if self._instance.execute(execution):
            execution.finish()

    def _execution(self, message: Message, on_finish: Callable[[Execution], None] = _never) -> Execution:
        _, batch, start_ns, batch_size, encoded, _ = message
        assert self._spec is not None
        requests = []
        for wire_request in encoded:
            key = wire_request[0]
            cancellation = RemoteCancellation(key, self._services)
            sender = RemoteSender(self._exchange, key, cancellation)
            cancellation.sender = sender
            request = decode_request(wire_request, sender, cancellation, self._exchange.reader)
            request = self._resumed(key, request)
            if self._spec.state_outputs:
                request.states = {}
            if is_waited_for(wire_request):
                request.waiting = (Execution(self._spec, [], 0, 0, _never, OuterWait(key)),)
            requests.append(request)
        return Execution(self._spec, requests, batch_size, start_ns, on_finish, batch)

    def _done(self, batch: int, execution: Execution) -> Message:
        responses: list[WireResponse | None] = []
        answering = self._exchange.answering
        for request, response in zip(execution.requests, execution.responses, strict=True):
            if response is None:
                responses.append(None)
                continue
            if answering and isinstance(request.cancellation, RemoteCancellation):
                answering.pop(request.cancellation.key, None)
            responses.append(encode_response(response, self._exchange.writer))
        try:
            sequels = encode_sequels(execution, self._exchange.writer)
        except InferenceError as error:
            responses = [(None, None, encode_error(error))] * len(responses)
            sequels = None
        for request in execution.rescheduled_requests() if sequels is not None else ():
            if request.carried is not None and isinstance(request.cancellation, RemoteCancellation):
                self._carried[request.cancellation.key] = request
        return (messages.DONE, batch, execution.input_end_ns, execution.output_start_ns, responses, sequels)

    def _resumed(self, key: int, request: InferenceRequest) -> InferenceRequest:
        """A request that comes again is the one that the model has the response sender of."""
        carried = self._carried.pop(key, None)
        if carried is None:
            return request
        carried.inputs, carried.flags = request.inputs, request.flags
        return carried


class _Answering:
    """A question of the server that takes its time."""

    is_quick = False
    is_quick_alone = False
    may_wait = False

    def __init__(self, exchange: Exchange, number: int, produce: Any) -> None:
        self._exchange = exchange
        self._number = number
        self._produce = produce

    def run(self) -> None:
        self._exchange.answer(self._number, self._produce)


class _ServersLog(logging.Handler):
    """Hands records to the server, whose log they belong in."""

    def __init__(self, events: Channel) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            self._events.send(
                (messages.LOG, record.name, record.levelno, text, record.pathname, record.lineno)
            )
        except (ChannelClosedError, ArenaFullError):
            return
        except Exception:
            self.handleError(record)


def _send_logs(launch: Launch, events: Channel) -> None:
    handler = _ServersLog(events)
    # With the traceback, where there is one; the rest is the server's to add.
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=launch.root_log_level, handlers=[handler])
    logging.getLogger("cantata").setLevel(launch.log_level)
