"""How parsing goes on after a mistake: what was expected, said for people, and where the next field begins.

Mends what is obvious (a missing colon, comma or bracket), and otherwise gives up the broken field alone. Works on
the stacks of lark's LALR parser, and knows no message.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from lark.exceptions import UnexpectedToken

from cantata.grammars.pbtxt_tree import Field, Fields, ListValue, Source, Token, Values

_CLOSERS: Final[Mapping[str, str]] = {"LBRACE": "RBRACE", "LANGLE": "RANGLE", "LBRACKET": "RBRACKET"}
_TEXT: Final[Mapping[str, str]] = {
    "LBRACE": "{",
    "RBRACE": "}",
    "LANGLE": "<",
    "RANGLE": ">",
    "LBRACKET": "[",
    "RBRACKET": "]",
    "COLON": ":",
    "COMMA": ",",
}
_STARTS_VALUE: Final = frozenset({"NAME", "NUMBER", "STRING", "LBRACE", "LANGLE"})
_FOLLOWS_NAME: Final = frozenset({"COLON", "LBRACE", "LANGLE", "LBRACKET"})
_LONGEST_QUOTE: Final = 40
# No message of a configuration is nested so deeply; a text of braces alone must not cost its square.
_LONGEST_PATH: Final = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step of the way to a mistake: a field's name, and its index if it turns out to be repeated."""

    name: str
    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """A mistake in the syntax: where it is in the text and in the tree, and what should stand there."""

    message: str
    start: int
    path: tuple[Step, ...]
    hint: str = ""


class ParserState(Protocol):
    """The part of lark's parser state that is used: its stacks, and taking one token more."""

    state_stack: list[Any]
    value_stack: list[Any]

    def feed_token(self, token: Token, is_end: bool = False) -> Any: ...


class Recovery:
    """The mistakes of one text, and the way on after each.

    Changes the parser's two stacks alone, and always leaves them as some well-formed text would.
    """

    def __init__(self, state: ParserState, tokens: Sequence[Token], source: Source) -> None:
        self.problems: list[SyntaxProblem] = []
        self._state = state
        self._tokens = tokens
        self._source = source

    def resume_after(self, index: int) -> int:
        """Reports that `tokens[index]` was not expected; the index of the token to go on with."""
        token = self._tokens[index]
        if token.type == "UNCLOSED_STRING":
            return self._close_string(token, index)
        if self._is_value_missing(index):
            return self._restart_field(index)
        self._report_unexpected(token)
        mended = self._mend(token, index)
        return self._skip(index) if mended is None else mended

    def close_everything(self) -> None:
        """Reports that the text ended too early, and closes all that is open."""
        self._report_unexpected(self._tokens[-1])
        while (opener := self._innermost_opener()) >= 0:
            self._close(opener)
        self._cut_to_fields()

    # Mending

    def _close_string(self, token: Token, index: int) -> int:
        quote = token.value[0]
        self._report("the string is not closed before the end of its line", token, f"add the closing {quote}")
        closed = Token("STRING", token.value.rstrip("\\") + quote, token.start)
        return index + 1 if self._try_feed(closed) else self._skip(index)

    def _is_value_missing(self, index: int) -> bool:
        """Whether a field's value was left out, so that the name on the next line was taken for it."""
        if index < 3 or self._tokens[index].type not in _FOLLOWS_NAME:
            return False
        colon, name = self._tokens[index - 2 : index]
        if colon.type != "COLON" or name.type != "NAME":
            return False
        return "\n" in self._source.text[colon.start : name.start]

    def _restart_field(self, index: int) -> int:
        name = self._tokens[index - 1]
        self._pop()
        self._report(f"expected a value, found the next field, {name.value!r}", name)
        self._cut_to_fields()
        return index - 1

    def _mend(self, token: Token, index: int) -> int | None:
        """Puts in or takes out what makes `token` welcome; where to go on, or None if that is not obvious."""
        if self._is_in_list():
            return self._mend_list(token, index)
        is_assignment = token.type == "STRAY" and token.value == "="
        if self._top_type() != "NAME" or self._starts_field(index):
            return None
        if (is_assignment or token.type in _STARTS_VALUE) and self._try_feed(
            Token("COLON", ":", token.start)
        ):
            return index + 1 if is_assignment else index
        return None

    def _mend_list(self, token: Token, index: int) -> int | None:
        ends_early = self._starts_field(index) or token.type in ("RBRACE", "RANGLE")
        if (token.type == "RBRACKET" or ends_early) and self._top_type() == "COMMA":
            self._pop()
        if token.type == "RBRACKET":
            return index
        if ends_early:
            return index if self._try_feed(Token("RBRACKET", "]", token.start)) else None
        if token.type not in _STARTS_VALUE or self._top_type() in ("COMMA", "LBRACKET"):
            return None
        return index if self._try_feed(Token("COMMA", ",", token.start)) else None

    def _skip(self, index: int) -> int:
        """Gives up the broken field: the index of the next field, or past the bracket that ends its message."""
        lists = depth = self._cut_to_fields()
        for position in range(index, len(self._tokens) - 1):
            kind = self._tokens[position].type
            if depth <= lists and self._starts_field(position):
                return position
            if kind in _CLOSERS:
                depth += 1
            elif kind in _CLOSERS.values():
                if depth == 0 or (kind != "RBRACKET" and depth <= lists):
                    return self._end_message(position)
                depth -= 1
        return len(self._tokens) - 1

    def _end_message(self, index: int) -> int:
        """Lets `tokens[index]`, a closing bracket, close the message, or the list around it; where to go on."""
        is_list_end = self._tokens[index].type == "RBRACKET"
        if is_list_end and all(self._opener_type(opener) != "LBRACKET" for opener in self._openers()):
            return index + 1
        opener = self._innermost_opener()
        while is_list_end and self._opener_type(opener) != "LBRACKET":
            self._close(opener)
            opener = self._innermost_opener()
        if opener >= 0:
            self._close(opener)
        return index + 1

    # The parser's stacks

    def _try_feed(self, token: Token) -> bool:
        try:
            self._state.feed_token(token)
        except UnexpectedToken:
            return False
        return True

    def _cut_to_fields(self) -> int:
        """Drops what stands after the last whole field; how many lists were open in what is dropped."""
        if not self._is_in_list() and self._top_type() != "COLON" and self._try_feed(Token("NAME", "", 0)):
            self._pop()
        values = self._state.value_stack
        lists = 0
        while not isinstance(values[-1], Fields):
            lists += _type_of(values[-1]) == "LBRACKET"
            self._pop()
        return lists

    def _close(self, opener: int) -> None:
        """Closes the bracket at `opener`, the innermost one, over all that is whole in it."""
        kind = self._opener_type(opener)
        if kind != "LBRACKET":
            self._cut_to_fields()
        elif self._top_type() == "COMMA":
            self._pop()
        closer = _CLOSERS[kind]
        if not self._try_feed(Token(closer, _TEXT[closer], 0)):
            self._cut_to_fields()

    def _pop(self) -> None:
        self._state.state_stack.pop()
        self._state.value_stack.pop()

    def _top_type(self) -> str:
        return _type_of(self._state.value_stack[-1]) if self._state.value_stack else ""

    def _opener_type(self, opener: int) -> str:
        return _type_of(self._state.value_stack[opener]) if opener >= 0 else ""

    def _innermost_opener(self) -> int:
        """Where the innermost bracket that is still open stands in the stack, or -1."""
        return next(self._openers(), -1)

    def _openers(self) -> Iterator[int]:
        closed = 0
        values = self._state.value_stack
        for i in range(len(values) - 1, -1, -1):
            kind = _type_of(values[i])
            if kind in _CLOSERS.values():
                closed += 1
            elif kind in _CLOSERS and closed:
                closed -= 1
            elif kind in _CLOSERS:
                yield i

    def _is_in_list(self) -> bool:
        return self._opener_type(self._innermost_opener()) == "LBRACKET"

    def _starts_field(self, index: int) -> bool:
        return self._tokens[index].type == "NAME" and self._tokens[index + 1].type in _FOLLOWS_NAME

    # Reports

    def _report(self, message: str, token: Token, hint: str = "") -> None:
        path = tuple(itertools.islice(self._path(), _LONGEST_PATH))
        self.problems.append(SyntaxProblem(message, token.start, path, hint))

    def _report_unexpected(self, token: Token) -> None:
        opener = self._innermost_opener()
        hint = ""
        is_end = token.type == "$END" or token.type in _CLOSERS.values()
        if opener >= 0 and is_end and token.type != _CLOSERS[self._opener_type(opener)]:
            opened = self._state.value_stack[opener]
            line, column = self._source.position(opened.start)
            hint = f"the {opened.value!r} opened at {line}:{column} is not closed"
        self._report(f"expected {self._expected()}, found {_quote(token)}", token, hint)

    def _expected(self) -> str:
        """What could stand here, by what stands on top of the stack."""
        top = self._top_type()
        opener = self._opener_type(self._innermost_opener())
        if opener == "LBRACKET":
            return "a value" if top == "COMMA" else "a value or ']'" if top == "LBRACKET" else "',' or ']'"
        if top == "COLON":
            return "a value"
        if top == "NAME" and not self._is_value_on_top():
            return "':' or '{'"
        return f"a field name or {_TEXT[_CLOSERS[opener]]!r}" if opener else "a field name"

    def _is_value_on_top(self) -> bool:
        values = self._state.value_stack
        return len(values) > 1 and _type_of(values[-2]) == "COLON"

    def _path(self) -> Iterator[Step]:
        """The fields that are open, from the root: not the one before the mistake, if it was whole."""
        values = self._state.value_stack
        innermost = self._innermost_opener()
        for i, value in enumerate(values):
            is_name = _type_of(value) == "NAME" and i > 0 and isinstance(values[i - 1], Fields)
            has_no_value = len(values) - i <= 2
            if is_name and (i < innermost or has_no_value):
                yield Step(value.value, self._index_in(i))

    def _index_in(self, name: int) -> int:
        """How many values the field whose name is at `name` of the stack has before the one that is being read."""
        before, field_name, *inside = self._state.value_stack[name - 1 : name + 4]
        index = sum(_count(field) for field in before if field.name == field_name.value)
        return index + sum(len(values) for values in inside if isinstance(values, Values))


def _count(field: Field) -> int:
    return len(field.value.values) if isinstance(field.value, ListValue) else 1


def _type_of(value: object) -> str:
    return value.type if isinstance(value, Token) else ""


def _quote(token: Token) -> str:
    if token.type == "$END":
        return "the end of the text"
    text = token.value
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "...")
