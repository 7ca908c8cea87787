"""What one port puts up with from its clients, and when its patience with one of them ends.

Owns the limits and the decisions about time; `connection` carries them out. Knows no sockets: it is told what a
connection is at, how far that has come, and the time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

# How far a transfer must come within its time to be given as much again, in bytes.
LEAST_PROGRESS: Final = 4096
# How long a refused client may take to read why, in milliseconds.
_LINGER_MS: Final = 2000


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Sizes are in bytes, times in milliseconds; a time of 0, or of connections, is no limit."""

    max_header_size: int = 64 << 10
    max_header_count: int = 256
    max_request_size: int = 2**31 - 1
    max_connections: int = 0
    # From the first byte of a request, or from the connection, until its headers are complete.
    header_timeout: int = 60_000
    # Between two times that enough of a body, or of an answer, has passed.
    body_timeout: int = 60_000
    write_timeout: int = 60_000
    # Between an answer and the next request.
    keepalive_timeout: int = 600_000


class Phase(enum.Enum):
    """What a connection is at."""

    # Between requests.
    IDLE = "idle"
    HEADERS = "headers"
    BODY = "body"
    # The server works on the answer.
    SERVED = "served"
    # The answer waits for its reader.
    WRITING = "writing"
    # It was refused, and may read that.
    LINGERING = "lingering"


_LEAST: Final = {Phase.BODY: LEAST_PROGRESS, Phase.WRITING: LEAST_PROGRESS}


class Patience:
    """How long one connection has been at the same thing.

    `progress` is a number that changes by at least the phase's least progress whenever something has been achieved.
    """

    __slots__ = ("_phase", "_progress", "_since_ms")

    def __init__(self, now_ms: int) -> None:
        self._phase = Phase.HEADERS
        self._progress = 0
        self._since_ms = now_ms

    def has_ended(self, phase: Phase, progress: int, now_ms: int, limits: ClientLimits) -> bool:
        """Whether a connection that is at `phase` now, and has come as far as `progress`, has taken too long."""
        if phase is not self._phase or abs(progress - self._progress) >= _LEAST.get(phase, 1):
            self._phase = phase
            self._progress = progress
            self._since_ms = now_ms
            return False
        allowed_ms = _allowed_ms(phase, limits)
        return allowed_ms > 0 and now_ms - self._since_ms >= allowed_ms


def _allowed_ms(phase: Phase, limits: ClientLimits) -> int:
    match phase:
        case Phase.IDLE:
            return limits.keepalive_timeout
        case Phase.HEADERS:
            return limits.header_timeout
        case Phase.BODY:
            return limits.body_timeout
        case Phase.WRITING:
            return limits.write_timeout
        case Phase.LINGERING:
            return _LINGER_MS
        case Phase.SERVED:
            return 0
