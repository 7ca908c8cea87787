"""When the gRPC thread runs the models that have something to do: once what has arrived is read.

Decides the moment only. Reads no clock and no socket: it is told what comes, and the loop calls it back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# How often the loop turns, at most, before the models run.
_MOST_LOOKS: Final = 4


class Rounds:
    """Calls `run` a little after something is to be done. All on the loop's thread; `call_soon` is the loop's.

    A client that has many answers to go on from sends while the first of what it sent is read. So the models wait for
    as long as each turn of the loop brings more requests, which then join their batches.
    """

    __slots__ = ("_call_soon", "_has_round", "_is_reading", "_looks", "_request_count", "_run", "_seen_count")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], run: Callable[[], None]) -> None:
        self._call_soon = call_soon
        self._run = run
        self._is_reading = False
        # Whether there is something to do, and whoever will do it is on the way.
        self._has_round = False
        # How many requests came since the last round, how many had come when this was last looked at, and the number of
        # looks since then; 0 while none is due.
        self._request_count = 0
        self._seen_count = 0
        self._looks = 0

    def request_came(self) -> None:
        """A model may have something to do."""
        self._request_count += 1
        self.need()

    def need(self) -> None:
        """There is something to do, or to write."""
        if not self._has_round:
            self._has_round = True
            if not self._is_reading:
                self._call_soon(self._begin)

    def begin_read(self) -> None:
        """What a connection has received is taken from here on, until `end_read`."""
        self._is_reading = True

    def end_read(self, *, is_only_client: bool) -> None:
        """A connection has taken what was read; `is_only_client` says that there is no other."""
        self._is_reading = False
        if not self._has_round or self._looks:
            return
        if is_only_client and self._request_count <= 1:
            # It waits for this one answer: nothing else could join.
            self._begin()
        else:
            self._seen_count = 0
            self._looks = 1
            self._call_soon(self._look_for_more)

    def _look_for_more(self) -> None:
        if self._seen_count < self._request_count and self._looks < _MOST_LOOKS:
            self._seen_count = self._request_count
            self._looks += 1
            self._call_soon(self._look_for_more)
        else:
            self._looks = 0
            self._begin()

    def _begin(self) -> None:
        self._has_round = False
        self._request_count = 0
        self._run()
