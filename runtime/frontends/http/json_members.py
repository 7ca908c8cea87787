"""Reading JSON documents and their members, with the errors that Triton's clients know.

Knows no document in particular. All errors are the caller's: INVALID_ARG, with the member's name.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from cantata.runtime.errors import InferenceError, invalid_argument
from cantata.runtime.response import ParameterValue


def parse_json(text: bytes | memoryview) -> object:
    """The value that `text` is; NaN and infinities are read too. Raises InferenceError with the position."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        problem = f"failed to parse the request JSON buffer: {error.msg} at {error.pos}"
    text = bytes(text)
    if b"NaN" in text or b"Inf" in text:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    if "depth limit" in problem:
        problem = "JSON nesting depth exceeds maximum allowed limit (100)"
    raise invalid_argument(problem)


def member(holder: object, key: str) -> Any:
    """The member `key` of a JSON object, which must have it."""
    if type(holder) is dict and key in holder:
        return holder[key]
    raise missing_member(key)


def missing_member(key: str) -> InferenceError:
    """What is said of a member that must be there."""
    return invalid_argument(f"Unable to parse '{key}': attempt to access non-existing object member '{key}'")


def string(value: object, field: str) -> str:
    """`value` if it is a string."""
    if type(value) is str:
        return value
    raise invalid_argument(f"Unable to parse '{field}': attempt to access JSON non-string as string")


def array(value: object, field: str) -> list[Any]:
    """`value` if it is an array."""
    if type(value) is list:
        return value
    raise invalid_argument(f"Unable to parse '{field}': attempt to access JSON non-array as array")


def boolean(value: object, field: str) -> bool:
    """`value` if it is true or false."""
    if type(value) is bool:
        return value
    raise invalid_argument(f"Unable to parse '{field}': attempt to access JSON non-boolean as boolean")


def unsigned(value: object, field: str, verb: str = "parse") -> int:
    """`value` if it is an integer that is not negative."""
    if type(value) is int and value >= 0:
        return value
    raise unsigned_error(field, verb)


def unsigned_error(field: str, verb: str = "parse") -> InferenceError:
    """What is said of anything else where an unsigned integer must be."""
    return invalid_argument(
        f"Unable to {verb} '{field}': attempt to access JSON non-unsigned-integer as unsigned-integer"
    )


def parameter_value(key: str, value: object) -> ParameterValue:
    """`value` if a request's parameter can have it."""
    if isinstance(value, str | bool | int | float):
        return value
    raise invalid_argument(
        f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'."
    )
