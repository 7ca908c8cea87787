"""The W3C trace context: which span of which trace something belongs to, as headers say it.

Owns the reading and writing of `traceparent` and `tracestate`. Knows no span and no wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import orjson

_PARENT: Final = "traceparent"
_STATE: Final = "tracestate"
# Version, trace, span and flags; versions to come may add to it.
_FORM: Final = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


class TraceContext(NamedTuple):
    """A span, to be somebody's parent. `state` is what other systems carry along, as it came."""

    trace_id: int
    span_id: int
    state: str = ""

    def carrier(self) -> str:
        """The headers that tell another service of it, as a JSON object."""
        headers = {_PARENT: f"00-{self.trace_id:032x}-{self.span_id:016x}-01"}
        if self.state:
            headers[_STATE] = self.state
        return orjson.dumps(headers).decode()


def context_of_headers(headers: Iterable[tuple[str | bytes, str | bytes]]) -> TraceContext | None:
    """What a request's headers, or its metadata, say; None where they say nothing, or nothing that can be."""
    parents: list[str] = []
    states: list[str] = []
    for name, value in headers:
        if len(name) != len(_PARENT) and len(name) != len(_STATE):
            continue
        match _text(name).lower():
            case "traceparent":
                parents.append(_text(value).strip())
            case "tracestate":
                states.append(_text(value).strip())
    if len(parents) != 1:
        return None
    return _parsed(parents[0], ",".join(states))


def _parsed(parent: str, state: str) -> TraceContext | None:
    match = _FORM.fullmatch(parent)
    if match is None or (match[1] == "00" and match[4]):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    return TraceContext(trace_id, span_id, state) if trace_id and span_id else None


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
