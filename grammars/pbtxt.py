"""The protobuf text format: text to a tree of fields that know where they stand, going on after every mistake.

Knows no message and no field: names and types are for the reader of the tree to check.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, Final, cast

import lark
from lark.exceptions import UnexpectedToken

from cantata.grammars.pbtxt_recovery import ParserState, Recovery, SyntaxProblem
from cantata.grammars.pbtxt_tree import (
    Field,
    Fields,
    ListValue,
    Message,
    Source,
    Strings,
    Token,
    Value,
    Values,
)

# What no terminal of the grammar matches: a string that its line does not close, and a stray character.
_BAD_WORDS: Final = {"UNCLOSED_STRING": r"""["'][^\n]*""", "STRAY": "."}


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A parsed text: its tree, as far as it could be made out, and what is wrong with its syntax."""

    source: Source
    root: Message
    problems: tuple[SyntaxProblem, ...]


def parse_pbtxt(text: str) -> Document:
    """The tree of `text` and every mistake in its syntax. Raises nothing on bad text."""
    grammar = _grammar()
    source = Source(text)
    tokens = list(grammar.tokens(text))
    tokens.append(Token("$END", "", len(text)))
    # lark reads no more of a token than its terminal, so ours, which are cheaper to make, do.
    state = cast(ParserState, grammar.lark.parse_interactive().parser_state)
    recovery = Recovery(state, tokens, source)
    feed = state.feed_token
    index, last = 0, len(tokens) - 1
    while index < last:
        try:
            while index < last:
                feed(tokens[index])
                index += 1
        except UnexpectedToken:
            index = recovery.resume_after(index)
    try:
        root = feed(tokens[last], True)
    except UnexpectedToken:
        recovery.close_everything()
        root = feed(tokens[last], True)
    return Document(source, root, tuple(recovery.problems))


class _TreeBuilder:
    """Makes the tree while the text is parsed; lark calls the method named after each rule."""

    def start(self, children: list[Fields]) -> Message:
        return Message(children[0], 0)

    def no_fields(self, _children: list[object]) -> Fields:
        return Fields()

    def next_field(self, children: list[Any]) -> Fields:
        fields: Fields = children[0]
        fields.append(children[1])
        return fields

    def colon_field(self, children: list[Any]) -> Field:
        return Field(children[0], children[2], True)

    def bare_field(self, children: list[Any]) -> Field:
        return Field(children[0], children[1], False)

    def message(self, children: list[Any]) -> Message:
        return Message(children[1], children[0].start)

    def empty_list(self, children: list[Any]) -> ListValue:
        return ListValue(Values(), children[0].start)

    def full_list(self, children: list[Any]) -> ListValue:
        return ListValue(children[1], children[0].start)

    def first_value(self, children: list[Value]) -> Values:
        return Values(children)

    def next_value(self, children: list[Any]) -> Values:
        values: Values = children[0]
        values.append(children[2])
        return values

    def value(self, children: list[Value]) -> Value:
        return children[0]

    def first_string(self, children: list[Token]) -> Strings:
        return Strings(children)

    def next_string(self, children: list[Any]) -> Strings:
        strings: Strings = children[0]
        strings.append(children[1])
        return strings


class _Grammar:
    """The parse tables, and one expression that matches any terminal."""

    def __init__(self) -> None:
        self.lark = lark.Lark.open(
            "pbtxt.lark",
            rel_to=__file__,
            parser="lalr",
            lexer="basic",
            transformer=_TreeBuilder(),
            keep_all_tokens=True,
            maybe_placeholders=False,
        )
        self._ignored = frozenset(self.lark.ignore_tokens)
        terminals = {terminal.name: terminal.pattern.to_regexp() for terminal in self.lark.terminals}
        patterns = (terminals | _BAD_WORDS).items()
        self._word = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in patterns))

    def tokens(self, text: str) -> Iterator[Token]:
        """The words of `text`, spaces and comments left out. One expression is faster than lark's own lexer."""
        ignored = self._ignored
        for match in self._word.finditer(text):
            terminal = match.lastgroup
            if terminal not in ignored:
                yield Token(str(terminal), match.group(), match.start())


@functools.cache
def _grammar() -> _Grammar:
    return _Grammar()
