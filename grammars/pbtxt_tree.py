"""The tree of a text in protobuf text format: messages, fields, lists and the tokens they are made of.

Each knows where it starts, as an offset into the text. Values are still words of the text, of no type.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
from typing import TypeAlias

from cantata.grammars.problems import Position


class Token:
    """A word of the text: the name of its terminal, the word itself, and its offset."""

    __slots__ = ("start", "type", "value")

    def __init__(self, terminal: str, value: str, start: int) -> None:
        self.type = terminal
        self.value = value
        self.start = start


class Strings(list[Token]):
    """Adjacent string literals, which are one string. At least one."""

    __slots__ = ()

    @property
    def start(self) -> int:
        return self[0].start


class Message:
    """What stands between braces, or the whole text."""

    __slots__ = ("fields", "start")

    def __init__(self, fields: Fields, start: int) -> None:
        self.fields = fields
        self.start = start


class ListValue:
    """What stands between square brackets."""

    __slots__ = ("start", "values")

    def __init__(self, values: Values, start: int) -> None:
        self.values = values
        self.start = start


Value: TypeAlias = Token | Strings | Message | ListValue


class Values(list[Value]):
    """The values of a list, in order."""

    __slots__ = ()


class Field:
    """A name and its value; `colon` says whether a colon stood between them."""

    __slots__ = ("colon", "name", "start", "value")

    def __init__(self, name: Token, value: Value, colon: bool) -> None:
        self.name = name.value
        self.start = name.start
        self.value = value
        self.colon = colon


class Fields(list[Field]):
    """The fields of a message, in order."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """A text, and the lines and columns of its offsets."""

    text: str

    @functools.cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer("\n", self.text))]

    def position(self, offset: int) -> Position:
        """Line and column of an offset, both from 1."""
        line = bisect.bisect_right(self._line_starts, offset)
        return Position(line, offset - self._line_starts[line - 1] + 1)
