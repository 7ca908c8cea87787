"""The words of a text as values: integers, floats, booleans, enums and strings, each checked for its type.

Knows no field; a word that is no value of the type raises BadValue, which says what was expected and where.
"""

from __future__ import annotations

import enum
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from cantata.grammars.pbtxt_tree import ListValue, Message, Strings, Token, Value
from cantata.grammars.problems import suggest
from cantata.grammars.schema import INTEGER_RANGES, ScalarType, ValueType, suggest_member

_BOOLEANS: Final = {
    "true": True,
    "True": True,
    "t": True,
    "1": True,
    "false": False,
    "False": False,
    "f": False,
    "0": False,
}
_OCTAL: Final = re.compile(r"-?0[0-9]+\Z")
_NO_FLOAT: Final = re.compile(r"-?0[0-9]")
_INFINITY: Final = re.compile(r"-?inf(inity)?f?\Z", re.IGNORECASE)
_ESCAPE: Final = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|[xX](?P<hex>[0-9a-fA-F]{1,2})|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8})"
    r"|(?P<single>[abfnrtv\\'\"?])|(?P<bad>.?))"
)
_SINGLE_ESCAPES: Final = {
    "a": b"\a",
    "b": b"\b",
    "f": b"\f",
    "n": b"\n",
    "r": b"\r",
    "t": b"\t",
    "v": b"\v",
    "\\": b"\\",
    "'": b"'",
    '"': b'"',
    "?": b"?",
}


class BadValue(ValueError):
    """A word that is no value of the type that its field has."""

    def __init__(self, message: str, start: int, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.start = start
        self.hint = hint


def describe(value: Value) -> str:
    """What stands in the text, in a few words."""
    match value:
        case Token():
            return repr(value.value)
        case Strings():
            return f"the string {value[0].value}"
        case Message():
            return "a message"
        case ListValue():
            return "a list"


def string_value(value: Value) -> str:
    """Adjacent literals joined; their escapes are bytes, which together must be UTF-8."""
    if not isinstance(value, Strings):
        hint = f'write "{value.value}"' if isinstance(value, Token) and value.type == "NAME" else ""
        raise BadValue(f"expected a string in quotes, found {describe(value)}", value.start, hint)
    if len(value) == 1 and "\\" not in value[0].value:
        return value[0].value[1:-1]
    joined = b"".join(_unescape(literal) for literal in value)
    try:
        return joined.decode()
    except UnicodeDecodeError:
        raise BadValue("expected a string in UTF-8, found bytes that are not", value.start) from None


def integer_value(value: Value, scalar: ScalarType) -> int:
    """Decimal, hexadecimal (0x), octal (leading 0 or 0o) or binary (0b), in the range of its type."""
    least, greatest = INTEGER_RANGES[scalar]
    if not isinstance(value, Token):
        raise BadValue(f"expected an integer, found {describe(value)}", value.start)
    text = value.value
    try:
        number = int(text, 8 if _OCTAL.match(text) else 0)
    except ValueError:
        raise BadValue(f"expected an integer, found {describe(value)}", value.start) from None
    if not least <= number <= greatest:
        raise BadValue(
            f"expected a number from {least} to {greatest} ({scalar.value}), found {text}", value.start
        )
    return number


def float_value(value: Value) -> float:
    """Decimal, with or without exponent or an `f` at its end; `inf`, `infinity`, `nan`, with a sign."""
    if not isinstance(value, Token):
        raise BadValue(f"expected a number, found {describe(value)}", value.start)
    text = value.value
    if _INFINITY.match(text):
        return -math.inf if text[0] == "-" else math.inf
    bare = text[:-1] if text[-1] in "fF" and "inf" not in text.lower() else text
    try:
        if not _NO_FLOAT.match(text):
            return float(bare)
    except ValueError:
        pass
    raise BadValue(f"expected a number, found {describe(value)}", value.start)


def bool_value(value: Value) -> bool:
    """`true`, `True`, `t`, `1` and their opposites."""
    text = value.value if isinstance(value, Token) else ""
    found = _BOOLEANS.get(text)
    if found is None:
        raise BadValue(
            f"expected true or false, found {describe(value)}", value.start, suggest(text, ("true", "false"))
        )
    return found


def enum_value(value: Value, enumeration: type[enum.IntEnum]) -> enum.IntEnum:
    """A name of the enum, or the number of one."""
    text = value.value if isinstance(value, Token) else ""
    found = enumeration.__members__.get(text)
    if found is not None:
        return found
    try:
        return enumeration(int(text, 0))
    except ValueError:
        pass
    message = f"expected a value of {enumeration.__name__}, found {describe(value)}"
    raise BadValue(message, value.start, suggest_member(text, enumeration))


@functools.cache
def value_reader(value_type: ValueType) -> Callable[[Value], object]:
    """The function that reads a value of a scalar or enum type."""
    if isinstance(value_type, ScalarType):
        return _SCALAR_READERS[value_type]
    assert issubclass(value_type, enum.IntEnum)
    return lambda value: enum_value(value, value_type)


_SCALAR_READERS: Final[Mapping[ScalarType, Callable[[Value], object]]] = {
    ScalarType.STRING: string_value,
    ScalarType.BOOL: bool_value,
    ScalarType.FLOAT: float_value,
    ScalarType.DOUBLE: float_value,
    ScalarType.INT32: lambda value: integer_value(value, ScalarType.INT32),
    ScalarType.INT64: lambda value: integer_value(value, ScalarType.INT64),
    ScalarType.UINT32: lambda value: integer_value(value, ScalarType.UINT32),
    ScalarType.UINT64: lambda value: integer_value(value, ScalarType.UINT64),
}


def _unescape(literal: Token) -> bytes:
    text = literal.value[1:-1]
    parts = []
    position = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[position : match.start()].encode())
        parts.append(_escaped(match, literal.start + 1 + match.start()))
        position = match.end()
    parts.append(text[position:].encode())
    return b"".join(parts)


def _escaped(match: re.Match[str], start: int) -> bytes:
    kind = match.lastgroup or "bad"
    digits = match[kind]
    if kind == "single":
        return _SINGLE_ESCAPES[digits]
    if kind == "hex":
        return bytes((int(digits, 16),))
    if kind == "octal" and (number := int(digits, 8)) < 256:
        return bytes((number,))
    try:
        if kind in ("short", "long"):
            return chr(int(digits, 16)).encode()
    except (ValueError, OverflowError):
        raise BadValue(f"{match[0]} is no Unicode character", start) from None
    raise BadValue(f"{match[0]} is no escape of a string", start, "write \\\\ for a backslash")
