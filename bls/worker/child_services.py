"""The server as a model's process sees it: calls to other models, questions, and whether a request is cancelled.

A call that the executing thread waits for is made on the direct channel, whose other end waits for that very thread;
all others go over the events channel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from cantata.bls.response_iterator import ResponseFeed
from cantata.bls.worker import messages
from cantata.bls.worker.channel import Channel, Message
from cantata.bls.worker.exchange import Exchange, RemoteSender, value_of
from cantata.bls.worker.remote_metrics import RemoteMetrics
from cantata.bls.worker.wire import WireWait, decode_response, encode_request
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.request import Cancellation, InferenceRequest, LinkedCancellation


class DirectLine:
    """The direct channel while a batch is executed: the executing thread may ask, and is answered at once."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._executing_thread = 0

    def open(self) -> None:
        """The server waits for the end of a batch that the current thread executes, until `close`."""
        self._executing_thread = threading.get_ident()

    def close(self) -> None:
        """It waits no more."""
        self._executing_thread = 0

    @property
    def is_mine(self) -> bool:
        """Whether the current thread is the executing one."""
        return self._executing_thread == threading.get_ident()

    def ask(self, message: Message) -> Any:
        """The value of the answer; raises the InferenceError that it holds instead."""
        self._channel.send(message)
        _, value, error = self._channel.receive()
        return value_of(value, error)


class ChildServices:
    """See ServerServices."""

    def __init__(self, exchange: Exchange, line: DirectLine, workers: WorkerPool) -> None:
        self.exchange = exchange
        self._line = line
        self._workers = workers

    @property
    def workers(self) -> WorkerPool:
        return self._workers

    def submit(self, request: InferenceRequest) -> None:
        _make_plain(request)
        self._call(request)

    def run_now(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        """See ServerServices; where the server waits for this thread, it is asked and answers at once."""
        if only_if_quick or not self._line.is_mine:
            return False
        _make_plain(request)
        self._call_directly(request)
        return True

    def is_decoupled(self, model_name: str, model_version: int) -> bool:
        answer: bool = self.ask(messages.IS_DECOUPLED, str(model_name), int(model_version))
        return answer

    def batches_here(self, model_name: str, model_version: int) -> bool:
        """No model runs here but the process's own."""
        return False

    def is_model_ready(self, model_name: str, model_version: int) -> bool:
        answer: bool = self.ask(messages.IS_MODEL_READY, str(model_name), int(model_version))
        return answer

    def load_model(self, model_name: str, parameters: Mapping[str, str | bytes]) -> None:
        self.ask(messages.LOAD_MODEL, str(model_name), dict(parameters))

    def unload_model(self, model_name: str, unload_dependents: bool) -> None:
        self.ask(messages.UNLOAD_MODEL, str(model_name), unload_dependents)

    @property
    def custom_metrics(self) -> RemoteMetrics:
        return RemoteMetrics(self.ask)

    def ask(self, name: str, *arguments: Any) -> Any:
        """What the server answers to a question; raises InferenceError."""
        if self._line.is_mine:
            return self._line.ask((messages.QUERY, 0, name, arguments))
        return self.exchange.ask(name, *arguments)

    def _call_directly(self, request: InferenceRequest) -> None:
        exchange = self.exchange
        caller = _caller_of(request.cancellation)
        responses = self._line.ask(
            (messages.CALL, _waits_of(request), caller, False, encode_request(0, request, exchange.writer))
        )
        name, version, request_id = request.model_name, request.model_version, request.id
        for index, encoded in enumerate(responses, 1):
            response = decode_response(encoded, name, version, request_id, exchange.reader)
            request.respond(response, index == len(responses))
        request.respond(None, True)

    def _call(self, request: InferenceRequest) -> None:
        exchange = self.exchange
        key = exchange.add(request)
        try:
            encoded = encode_request(key, request, exchange.writer)
            is_decoupled = isinstance(request.sender, ResponseFeed)
            exchange.send((messages.CALL, _waits_of(request), 0, is_decoupled, encoded))
        except BaseException:
            exchange.take_back(key)
            raise
        exchange.watch(key)


class RemoteCancellation(Cancellation):
    """Whether a request of the server's is cancelled. The server is asked when the model first wants to know.

    After that it tells by itself: most requests are over before anybody asks.
    """

    __slots__ = ("_is_watched", "_services", "_value", "key", "sender")

    def __init__(self, key: int, services: ChildServices) -> None:
        self._is_watched = False
        self._value = False
        self.has_expired = False
        self.expires_ns = 0
        self._services = services
        self.key = key
        self.sender: RemoteSender | None = None

    @property
    def is_cancelled(self) -> bool:
        if not self._is_watched:
            self._watch()
        return self._value

    @is_cancelled.setter
    def is_cancelled(self, value: bool) -> None:
        self._value = value

    def cancel(self) -> None:
        if self._is_watched:
            super().cancel()

    def add_listener(self, key: object, listener: Callable[[], None]) -> None:
        if not self._is_watched:
            self._watch()
        super().add_listener(key, listener)

    def remove_listener(self, key: object) -> None:
        if self._is_watched:
            super().remove_listener(key)

    def _watch(self) -> None:
        super().__init__()
        self._is_watched = True
        services = self._services
        if self.sender is not None:
            services.exchange.answering[self.key] = self.sender
        if services.ask(messages.IS_CANCELLED, self.key):
            super().cancel()


class OuterWait:
    """Stands, as an execution's instance, for what waits for a request of the server's."""

    __slots__ = ("key",)

    def __init__(self, key: int) -> None:
        self.key = key


def _caller_of(cancellation: Cancellation) -> int:
    """The key of the request whose cancellation a call shares, or follows; 0 where it is nobody's."""
    if isinstance(cancellation, LinkedCancellation):
        return 0 if cancellation.outer is None else _caller_of(cancellation.outer)
    return cancellation.key if isinstance(cancellation, RemoteCancellation) else 0


def _waits_of(request: InferenceRequest) -> list[WireWait]:
    waits: list[WireWait] = []
    for execution in request.waiting:
        instance = execution.instance
        if isinstance(instance, int):
            waits.append((True, instance))
        elif isinstance(instance, OuterWait):
            waits.append((False, instance.key))
    return waits


def _make_plain(request: InferenceRequest) -> None:
    """Replace subclasses of the plain types, such as numpy's numbers, which no message holds."""
    request.model_name = str(request.model_name)
    request.model_version = int(request.model_version)
    request.id = str(request.id)
    request.requested_outputs = tuple(map(str, request.requested_outputs))
    is_text = isinstance(request.correlation_id, str)
    request.correlation_id = str(request.correlation_id) if is_text else int(request.correlation_id)
    request.flags = int(request.flags)
    request.priority = int(request.priority)
    request.timeout_us = int(request.timeout_us)
