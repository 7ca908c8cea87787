"""grpc.health.v1: whether the server is ready, once (Check) or whenever that changes (Watch).

The service's name in a request is ignored (reference, section 2).
"""

from __future__ import annotations

import threading

from cantata.grammars import messages
from cantata.runtime.errors import unavailable
from cantata.runtime.frontends.grpc.call import Call, CallReader
from cantata.runtime.frontends.grpc.call_loop import CallLoop
from cantata.runtime.frontends.grpc.message_stream import MessageStream
from cantata.runtime.server import Server

PREFIX = "/grpc.health.v1.Health/"

_SERVING: bytes = messages.HealthCheckResponse(status="SERVING").SerializeToString()
_NOT_SERVING: bytes = messages.HealthCheckResponse(status="NOT_SERVING").SerializeToString()


class HealthService:
    """Answers for one server. Watches are looked after once a second: the server has no news of its readiness."""

    def __init__(self, server: Server, loop: CallLoop) -> None:
        self._server = server
        self._loop = loop
        self._watches: set[_Watch] = set()
        # What the last look at models that say by themselves whether they are ready has found.
        self._last_seen = b""
        self._is_looking = False

    def check(self, _message: bytes) -> bytes:
        """Handler of Check."""
        if self._server.is_exiting:
            raise unavailable("Server exiting")
        return self._status()

    def watch(self, call: Call) -> CallReader:
        """Route of Watch."""
        return _Watch(self, self._loop, call).reader

    def add(self, watch: _Watch) -> None:
        """Tell `watch` the status now and whenever it changes."""
        self._watches.add(watch)
        self._loop.every_second(self._tell_watches)
        self._tell_watches()

    def remove(self, watch: _Watch) -> None:
        """Forget a watch."""
        self._watches.discard(watch)
        if not self._watches:
            self._loop.every_second(None)

    def stop(self) -> None:
        """The server stops: end every watch; on the loop's thread."""
        for watch in tuple(self._watches):
            watch.end(_NOT_SERVING)

    def _status(self) -> bytes:
        return _SERVING if self._server.is_ready() else _NOT_SERVING

    def _tell_watches(self) -> None:
        """Tell the status now or, where models must be asked, the one last heard, and ask them meanwhile."""
        if not self._server.asks_for_readiness:
            self._last_seen = self._status()
        elif not self._is_looking:
            self._is_looking = True
            threading.Thread(target=self._look, name="cantata-grpc-health", daemon=True).start()
        if self._last_seen:
            for watch in self._watches:
                watch.tell(self._last_seen)

    def _look(self) -> None:
        try:
            self._last_seen = self._status()
        finally:
            self._is_looking = False


class _Watch:
    """One Watch call."""

    def __init__(self, service: HealthService, loop: CallLoop, call: Call) -> None:
        self._service = service
        self._last = b""
        self._stream = MessageStream(loop, call, self)

    @property
    def reader(self) -> CallReader:
        """What the call is to be read by."""
        return self._stream

    def tell(self, status: bytes) -> None:
        """Send the status if it is not the one that was sent last."""
        if status != self._last:
            self._last = status
            self._stream.send(status)

    def end(self, status: bytes) -> None:
        """Send a last status."""
        self.tell(status)
        self._stream.finish()

    def on_message(self, _message: bytes | memoryview) -> None:
        self._service.add(self)

    def on_half_close(self) -> None:
        """A Watch has one request; its end says nothing."""

    def on_closed(self, was_cancelled: bool) -> None:
        self._service.remove(self)
