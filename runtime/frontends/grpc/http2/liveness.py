"""Whether the other side is still there, and whether it asks that too often: keep-alive, pings and age.

Owns the timers of one connection. What is sent, and how a connection ends, is the connection's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, Protocol

from cantata.runtime.frontends.grpc.http2.frames import ErrorCode
from cantata.runtime.frontends.grpc.options import GrpcOptions

_PING: Final = b"cantata?"
# A client with no calls may ask as often as this without `keepalive_permit_without_calls`, in seconds; as in C-core.
_IDLE_PING_INTERVAL_S: Final = 7200.0
# How long a client may take to read the last of what was sent.
_CLOSING_MS: Final = 60_000
# By how much connections' ages differ, so that they do not all end at once.
_AGE_JITTER: Final = 0.1


class LivingConnection(Protocol):
    """A connection, as its liveness sees it."""

    @property
    def has_calls(self) -> bool: ...

    @property
    def last_call(self) -> int:
        """The number of the call that was made last."""

    @property
    def standstill(self) -> object:
        """What waits for the client to take it, as a value that changes when it does; None where nothing waits."""

    def ping(self, payload: bytes) -> None: ...

    def drain(self) -> None: ...

    def end(self, code: ErrorCode, text: str) -> None: ...

    def abort(self) -> None: ...


class Liveness:
    """`has_sent` is set by whoever sends headers or data: pings that follow those are never too many."""

    __slots__ = (
        "_connection",
        "_handshake_timer",
        "_last_ping_s",
        "_last_received_s",
        "_loop",
        "_options",
        "_pings_without_data",
        "_strikes",
        "_timers",
        "has_sent",
    )

    def __init__(
        self, connection: LivingConnection, options: GrpcOptions, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._connection = connection
        self._options = options
        self._loop = loop
        self.has_sent = False
        self._last_received_s = 0.0
        self._last_ping_s: float | None = None
        self._strikes = 0
        self._pings_without_data = 0
        self._handshake_timer: asyncio.TimerHandle | None = None
        # The timers of keep-alive, age and idleness, by what they call.
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def start(self) -> None:
        """The connection is open."""
        options = self._options
        self._last_received_s = self._loop.time()
        self._call_later("look", options.keepalive_time, self._look)
        if options.handshake_timeout:
            self._handshake_timer = self._loop.call_later(
                options.handshake_timeout / 1000, self._connection.abort
            )
        if options.max_connection_age:
            jitter = random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)
            self._call_later("age", options.max_connection_age * jitter, self._grow_old)
        if options.max_connection_idle:
            self._call_later("idle", options.max_connection_idle, self._look_for_calls, 0)
        if options.write_timeout:
            self._call_later("stall", options.write_timeout, self._look_for_stall, None)

    def established(self) -> None:
        """The client has said that it speaks HTTP/2."""
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None

    def stop(self) -> None:
        """The connection is closed."""
        self.established()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def closing(self) -> None:
        """The connection closes once the client has read what was written, for which it has so long."""
        self._call_later("close", _CLOSING_MS, self._connection.abort)

    def received(self) -> None:
        """Something came."""
        self._last_received_s = self._loop.time()

    def allows_ping(self, has_calls: bool) -> bool:
        """Whether a ping from the client is one of few enough (`http2_*ping*` of the options)."""
        options = self._options
        now_s = self._loop.time()
        if self.has_sent:
            self.has_sent = False
            self._last_ping_s = None
            self._strikes = 0
        last_ping_s, self._last_ping_s = self._last_ping_s, now_s
        interval_s = options.http2_min_recv_ping_interval_without_data / 1000
        if not has_calls and not options.keepalive_permit_without_calls:
            interval_s = _IDLE_PING_INTERVAL_S
        if last_ping_s is None or now_s >= last_ping_s + interval_s:
            return True
        self._strikes += 1
        return not options.http2_max_ping_strikes or self._strikes <= options.http2_max_ping_strikes

    def _look(self) -> None:
        """Ask, where nothing has come for `keepalive_time`."""
        options = self._options
        silent_s = self._loop.time() - self._last_received_s
        remaining_ms = options.keepalive_time - silent_s * 1000
        if remaining_ms > 0:
            self._call_later("look", remaining_ms, self._look)
        elif self._may_ping():
            self._pings_without_data += 1
            self._connection.ping(_PING)
            self._call_later("look", options.keepalive_timeout, self._judge, self._last_received_s)
        else:
            self._call_later("look", options.keepalive_time, self._look)

    def _may_ping(self) -> bool:
        options = self._options
        if not self._connection.has_calls and not options.keepalive_permit_without_calls:
            return False
        if self.has_sent:
            self._pings_without_data = 0
        most = options.http2_max_pings_without_data
        return not most or self._pings_without_data < most

    def _judge(self, last_received_s: float) -> None:
        if self._last_received_s == last_received_s:
            self._connection.abort()
        else:
            self._look()

    def _grow_old(self) -> None:
        self._connection.drain()
        grace_ms = self._options.max_connection_age_grace
        if grace_ms:
            self._call_later("age", grace_ms, self._connection.abort)

    def _look_for_calls(self, last_call: int) -> None:
        """Close a connection that had no call for `max_connection_idle`, or for up to twice as long."""
        connection = self._connection
        if connection.has_calls or connection.last_call != last_call:
            idle_ms = self._options.max_connection_idle
            self._call_later("idle", idle_ms, self._look_for_calls, connection.last_call)
        else:
            connection.drain()

    def _look_for_stall(self, before: object) -> None:
        """Cut off a client that takes nothing for `write_timeout`, or for up to twice as long."""
        now = self._connection.standstill
        if now is not None and now == before:
            self._connection.abort()
        else:
            self._call_later("stall", self._options.write_timeout, self._look_for_stall, now)

    def _call_later(
        self, name: str, delay_ms: float, action: Callable[..., None], *arguments: object
    ) -> None:
        self._timers[name] = self._loop.call_later(delay_ms / 1000, action, *arguments)
