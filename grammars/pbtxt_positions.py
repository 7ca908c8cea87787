"""From the path of a value to its place in a text, and from a place in a tree to a path.

Walks a parsed tree beside the schema of its messages; nothing is computed until someone asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cantata.grammars.pbtxt_recovery import Step
from cantata.grammars.pbtxt_tree import ListValue, Message, Value
from cantata.grammars.pbtxt_values import BadValue, value_reader
from cantata.grammars.problems import Path
from cantata.grammars.schema import Cardinality, ConfigMessage, FieldSchema, default_of, entry_of, fields_of

# A value, and the offset that stands for it: its field's name, or in a list the value itself.
_Placed = tuple[int, Value]


def find_offset(root: Message, message: type[ConfigMessage], path: Path) -> int:
    """The offset of the value at `path`, or of its nearest ancestor in the text."""
    offset = root.start
    values: list[_Placed] = [(root.start, root)]
    fields: Mapping[str, FieldSchema] = fields_of(message)
    steps = iter(path)
    for step in steps:
        schema = fields.get(step) if isinstance(step, str) else None
        holder = values[-1][1]
        values = list(_values_of(holder, schema.name)) if schema else []
        if schema is None or not values:
            return offset
        offset = _first_mention(holder, schema.name)
        if schema.cardinality in (Cardinality.REPEATED, Cardinality.MAP):
            values = _select(values, schema, next(steps, None))
            if not values:
                return offset
            offset = values[0][0]
        fields = fields_of(schema.message) if schema.message else {}
    return offset


def key_of(entry: Message, schema: FieldSchema) -> object:
    """The key of an entry of a map: its default where it is not said, or is of the wrong type."""
    key_schema = entry_of(schema)["key"]
    for _, value in _values_of(entry, "key"):
        try:
            return value_reader(key_schema.value_type)(value)
        except BadValue:
            break
    return default_of(key_schema.value_type)


def path_of_steps(steps: Sequence[Step], message: type[ConfigMessage]) -> Path:
    """The path of a mistake in the syntax: only the schema tells which of its fields are repeated."""
    path: list[str | int] = []
    fields: Mapping[str, FieldSchema] = fields_of(message)
    for step in steps:
        path.append(step.name)
        schema = fields.get(step.name)
        if schema is None:
            fields = {}
            continue
        if schema.cardinality is Cardinality.REPEATED:
            path.append(step.index)
        if schema.cardinality is Cardinality.MAP:
            fields = entry_of(schema)
        else:
            fields = fields_of(schema.message) if schema.message else {}
    return tuple(path)


def _values_of(value: Value, name: str) -> Iterator[_Placed]:
    """What the message `value` holds in its field `name`, the values of lists one by one."""
    if not isinstance(value, Message):
        return
    for field in value.fields:
        if field.name != name:
            continue
        if isinstance(field.value, ListValue):
            yield from ((element.start, element) for element in field.value.values)
        else:
            yield field.start, field.value


def _first_mention(value: Value, name: str) -> int:
    """Where the field `name` of a message, which is there, is first named."""
    assert isinstance(value, Message)
    return next(field.start for field in value.fields if field.name == name)


def _select(values: list[_Placed], schema: FieldSchema, step: str | int | None) -> list[_Placed]:
    """The element that `step` names: by index, or the last entry of a map with that key."""
    if schema.cardinality is Cardinality.REPEATED:
        return values[step : step + 1] if isinstance(step, int) else []
    entries = [
        (start, entry)
        for start, entry in values
        if isinstance(entry, Message) and str(key_of(entry, schema)) == str(step)
    ]
    if not entries:
        return []
    start, entry = entries[-1]
    inner = list(_values_of(entry, "value"))
    return [(start, inner[-1][1] if inner else Message(type(entry.fields)(), start))]
