"""Random protobuf messages of any type, and mutated texts, for checking parsers against protobuf's own."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_MOST_VALUES = 3
_MOST_FIELDS = 4

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32, allow_nan=False) | st.just(float("nan")),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False) | st.just(float("nan")),
    FieldDescriptor.CPPTYPE_STRING: st.text(max_size=8) | st.text("ab\\\"'\n\t\x00\x7f\u00e9", max_size=8),
}

_WORD = re.compile(r"""[a-zA-Z_][\w+-]*|[0-9.+-][\w.+-]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|\s+|.""")
_WORDS_TO_PUT_IN = """
{ } < > [ ] : , ; # $ = " ' / ! \u00e9
name dims input true false t f True False TYPE_FP32 KIND_CPU KIND_GPU inf -inf infinity nan -nan inff nanf key value
0 1 -1 +1 00 010 08 0x1F 0X1f -0x1 0b11 0o17 1_0 2147483648 4294967296 9223372036854775808 18446744073709551616
1.5 1.5f .5 5. 1e3 1e400 -1.5e-3F 01.5 1.5ff 0x1.8 3f
"x" 'x' "" "\\x41" "\\101" "\\u00e9" "\\U0001F600" "\\ud800" "\\U00110000" "\\n\\a\\'" "\\xff" "\\777" "\\q" "it's"
"""


@st.composite
def messages(draw: st.DrawFn, message_class: type[Message], most_fields: int = _MOST_FIELDS) -> Message:
    """A message of a class, with some of its fields set, and so for the messages within."""
    message = message_class()
    fill(draw, message, most_fields)
    return message


def fill(draw: st.DrawFn, message: Any, most_fields: int) -> None:
    """Sets some fields of `message`."""
    descriptor: Descriptor = message.DESCRIPTOR
    if not descriptor.fields:
        return
    fields = draw(
        st.lists(st.sampled_from(list(descriptor.fields)), max_size=most_fields, unique_by=lambda f: f.name)
    )
    oneofs: set[str] = set()
    for field in fields:
        if field.containing_oneof is not None:
            if field.containing_oneof.name in oneofs:
                continue
            oneofs.add(field.containing_oneof.name)
        _set_field(draw, message, field, most_fields)


def _set_field(draw: st.DrawFn, message: Any, field: FieldDescriptor, most_fields: int) -> None:
    value = getattr(message, field.name)
    count = draw(st.integers(0, _MOST_VALUES)) if field.is_repeated else 1
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        for _ in range(count):
            key = draw(_scalar(entry["key"]))
            if entry["value"].message_type is None:
                value[key] = draw(_scalar(entry["value"]))
            else:
                fill(draw, value[key], most_fields)
    elif field.message_type is not None:
        targets = [value.add() for _ in range(count)] if field.is_repeated else [value]
        for target in targets:
            target.SetInParent()
            fill(draw, target, most_fields)
    elif field.is_repeated:
        value.extend(draw(_scalar(field)) for _ in range(count))
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return _SCALARS[field.cpp_type]


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """`text` with a few of its words dropped, doubled, swapped or replaced."""
    words = _WORD.findall(text) or [""]
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(words) - 1))
        action = draw(st.sampled_from(["drop", "double", "swap", "replace", "insert", "cut"]))
        if action == "drop":
            words[index] = ""
        elif action == "double":
            words[index] *= 2
        elif action == "swap":
            other = draw(st.integers(0, len(words) - 1))
            words[index], words[other] = words[other], words[index]
        elif action == "replace":
            words[index] = draw(st.sampled_from(_WORDS_TO_PUT_IN.split()))
        elif action == "insert":
            words[index] += " " + draw(st.sampled_from(_WORDS_TO_PUT_IN.split())) + " "
        else:
            words[index] = words[index][: len(words[index]) // 2]
    return "".join(words)
