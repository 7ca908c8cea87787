"""Text to a typed ModelConfig with positions: every mistake in it at once, and where every field stands.

Checks names and types. The rules between fields are in `rules`; the syntax is parsed by `pbtxt`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Final

from cantata.grammars.config_json import JsonReader, to_json
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.pbtxt import parse_pbtxt
from cantata.grammars.pbtxt_positions import find_offset, key_of, path_of_steps
from cantata.grammars.pbtxt_tree import Field, ListValue, Message, Source, Value
from cantata.grammars.pbtxt_values import BadValue, describe, value_reader
from cantata.grammars.problems import Path, Position, Positions, Problem, suggest
from cantata.grammars.schema import (
    Cardinality,
    FieldSchema,
    default_of,
    entry_of,
    fields_of,
    format_field_path,
)

__all__ = ["ParsedConfig", "model_config_to_json", "read_model_config", "read_model_config_json"]

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, slots=True)
class ParsedConfig:
    """A configuration as it was read. `config` is None exactly when there are problems."""

    config: ModelConfig | None
    positions: Positions
    problems: tuple[Problem, ...]


def read_model_config(text: str, file: str = "") -> ParsedConfig:
    """Reads a config.pbtxt; `file` is named in problems. Raises nothing on bad text."""
    document = parse_pbtxt(text)
    source = document.source

    def locate(path: Path) -> Position:
        return source.position(find_offset(document.root, ModelConfig, path))

    positions = Positions(file, locate, _format_path)
    reader = _Reader(source, file)
    for mistake in document.problems:
        reader.report(mistake.message, mistake.start, mistake.hint, path_of_steps(mistake.path, ModelConfig))
    if surrogate := _SURROGATE.search(text):
        reader.report("half of a surrogate pair is no Unicode character", surrogate.start())
    values = reader.message(document.root, fields_of(ModelConfig))
    if not reader.problems:
        return ParsedConfig(ModelConfig.model_validate(values), positions, ())
    problems = sorted(reader.problems, key=lambda problem: (problem.line, problem.column))
    return ParsedConfig(None, positions, tuple(problems))


def read_model_config_json(text: str) -> ParsedConfig:
    """Reads the JSON form of a configuration, as protobuf does: unknown fields are refused, enum names are taken in
    any case, and numbers may be strings. Raises nothing on bad text."""
    reader = JsonReader(ModelConfig)
    values = reader.read(text)
    config = None if reader.problems else ModelConfig.model_validate(values)
    return ParsedConfig(config, Positions(render_path=_format_path), tuple(reader.problems))


def model_config_to_json(config: ModelConfig) -> dict[str, object]:
    """The JSON form of a configuration: every scalar, list and map, set or not, and the messages that are set.

    64-bit integers are numbers, but strings as keys of maps, in `device_id`, and in `dim` of a CUDA graph.
    """
    return to_json(config)


class _Reader:
    """Turns the tree of one text into the values of a message, and collects what is wrong with it."""

    def __init__(self, source: Source, file: str) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._file = file
        # Where the reader is. An entry of a map stands for its key, which is read only if a problem needs it.
        self._path: list[str | int | tuple[Message, FieldSchema]] = []

    def message(self, message: Message, fields: Mapping[str, FieldSchema]) -> dict[str, object]:
        """The values of a message's fields, by name. What has a problem is None, or left out."""
        values: dict[str, object] = {}
        depth = len(self._path)
        for field in message.fields:
            self._path.append(field.name)
            try:
                schema = fields.get(field.name)
                if schema is None:
                    hint = suggest(field.name, fields) or f"known fields: {', '.join(fields)}"
                    raise BadValue(f"unknown field {field.name!r}", field.start, hint)
                self._check_place(field, schema, values, message)
                self._field(field, schema, values)
            except BadValue as bad:
                self._report_bad(bad)
            del self._path[depth:]
        return values

    def report(self, message: str, start: int, hint: str = "", path: Path = ()) -> None:
        """Adds a problem at an offset of the text."""
        line, column = self._source.position(start)
        self.problems.append(Problem(message, self._file, line, column, _format_path(path), hint))

    def _report_bad(self, bad: BadValue) -> None:
        path: list[str | int] = []
        is_entry = False
        for step in self._path:
            if isinstance(step, tuple):
                path.append(str(key_of(*step)))
            elif not is_entry or step not in ("key", "value"):
                path.append(step)
            is_entry = isinstance(step, tuple)
        self.report(bad.message, bad.start, bad.hint, tuple(path))

    def _check_place(
        self, field: Field, schema: FieldSchema, values: Mapping[str, object], message: Message
    ) -> None:
        """Refuses a field without its colon, one that is set twice, and one beside another of its oneof."""
        if not field.colon and schema.message is None and schema.cardinality is not Cardinality.MAP:
            raise BadValue(f"expected ':', found {describe(field.value)}", field.value.start)
        if schema.name in values and _is_set(values, schema):
            first = next(other for other in message.fields if other.name == field.name)
            line, column = self._source.position(first.start)
            raise BadValue(f"{field.name!r} is set twice", field.start, f"first set at {line}:{column}")
        for rival in schema.rivals:
            if rival in values:
                text = f"{field.name!r} and {rival!r} are members of oneof {schema.oneof!r}"
                raise BadValue(text, field.start, "set only one of them")

    def _field(self, field: Field, schema: FieldSchema, values: dict[str, object]) -> None:
        if schema.cardinality is Cardinality.REPEATED:
            repeated = values.setdefault(schema.name, [])
            assert isinstance(repeated, list)
            for value in _elements_of(field):
                repeated.append(self._element(value, schema, len(repeated)))
        elif schema.cardinality is Cardinality.MAP:
            entries = values.setdefault(schema.name, {})
            assert isinstance(entries, dict)
            for value in _elements_of(field):
                self._entry(value, schema, entries)
        elif isinstance(field.value, ListValue):
            raise BadValue("expected one value, found a list", field.value.start, "the field is not repeated")
        else:
            # Set even if the value is bad, so that duplicates and oneofs are still seen.
            values[schema.name] = None
            values[schema.name] = self._value(field.value, schema)

    def _element(self, value: Value, schema: FieldSchema, index: int) -> object:
        self._path.append(index)
        try:
            element = self._value(value, schema)
        except BadValue as bad:
            self._report_bad(bad)
            element = None
        self._path.pop()
        return element

    def _entry(self, value: Value, schema: FieldSchema, entries: dict[object, object]) -> None:
        if not isinstance(value, Message):
            raise BadValue(f"expected {{ key: ... value: ... }}, found {describe(value)}", value.start)
        self._path.append((value, schema))
        entry = self.message(value, entry_of(schema))
        self._path.pop()
        key = entry.get("key", default_of(entry_of(schema)["key"].value_type))
        entries[key] = entry["value"] if "value" in entry else default_of(schema.value_type)

    def _value(self, value: Value, schema: FieldSchema) -> object:
        message = schema.message
        if message is None:
            return value_reader(schema.value_type)(value)
        if not isinstance(value, Message):
            raise BadValue(f"expected a message in braces, found {describe(value)}", value.start)
        return self.message(value, fields_of(message))


def _format_path(path: Path) -> str:
    return format_field_path(ModelConfig, path)


def _elements_of(field: Field) -> list[Value]:
    return field.value.values if isinstance(field.value, ListValue) else [field.value]


def _is_set(values: Mapping[str, object], schema: FieldSchema) -> bool:
    """Whether a field has been given a value before. As protobuf sees it, one without presence that holds its default
    has not."""
    if schema.cardinality is not Cardinality.SINGULAR:
        return schema.cardinality is Cardinality.OPTIONAL
    value = values[schema.name]
    return bool(value) or value is None or (isinstance(value, float) and math.copysign(1.0, value) < 0)
