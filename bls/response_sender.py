"""pb_utils.InferenceResponseSender: answers that a model sends itself, from `execute` or long after it.

Owns what may be sent when, and the rule that a request ends exactly once: by its final response, by the failure of
its execution, or, when the model has dropped its sender or is unloaded, by an error.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Final

from cantata.bls.abandoned import Reaper
from cantata.bls.errors import TritonModelException
from cantata.bls.outputs import OutputTable
from cantata.bls.responses import InferenceResponse
from cantata.runtime.errors import InferenceError, internal_error, unavailable
from cantata.runtime.request import InferenceRequest as RuntimeRequest

TRITONSERVER_RESPONSE_COMPLETE_FINAL: Final = 1


class InferenceResponseSender:
    """What a model holds to answer one request. May be used from any thread."""

    __slots__ = ("__weakref__", "_stream")

    def __init__(self, stream: ResponseStream) -> None:
        self._stream = stream

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, the final flag, or both. Blocks while the reader is far behind, except on event loops."""
        self._stream.send(response, flags)

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answers any more."""
        return self._stream.request.cancellation.is_cancelled


class OpenStreams:
    """The requests of one instance whose senders the model may still hold."""

    __slots__ = ("_senders", "is_decoupled", "outputs", "reaper")

    def __init__(self, outputs: OutputTable, is_decoupled: bool, reaper: Reaper) -> None:
        self.outputs = outputs
        self.is_decoupled = is_decoupled
        self.reaper = reaper
        # Touched by single dictionary operations only, so it needs no lock.
        self._senders: dict[ResponseStream, weakref.ref[InferenceResponseSender]] = {}

    def open(self, request: RuntimeRequest) -> InferenceResponseSender:
        """The sender for a request. When the model drops it before it has ended the request, that fails.

        A request that comes again gets the sender it had.
        """
        carried = request.carried
        if isinstance(carried, InferenceResponseSender):
            request.carried = None
            return carried
        stream = ResponseStream(request, self)
        sender = InferenceResponseSender(stream)
        add = self.reaper.add
        self._senders[stream] = weakref.ref(sender, lambda _: add(stream.abandon))
        return sender

    def forget(self, stream: ResponseStream) -> None:
        """The request has ended."""
        self._senders.pop(stream, None)

    def close(self) -> None:
        """Fail the requests that are still open: the model is being unloaded."""
        for stream in list(self._senders):
            name = stream.request.model_name
            stream.fail(unavailable(f"model '{name}' was unloaded before it sent the final response"))


class ResponseStream:
    """One request's answers as its model gives them.

    `_lock` guards the three attributes after it, and is held while a response is sent: a request's responses leave
    in the order of the calls, and nothing follows the final one.
    """

    __slots__ = ("_has_ended", "_is_closed", "_lock", "_open_streams", "_sent", "request")

    def __init__(self, request: RuntimeRequest, open_streams: OpenStreams) -> None:
        self.request = request
        self._open_streams = open_streams
        self._lock = threading.Lock()
        self._sent = 0
        # By the model, with the final flag.
        self._is_closed = False
        # For the client: the response of a model that is not decoupled is final without the flag.
        self._has_ended = False

    @property
    def has_answered(self) -> bool:
        """Whether the request has its response, or its first one."""
        return self._is_closed or self._sent > 0

    def send(self, response: InferenceResponse | None, flags: int) -> None:
        """See InferenceResponseSender.send; raises TritonModelException where the rules are broken."""
        if response is None and flags == 0:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(f"expected an InferenceResponse, found type '{type(response)}'")
        is_decoupled = self._open_streams.is_decoupled
        # An event loop must not wait: what slows it down are the models it awaits.
        if is_decoupled and response is not None and asyncio._get_running_loop() is None:
            self.request.sender.wait_until_ready()
        is_last = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        with self._lock:
            if not is_decoupled:
                self._check_single(response)
            if self._is_closed:
                raise TritonModelException("Unable to send response. Response sender has been closed.")
            self._is_closed = is_last
            self._sent += response is not None
            self._respond(response, final=is_last or not is_decoupled)

    def fail(self, error: InferenceError) -> None:
        """End the request with an error, unless it has ended; the model can send no more."""
        with self._lock:
            self._is_closed = True
            if not self._has_ended:
                self._has_ended = True
                self.request.respond(self._open_streams.outputs.error_response(self.request, error), True)
        self._open_streams.forget(self)

    def abandon(self) -> None:
        """The model has dropped the sender."""
        name = self.request.model_name
        self.fail(
            internal_error(f"model '{name}' dropped its response sender without sending the final response")
        )

    def _check_single(self, response: InferenceResponse | None) -> None:
        if response is not None and self._sent:
            raise TritonModelException(
                "Unable to send response. Non-decoupled model cannot send more than one response."
            )
        if response is None and not self._sent:
            raise TritonModelException(
                "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
            )

    def _respond(self, response: InferenceResponse | None, final: bool) -> None:
        if self._has_ended:
            return
        request = self.request
        converted = None if response is None else self._open_streams.outputs.response_of(request, response)
        self._has_ended = final
        request.respond(converted, final)
        if final:
            self._open_streams.forget(self)


def stream_of(sender: InferenceResponseSender) -> ResponseStream:
    """The stream behind a sender, for the instance that runs the model."""
    return sender._stream
