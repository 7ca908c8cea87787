"""Which argument or result of a PyTorch model each tensor of a configuration is, found by its name.

Owns the naming conventions of the reference, section 11. Plain names and paths: does not import torch.

A path is where a value stands in a call or a result, as Python would index it: `(0, "ids")` is `ARGS[0][ids]`, and
`()` is a result that is one value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cantata.grammars.problems import suggest
from cantata.runtime.errors import InferenceError, invalid_argument

ValuePath = tuple[int | str, ...]

_NUMBERED: Final = re.compile(r".*__(\d+)", re.DOTALL)
_PATH: Final = re.compile(r"(ARGS|KWARGS|RESULT)((?:\[[^\[\]]+\])*)")
_INDEX: Final = re.compile(r"\[([^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Argument:
    """One tensor (or list of strings) that a model is called with.

    `name` is the forward() argument's, or its key in a dictionary; empty where the model's file does not tell.
    `path` is `ARGS[..]` or `KWARGS[..]` as a path, empty for a TorchScript model, which has none.
    """

    name: str
    path: str = ""
    is_required: bool = True


def match_inputs(model: str, names: Sequence[str], arguments: Sequence[Argument]) -> dict[str, int]:
    """The argument of each input: all by name, else all by path, else all by `__<index>`, else in order.

    Raises InferenceError (INVALID_ARG) when an argument without default is left over, or there are more inputs
    than arguments.
    """
    by_name = {argument.name: index for index, argument in enumerate(arguments) if argument.name}
    by_path = {argument.path: index for index, argument in enumerate(arguments) if argument.path}
    numbers = _numbers(names)
    if by_name.keys() >= set(names):
        matched = {name: by_name[name] for name in names}
    elif by_path.keys() >= set(names):
        matched = {name: by_path[name] for name in names}
    elif numbers is not None:
        matched = numbers
    else:
        matched = {name: index for index, name in enumerate(names)}
    _check_matched(model, matched, arguments)
    return matched


def match_outputs(names: Sequence[str]) -> dict[str, ValuePath]:
    """Where each output stands in the result: all by `RESULT[..]`, else all by `__<index>`, else in order."""
    paths = {name: _result_path(name) for name in names}
    if None not in paths.values():
        return {name: path for name, path in paths.items() if path is not None}
    numbers = _numbers(names)
    if numbers is not None:
        return {name: (index,) for name, index in numbers.items()}
    return {name: (index,) for index, name in enumerate(names)}


def pick(result: object, name: str, path: ValuePath) -> object:
    """The value of output `name` in `result`; a dictionary is asked for the name, a single value is output 0.

    Raises LookupError when there is none.
    """
    if isinstance(result, Mapping) and name in result:
        return result[name]
    if isinstance(result, Mapping | Sequence) and not _is_text_list(result):
        for step in path:
            result = result[step]  # type: ignore[index]
        return result
    if path in ((), (0,)):
        return result
    raise LookupError(name)


def _is_text_list(result: object) -> bool:
    return isinstance(result, Sequence) and all(isinstance(element, str) for element in result)


def _numbers(names: Sequence[str]) -> dict[str, int] | None:
    found = {name: int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))}
    if len(found) < len(names) or len(set(found.values())) < len(names):
        return None
    return found


def _result_path(name: str) -> ValuePath | None:
    match = _PATH.fullmatch(name)
    if match is None or match[1] != "RESULT":
        return None
    return tuple(int(step) if step.isdecimal() else step for step in _INDEX.findall(match[2]))


def _check_matched(model: str, matched: Mapping[str, int], arguments: Sequence[Argument]) -> None:
    described = ", ".join(argument.name or argument.path for argument in arguments) or "nothing"
    for name, index in matched.items():
        if index >= len(arguments):
            hint = suggest(name, [argument.name for argument in arguments if argument.name])
            raise invalid_argument(
                f"model '{model}', input '{name}': the model takes {len(arguments)} inputs ({described}), "
                f"none of which is that one" + (f" ({hint})" if hint else "")
            )
    missing = [
        argument.name or argument.path
        for index, argument in enumerate(arguments)
        if argument.is_required and index not in matched.values()
    ]
    if missing:
        raise _missing(model, len(matched), described, missing)


def _missing(model: str, count: int, described: str, missing: Sequence[str]) -> InferenceError:
    return invalid_argument(
        f"model '{model}': the model takes {described}, but the configuration has {count} inputs and none for: "
        + ", ".join(missing)
    )
