"""What a configuration message may hold, read off its pydantic model: fields, their types, and oneofs.

The readers of text and JSON, the JSON printer and the message converters all walk these tables. Knows no message
by name.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import struct
import types
import typing
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cantata.grammars.problems import Path, suggest


class ScalarType(enum.Enum):
    """The scalar types of the protobuf language that configurations use."""

    BOOL = "bool"
    INT32 = "int32"
    INT64 = "int64"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOAT = "float"
    DOUBLE = "double"
    STRING = "string"


# The least and greatest value of each integer type.
INTEGER_RANGES: Final[Mapping[ScalarType, tuple[int, int]]] = {
    ScalarType.INT32: (-(2**31), 2**31 - 1),
    ScalarType.INT64: (-(2**63), 2**63 - 1),
    ScalarType.UINT32: (0, 2**32 - 1),
    ScalarType.UINT64: (0, 2**64 - 1),
}


def to_single_precision(value: float) -> float:
    """The float32 nearest to `value`, as what a `float` field would hold; infinite where it is out of range."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1), ScalarType.INT32]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), ScalarType.INT64]
UInt32 = Annotated[int, Field(ge=0, le=2**32 - 1), ScalarType.UINT32]
UInt64 = Annotated[int, Field(ge=0, le=2**64 - 1), ScalarType.UINT64]
Float = Annotated[float, AfterValidator(to_single_precision), ScalarType.FLOAT]
Double = Annotated[float, ScalarType.DOUBLE]


class ConfigMessage(BaseModel):
    """A message of model_config.proto. An absent sub-message or member of a oneof is None."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    # Groups of fields of which at most one may be set.
    oneofs: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @model_validator(mode="after")
    def _check_oneofs(self) -> Self:
        for name, members in self.oneofs.items():
            if len(present := [member for member in members if getattr(self, member) is not None]) > 1:
                raise ValueError(
                    f"{' and '.join(present)} are members of oneof {name!r}; set only one of them"
                )
        return self


class Cardinality(enum.Enum):
    """How many values a field holds, and whether absence is told apart from the default."""

    SINGULAR = enum.auto()
    OPTIONAL = enum.auto()
    REPEATED = enum.auto()
    MAP = enum.auto()


ValueType: TypeAlias = ScalarType | type[enum.IntEnum] | type[ConfigMessage]


@dataclasses.dataclass(frozen=True, slots=True)
class FieldSchema:
    """One field: its name in the text, the attribute that holds it, and what it may hold."""

    name: str
    attribute: str
    cardinality: Cardinality
    value_type: ValueType
    key_type: ScalarType | None = None
    oneof: str = ""
    # The other members of its oneof.
    rivals: tuple[str, ...] = ()

    @property
    def message(self) -> type[ConfigMessage] | None:
        """The class of the message it holds, or None where it holds a scalar or an enum."""
        if isinstance(self.value_type, type) and issubclass(self.value_type, ConfigMessage):
            return self.value_type
        return None

    @property
    def enumeration(self) -> type[enum.IntEnum] | None:
        """The enum it holds, or None."""
        if isinstance(self.value_type, type) and issubclass(self.value_type, enum.IntEnum):
            return self.value_type
        return None


@functools.cache
def fields_of(message: type[ConfigMessage]) -> Mapping[str, FieldSchema]:
    """The fields of a message by name, in the order of its declaration."""
    hints = typing.get_type_hints(message, include_extras=True)
    fields = {}
    for attribute, info in message.model_fields.items():
        name = info.alias or attribute
        fields[name] = _field_schema(name, attribute, hints[attribute])
    for oneof, members in message.oneofs.items():
        for member in members:
            rivals = tuple(other for other in members if other != member)
            fields[member] = dataclasses.replace(fields[member], oneof=oneof, rivals=rivals)
    return fields


@functools.cache
def entry_of(field: FieldSchema) -> Mapping[str, FieldSchema]:
    """The two fields that an entry of a map is written with."""
    assert field.key_type is not None
    cardinality = Cardinality.SINGULAR if field.message is None else Cardinality.OPTIONAL
    return {
        "key": FieldSchema("key", "key", Cardinality.SINGULAR, field.key_type),
        "value": FieldSchema("value", "value", cardinality, field.value_type),
    }


def format_field_path(message: type[ConfigMessage], path: Path) -> str:
    """`ensemble_scheduling.step[1].input_map['X']`: a path from `message`, the keys of its maps in quotes."""
    text = ""
    fields = fields_of(message)
    is_key = False
    for step in path:
        if is_key or isinstance(step, int):
            text += f"[{step!r}]"
            is_key = False
            continue
        text += f".{step}" if text else step
        field = fields.get(step)
        fields = fields_of(field.message) if field and field.message else {}
        is_key = field is not None and field.cardinality is Cardinality.MAP
    return text


def suggest_member(word: str, enumeration: type[enum.IntEnum]) -> str:
    """The member of an enum that `word` was meant for, or all of them where none is near."""
    names = enumeration.__members__
    for prefix, name in _OTHER_NAMES.items():
        if word.upper().removeprefix("TYPE_") == prefix and name in names:
            return f"did you mean {name!r}?"
    return suggest(word, names) or f"one of {', '.join(names)}"


# What other frameworks call the datatypes.
_OTHER_NAMES: Final[Mapping[str, str]] = {
    "BFLOAT16": "TYPE_BF16",
    "BYTES": "TYPE_STRING",
    "DOUBLE": "TYPE_FP64",
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "FLOAT32": "TYPE_FP32",
    "FLOAT64": "TYPE_FP64",
    "HALF": "TYPE_FP16",
    "INT": "TYPE_INT32",
    "LONG": "TYPE_INT64",
}


def default_of(value_type: ValueType) -> object:
    """The value of a field, not repeated, that the text does not mention."""
    match value_type:
        case ScalarType.STRING:
            return ""
        case ScalarType.BOOL:
            return False
        case ScalarType.FLOAT | ScalarType.DOUBLE:
            return 0.0
        case ScalarType():
            return 0
        case _:
            return value_type(0) if issubclass(value_type, enum.IntEnum) else {}


def _field_schema(name: str, attribute: str, hint: object) -> FieldSchema:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return FieldSchema(name, attribute, Cardinality.OPTIONAL, _value_type(arguments[0]))
    if origin is tuple:
        return FieldSchema(name, attribute, Cardinality.REPEATED, _value_type(arguments[0]))
    if origin is dict:
        key_type = _value_type(arguments[0])
        assert isinstance(key_type, ScalarType)
        return FieldSchema(name, attribute, Cardinality.MAP, _value_type(arguments[1]), key_type)
    return FieldSchema(name, attribute, Cardinality.SINGULAR, _value_type(hint))


def _value_type(hint: object) -> ValueType:
    if hint is str:
        return ScalarType.STRING
    if hint is bool:
        return ScalarType.BOOL
    if isinstance(hint, type) and issubclass(hint, (enum.IntEnum, ConfigMessage)):
        return hint
    for metadata in getattr(hint, "__metadata__", ()):
        if isinstance(metadata, ScalarType):
            return metadata
    raise TypeError(f"{hint!r} is no type of a configuration field")
