"""Answers in the order of their requests, for models that preserve it (reference, section 6.3).

Owns the waiting of responses that come too early. Knows nothing of batches: a request's place is that in which it was
accepted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from cantata.runtime.request import ResponseSender
from cantata.runtime.response import InferenceResponse

_log = logging.getLogger("cantata.scheduler")

# A response and whether it is its request's last.
_Answer = tuple[InferenceResponse | None, bool]


class OrderedSender:
    """Stands before a request's own sender, and holds responses until those of earlier requests have been sent."""

    __slots__ = ("_order", "early", "inner")

    def __init__(self, order: ResponseOrder, inner: ResponseSender) -> None:
        self._order = order
        self.inner = inner
        # What may not be sent yet; guarded by the order's lock.
        self.early: deque[_Answer] = deque()

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        self._order.send(self, response, final)

    def wait_until_ready(self) -> None:
        self.inner.wait_until_ready()


class ResponseOrder:
    """The requests of one model that are not fully answered, in the order of their acceptance.

    `_lock` guards `_waiting`, `_is_sending` and what the senders hold; it is never held while a response is sent.
    Invariant: unless somebody is sending, the first of `_waiting` holds nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[OrderedSender] = deque()
        self._is_sending = False

    def next_sender(self, inner: ResponseSender) -> OrderedSender:
        """The place behind all requests before."""
        sender = OrderedSender(self, inner)
        with self._lock:
            self._waiting.append(sender)
        return sender

    def send(self, sender: OrderedSender, response: InferenceResponse | None, final: bool) -> None:
        """Send a response, and all that has waited for it; or let it wait."""
        with self._lock:
            sender.early.append((response, final))
            if self._is_sending or self._waiting[0] is not sender:
                return
            self._is_sending = True
        while (due := self._next_due()) is not None:
            inner, (response, final) = due
            try:
                inner.send(response, final)
            except Exception:
                _log.exception("a response could not be delivered")

    def _next_due(self) -> tuple[ResponseSender, _Answer] | None:
        with self._lock:
            if not self._waiting or not self._waiting[0].early:
                self._is_sending = False
                return None
            first = self._waiting[0]
            answer = first.early.popleft()
            if answer[1]:
                self._waiting.popleft()
            return first.inner, answer
