"""Requests whose answers come from another process, and answers to its requests: the same on both sides.

Owns the keys that name requests in messages, the order and the bounds of streamed responses, cancellation, and
questions with answers. Which requests are sent, and what is done with those received, is decided elsewhere.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, Final

from cantata.bls.worker import messages
from cantata.bls.worker.arena import ArenaFullError, ArenaReader, ArenaWriter
from cantata.bls.worker.channel import Channel, ChannelClosedError, Message
from cantata.bls.worker.wire import (
    WireResponse,
    decode_error,
    decode_response,
    encode_error,
    encode_response,
)
from cantata.runtime.errors import InferenceError, internal_error
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.request import Cancellation, InferenceRequest
from cantata.runtime.response import InferenceResponse

# Guards what senders are allowed, in all of them: it is held for an instant, and rarely.
_waiting_lock: Final = threading.Lock()

# How many responses a sender may be ahead of the reader in the other process, and how many it is allowed at a time.
_WINDOW: Final = 64
_CREDIT: Final = 32


class Exchange:
    """One side's requests in the other process, and the other's here.

    The tables are touched by single operations only, so they need no lock. `wait_to_send` says whether this side
    may wait for room in the socket: the process may, the server must not.
    """

    def __init__(
        self,
        events: Channel,
        writer: ArenaWriter,
        reader: ArenaReader,
        workers: WorkerPool,
        *,
        wait_to_send: bool,
    ) -> None:
        self.writer = writer
        self.reader = reader
        self.send: Callable[[Message], None] = events.send if wait_to_send else events.send_soon
        self.workers = workers
        self.keys = itertools.count(1)
        # Requests that the other side answers.
        self.sent: dict[int, InferenceRequest] = {}
        # Requests of the other side that stream their answers, or want to know whether they are cancelled.
        self.answering: dict[int, RemoteSender] = {}
        # Requests of ours whose cancellation the other side has asked about.
        self._watched: set[int] = set()
        self._questions: dict[int, Future[Any]] = {}

    def handle(self, message: Message) -> bool:
        """Take a message that means the same on both sides; False when it is another."""
        match message:
            case (messages.RESPONSE, key, response, is_final):
                self._take_response(key, response, is_final)
            case (messages.CREDIT, key):
                if (sender := self.answering.get(key)) is not None:
                    sender.allow(_CREDIT)
            case (messages.CANCEL, key):
                if (sender := self.answering.get(key)) is not None:
                    sender.cancel()
            case (messages.ANSWER, number, value, error):
                if (question := self._questions.pop(number, None)) is not None:
                    _settle(question, value, error)
            case _:
                return False
        return True

    def add(self, request: InferenceRequest) -> int:
        """The key of a request that is about to be sent."""
        key = next(self.keys)
        self.sent[key] = request
        return key

    def take_back(self, key: int) -> InferenceRequest | None:
        """The request of that key, which the other side has answered, or will not; None when it was taken before."""
        request = self.sent.pop(key, None)
        if key in self._watched:
            self._watched.discard(key)
            if request is not None:
                request.cancellation.remove_listener((self, key))
        return request

    def watch(self, key: int) -> bool:
        """Tell the other side when a request of ours is cancelled; whether it is already."""
        request = self.sent.get(key)
        if request is None:
            return False
        self._watched.add(key)
        send = self.send
        request.cancellation.add_listener((self, key), lambda: send((messages.CANCEL, key)))
        return request.cancellation.is_cancelled

    def ask(self, name: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """What the other side answers; raises InferenceError when it does, or when it ends.

        Not for the thread that reads the events.
        """
        number = next(self.keys)
        question: Future[Any] = Future()
        self._questions[number] = question
        try:
            self.send((messages.QUERY, number, name, arguments))
            return question.result(timeout_s)
        except ChannelClosedError:
            raise internal_error("the other process has ended") from None
        except TimeoutError:
            raise internal_error(f"there was no answer within {timeout_s:g} s") from None
        finally:
            self._questions.pop(number, None)

    def answer(self, number: int, produce: Callable[[], Any]) -> None:
        """Answer a question with what `produce` returns or raises."""
        self.send((messages.ANSWER, number, *outcome_of(produce)))

    def end(self, error: InferenceError, spared: Collection[int] = ()) -> None:
        """The other side is gone: fail what it was to answer, but for `spared`, and let go who waits for it."""
        for key in list(self.sent):
            request = None if key in spared else self.take_back(key)
            if request is not None:
                request.fail(error)
        for sender in list(self.answering.values()):
            sender.cancel()
        for number in list(self._questions):
            question = self._questions.pop(number, None)
            if question is not None:
                question.set_exception(error)

    def _take_response(self, key: int, encoded: WireResponse | None, is_final: bool) -> None:
        request = self.take_back(key) if is_final else self.sent.get(key)
        response: InferenceResponse | None = None
        if encoded is not None:
            # Decoded even where nobody waits any more, so that its slots are given back.
            name, version, request_id = (
                ("", 0, "") if request is None else (request.model_name, request.model_version, request.id)
            )
            response = decode_response(encoded, name, version, request_id, self.reader)
        if request is None:
            return
        request.respond(response, is_final)
        if not is_final and request.response_count % _CREDIT == 0:
            self.workers.hand_over(_CreditWork(self, key, request))


class _CreditWork:
    """Waits until a request's reader has caught up, and lets the other side go on."""

    __slots__ = ("_exchange", "_key", "_request")

    is_quick = False
    is_quick_alone = False
    may_wait = False

    def __init__(self, exchange: Exchange, key: int, request: InferenceRequest) -> None:
        self._exchange = exchange
        self._key = key
        self._request = request

    def run(self) -> None:
        # One that has had its final response meanwhile sends no more that its reader would have to make room for.
        if not self._request.is_finished:
            self._request.sender.wait_until_ready()
        try:
            self._exchange.send((messages.CREDIT, self._key))
        except ChannelClosedError:
            return


class RemoteSender:
    """The sender of a request that came from the other process.

    `_waiting_lock` guards `_allowed` and `_changed`, which is made when somebody first waits. Responses are sent by
    one thread at a time.
    """

    __slots__ = ("_allowed", "_changed", "_exchange", "_key", "_sent", "cancellation")

    def __init__(self, exchange: Exchange, key: int, cancellation: Cancellation) -> None:
        self._exchange = exchange
        self._key = key
        self.cancellation = cancellation
        self._changed: threading.Condition | None = None
        self._sent = 0
        self._allowed = _WINDOW

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        exchange = self._exchange
        key = self._key
        if final:
            exchange.answering.pop(key, None)
            if self._sent:
                # The reader's credit finds nobody from now on: whoever still waits for it must not.
                self.allow(1 << 62)
        elif not self._sent:
            exchange.answering[key] = self
        if response is not None:
            self._sent += 1
        encoded = None if response is None else encode_response(response, exchange.writer)
        try:
            exchange.send((messages.RESPONSE, key, encoded, final))
        except ArenaFullError as error:
            exchange.send((messages.RESPONSE, key, (None, None, encode_error(error)), final))
        except ChannelClosedError:
            return

    def wait_until_ready(self) -> None:
        if self._sent < self._allowed:
            return
        with _waiting_lock:
            changed = self._changed
            if changed is None:
                changed = self._changed = threading.Condition(_waiting_lock)
            changed.wait_for(lambda: self._sent < self._allowed)

    def allow(self, count: int) -> None:
        """The reader has caught up by so many."""
        with _waiting_lock:
            self._allowed += count
            if self._changed is not None:
                self._changed.notify_all()

    def cancel(self) -> None:
        """Nobody reads any more: nothing is waited for from now on."""
        self.cancellation.cancel()
        self.allow(1 << 62)


def outcome_of(produce: Callable[[], Any]) -> tuple[Any, Any]:
    """A value and None, or None and the error, as an ANSWER holds them."""
    try:
        return produce(), None
    except InferenceError as error:
        return None, encode_error(error)


def value_of(value: Any, error: Any) -> Any:
    """The value of an ANSWER; raises its error."""
    if error is not None:
        raise decode_error(error)
    return value


def _settle(question: Future[Any], value: Any, error: Any) -> None:
    if error is None:
        question.set_result(value)
    else:
        question.set_exception(decode_error(error))
