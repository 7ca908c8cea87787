"""The JSON form of a configuration, both ways, as protobuf and Triton write it.

Walks the schema of the messages; knows no message but for the few fields whose 64-bit integers stay strings.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from cantata.grammars.model_config import CudaGraphShape, SecondaryDevice
from cantata.grammars.problems import Problem, suggest
from cantata.grammars.schema import (
    INTEGER_RANGES,
    Cardinality,
    ConfigMessage,
    FieldSchema,
    ScalarType,
    ValueType,
    fields_of,
    format_field_path,
    suggest_member,
    to_single_precision,
)

# The messages whose 64-bit integers are printed as strings, as protobuf would print them everywhere.
_STRINGS_FOR_INT64: Final = (CudaGraphShape, SecondaryDevice)
_SPECIAL_FLOATS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_INTEGER: Final = re.compile(r"-?[0-9]+\Z")
_MOST_DIGITS: Final = 9


def to_json(message: ConfigMessage) -> dict[str, object]:
    """Every scalar, enum, list and map of a message, set or not, and the messages that are set."""
    printed: dict[str, object] = {}
    for name, field in fields_of(type(message)).items():
        value = getattr(message, field.attribute)
        if value is None:
            continue
        if field.cardinality is Cardinality.REPEATED:
            printed[name] = [_printed(element, field, message) for element in value]
        elif field.cardinality is Cardinality.MAP:
            printed[name] = {str(key): _printed(element, field, message) for key, element in value.items()}
        else:
            printed[name] = _printed(value, field, message)
    return printed


def _printed(value: Any, field: FieldSchema, owner: ConfigMessage) -> object:
    if isinstance(value, ConfigMessage):
        return to_json(value)
    if isinstance(value, enum.IntEnum):
        return value.name
    if field.value_type is ScalarType.INT64 and isinstance(owner, _STRINGS_FOR_INT64):
        return str(value)
    if isinstance(value, float):
        return _printed_float(value, field.value_type is ScalarType.FLOAT)
    return value


def _printed_float(value: float, is_single: bool) -> float | str:
    """The shortest number that is read back as the same; a name for what JSON has no number for."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if is_single:
        for digits in range(1, _MOST_DIGITS):
            if to_single_precision(short := float(f"{value:.{digits}g}")) == value:
                return short
    return value


class _BadJson(ValueError):
    """A value of JSON that a field cannot hold."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class JsonReader:
    """Turns JSON into the values of a message, and collects what is wrong with it."""

    def __init__(self, message: type[ConfigMessage]) -> None:
        self.problems: list[Problem] = []
        self._message_class = message
        self._path: list[str | int] = []

    def read(self, text: str) -> dict[str, object]:
        """The values of `text`; complete only if `problems` stays empty."""
        try:
            value = json.loads(text, object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
            return self._message(value, self._message_class)
        except json.JSONDecodeError as error:
            self.problems.append(Problem(error.msg, line=error.lineno, column=error.colno))
        except RecursionError:
            self.problems.append(Problem("the JSON is nested too deeply"))
        except _BadJson as bad:
            self._report(bad)
        return {}

    def _report(self, bad: _BadJson) -> None:
        path = format_field_path(self._message_class, tuple(self._path))
        self.problems.append(Problem(bad.message, path=path, hint=bad.hint))

    def _message(self, value: object, message: type[ConfigMessage]) -> dict[str, object]:
        if not isinstance(value, dict):
            raise _BadJson(f"expected an object, found {_describe(value)}")
        known = _json_names(message)
        values: dict[str, object] = {}
        depth = len(self._path)
        for name, member in value.items():
            self._path.append(name)
            try:
                self._field(name, member, known, values)
            except _BadJson as bad:
                self._report(bad)
            del self._path[depth:]
        return values

    def _field(
        self, name: str, member: object, known: Mapping[str, FieldSchema], values: dict[str, object]
    ) -> None:
        field = known.get(name)
        if field is None:
            raise _BadJson(f"unknown field {name!r}", suggest(name, known))
        if field.name in values:
            raise _BadJson(f"{field.name!r} is set twice")
        if member is None:
            return
        for rival in field.rivals:
            if rival in values:
                text = f"{field.name!r} and {rival!r} are members of oneof {field.oneof!r}"
                raise _BadJson(text, "set only one of them")
        if field.cardinality is Cardinality.REPEATED:
            values[field.name] = self._list(member, field)
        elif field.cardinality is Cardinality.MAP:
            values[field.name] = self._map(member, field)
        else:
            values[field.name] = self._value(member, field)

    def _list(self, member: object, field: FieldSchema) -> list[object]:
        if not isinstance(member, list):
            raise _BadJson(f"expected a list, found {_describe(member)}")
        elements = []
        for index, element in enumerate(member):
            self._path.append(index)
            elements.append(self._value(element, field))
            self._path.pop()
        return elements

    def _map(self, member: object, field: FieldSchema) -> dict[object, object]:
        if not isinstance(member, dict):
            raise _BadJson(f"expected an object, found {_describe(member)}")
        assert field.key_type is not None
        entries = {}
        for key, value in member.items():
            self._path.append(key)
            entries[_SCALAR_READERS[field.key_type](key)] = self._value(value, field)
            self._path.pop()
        return entries

    def _value(self, value: object, field: FieldSchema) -> object:
        if field.message is not None:
            return self._message(value, field.message)
        if field.enumeration is not None:
            return _read_enum(value, field.enumeration)
        assert isinstance(field.value_type, ScalarType)
        return _SCALAR_READERS[field.value_type](value)


def _unique_members(members: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(members)
    if len(unique) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise _BadJson(f"{twice!r} is set twice")
    return unique


def _refuse_constant(constant: str) -> object:
    raise _BadJson(f"{constant} is no JSON", f'write "{constant}"')


def _json_names(message: type[ConfigMessage]) -> dict[str, FieldSchema]:
    """The fields by both spellings that JSON may use: the field's own, and lowerCamelCase."""
    fields = fields_of(message)
    camel = {re.sub("_([a-z0-9])", lambda m: m[1].upper(), name): field for name, field in fields.items()}
    return camel | dict(fields)


def _read_string(value: object) -> object:
    if not isinstance(value, str):
        raise _BadJson(f"expected a string, found {_describe(value)}")
    return value


def _read_bool(value: object) -> object:
    if not isinstance(value, bool):
        raise _BadJson(f"expected true or false, found {_describe(value)}")
    return value


def _integer_reader(scalar: ScalarType) -> Callable[[object], object]:
    least, greatest = INTEGER_RANGES[scalar]

    def read(value: object) -> object:
        number = _as_integer(value)
        if not least <= number <= greatest:
            raise _BadJson(f"expected a number from {least} to {greatest} ({scalar.value}), found {number}")
        return number

    return read


def _as_integer(value: object) -> int:
    if isinstance(value, str) and _INTEGER.match(value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _BadJson(f"expected an integer, found {_describe(value)}")


def _read_float(value: object) -> object:
    if isinstance(value, str):
        try:
            return _SPECIAL_FLOATS[value] if value in _SPECIAL_FLOATS else float(value)
        except ValueError:
            raise _BadJson(f"expected a number, found {_describe(value)}") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _BadJson(f"expected a number, found {_describe(value)}")


def _read_enum(value: object, enumeration: type[enum.IntEnum]) -> enum.IntEnum:
    names = enumeration.__members__
    if isinstance(value, str) and value.upper() in names:
        return names[value.upper()]
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value in {int(known) for known in enumeration}
    ):
        return enumeration(value)
    message = f"expected a value of {enumeration.__name__}, found {_describe(value)}"
    raise _BadJson(message, suggest_member(str(value), enumeration))


_SCALAR_READERS: Final[Mapping[ValueType, Callable[[object], object]]] = {
    ScalarType.STRING: _read_string,
    ScalarType.BOOL: _read_bool,
    ScalarType.FLOAT: _read_float,
    ScalarType.DOUBLE: _read_float,
    **{scalar: _integer_reader(scalar) for scalar in INTEGER_RANGES},
}


def _describe(value: object) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case None:
            return "null"
        case _:
            return json.dumps(value)
