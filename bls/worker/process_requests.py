"""What one model's process asks of the server: calls of other models, questions, lines for the log.

Owns what is done for it, and on which thread. Knows no process: whether it lives is `worker_process.py`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any

from cantata.bls.calls import refusal_of
from cantata.bls.worker import messages
from cantata.bls.worker.batches import Batches
from cantata.bls.worker.channel import ChannelClosedError, Message
from cantata.bls.worker.exchange import Exchange, RemoteSender, outcome_of
from cantata.bls.worker.questions import Questions
from cantata.bls.worker.wire import (
    WireRequest,
    WireResponse,
    WireWait,
    decode_request,
    encode_error,
    encode_response,
    traced_key,
)
from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.calls import WaitingSender, call_and_wait
from cantata.runtime.request import Cancellation, InferenceRequest, LinkedCancellation
from cantata.runtime.response import InferenceResponse


class ProcessRequests:
    """Any thread may call."""

    def __init__(self, services: ServerServices, exchange: Exchange, batches: Batches) -> None:
        self._services = services
        self._exchange = exchange
        self._batches = batches
        self._questions = Questions(services)

    def answer_directly(self, message: Message) -> tuple[Any, Any] | None:
        """Do what the executing thread asks for, on this one, which waits for it: a value, or an error.

        None for a message that asks for nothing.
        """
        match message:
            case (messages.CALL, waiting, caller, is_decoupled, encoded):
                return outcome_of(lambda: self._call_and_wait(waiting, caller, is_decoupled, encoded))
            case (messages.QUERY, _, name, arguments):
                return outcome_of(lambda: self._answer(name, arguments))
            case _:
                return None

    def take(self, message: Message) -> bool:
        """Do what is asked for on the events channel, without waiting; False for a message that asks for nothing."""
        match message:
            case (messages.CALL, waiting, _, is_decoupled, encoded):
                self._call(waiting, is_decoupled, encoded)
            case (messages.QUERY, number, name, arguments):
                if self._questions.is_slow(name):
                    arguments_of_thread = (number, name, arguments)
                    threading.Thread(
                        target=self._answer_slowly, args=arguments_of_thread, daemon=True
                    ).start()
                else:
                    self._exchange.answer(number, lambda: self._answer(name, arguments))
            case (messages.LOG, name, level, text, path, line):
                _log(name, level, text, path, line)
            case _:
                return False
        return True

    def close(self) -> None:
        """The process has ended: nothing of it is kept."""
        self._questions.close()

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        match name, arguments:
            case messages.IS_CANCELLED, (int(key),):
                return self._exchange.watch(key)
            case _:
                return self._questions.answer(name, arguments)

    def _answer_slowly(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        with contextlib.suppress(ChannelClosedError):
            self._exchange.answer(number, lambda: self._answer(name, arguments))

    def _call_and_wait(
        self, waiting: list[WireWait], caller: int, is_decoupled: bool, encoded: WireRequest
    ) -> list[WireResponse]:
        exchange = self._exchange
        outer = exchange.sent.get(caller)
        # A timeout of its own must not end its caller.
        cancellation = LinkedCancellation(None if outer is None else outer.cancellation)
        try:
            sender = WaitingSender()
            request = decode_request(encoded, sender, cancellation, exchange.reader)
            refusal = refusal_of(self._services, request.model_name, request.model_version, is_decoupled)
            if refusal is not None:
                return [(None, None, encode_error(refusal))]
            request.waiting = self._batches.waiting(waiting)
            self._trace(request, encoded)
            responses = call_and_wait(self._services, request, sender)
        finally:
            cancellation.unlink()
        return [encode_response(response, exchange.writer) for response in responses]

    def _call(self, waiting: list[WireWait], is_decoupled: bool, encoded: WireRequest) -> None:
        """Send a request of the model's on its way; its responses go back as they come."""
        exchange = self._exchange
        cancellation = Cancellation()
        key, name, version = encoded[0], encoded[1], encoded[2]
        sender = RemoteSender(exchange, key, cancellation)
        exchange.answering[key] = sender
        try:
            request = decode_request(encoded, sender, cancellation, exchange.reader)
            error = refusal_of(self._services, name, version, is_decoupled)
            if error is None:
                request.waiting = self._batches.waiting(waiting)
                self._trace(request, encoded)
                self._services.submit(request)
                return
        except InferenceError as failure:
            error = failure.within(f"Model {name} - Error when running inference: ")
        sender.send(InferenceResponse(name, -1, "", {}, error=error), True)

    def _trace(self, request: InferenceRequest, encoded: WireRequest) -> None:
        """Make a call part of the trace of the request that it is made for."""
        key = traced_key(encoded)
        outer = None if key is None else self._exchange.sent.get(key)
        if outer is not None and outer.trace is not None:
            request.trace = outer.trace.child()


def _log(name: str, level: int, text: str, path: str, line: int) -> None:
    log = logging.getLogger(name)
    if log.isEnabledFor(level):
        log.handle(log.makeRecord(name, level, path, line, text, (), None))
