"""In which order the answers of one stream are written (reference, section 4).

Requests of models that answer once are answered strictly in the order in which they were sent, however they finish;
those of decoupled models as their answers come. A pure state machine: no calls, threads or encodings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class Place:
    """A request's place in the order. `held` are its messages that wait for those before it."""

    __slots__ = ("held", "is_done")

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.is_done = False


class ResponseOrder:
    """Invariant: no message is held at the first place, and the first place is never done."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: deque[Place] = deque()

    def enter(self) -> Place:
        """A place behind all others."""
        place = Place()
        self._places.append(place)
        return place

    def add(self, place: Place, message: bytes | None, final: bool) -> Sequence[bytes]:
        """Take a message of `place`, or with None only the news that it is done; what may be written now."""
        if message is not None:
            place.held.append(message)
        place.is_done = place.is_done or final
        ready: list[bytes] = []
        places = self._places
        while places:
            first = places[0]
            ready += first.held
            first.held = []
            if not first.is_done:
                break
            places.popleft()
        return ready
