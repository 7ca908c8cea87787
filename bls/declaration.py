"""How a pipeline declares itself: `@bls.model` over a function, or a subclass of `bls.Model`.

Owns what is declared and its check against the function's signature. Knows neither servers nor configurations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

from cantata.bls.element_types import TensorType
from cantata.grammars.problems import suggest
from cantata.runtime.errors import invalid_argument

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """What a model may know of where it runs. `parameters` are those of its configuration."""

    model: str
    version: int
    directory: Path
    name: str
    kind: str
    device_id: int
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Declaration:
    """A model as its code declares it. `max_batch_size` above 0 is the number of rows that it takes at once."""

    name: str
    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    optional_inputs: frozenset[str]
    max_batch_size: int
    is_async: bool
    is_decoupled: bool


class DeclaredModel(Generic[P, R]):
    """What `@bls.model` makes of a function. Calling it calls the function."""

    def __init__(self, function: Callable[P, R], declaration: Declaration) -> None:
        self.function = function
        self.declaration = declaration
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)


def model(
    *,
    inputs: Mapping[str, TensorType],
    outputs: Mapping[str, TensorType],
    max_batch_size: int = 0,
) -> Callable[[Callable[P, R]], DeclaredModel[P, R]]:
    """Make a model of a function that takes the inputs by name and returns a dictionary of the outputs.

    An `async def` may call other models and answers many requests side by side; a plain `def` computes, one request
    at a time. Where it yields dictionaries instead of returning one, the model is decoupled. An input whose
    parameter has a default is optional. With `max_batch_size` the function takes arrays with a leading batch
    dimension, in which the rows of several requests are stacked. Raises TypeError where the declaration and the
    function do not fit.
    """

    def declare(function: Callable[P, R]) -> DeclaredModel[P, R]:
        name = getattr(function, "__name__", "model")
        return DeclaredModel(function, _declare(name, function, inputs, outputs, max_batch_size))

    return declare


class Model:
    """A model with state: a subclass declares `inputs` and `outputs`, and has an `execute` that takes the inputs.

    What is said of functions in `bls.model` holds for `execute`. Each instance of the model is an object of the
    class; `initialize` runs before its first request and `finalize` after its last.
    """

    inputs: ClassVar[Mapping[str, TensorType]]
    outputs: ClassVar[Mapping[str, TensorType]]
    max_batch_size: ClassVar[int] = 0
    declaration: ClassVar[Declaration]
    execute: Callable[..., Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        execute = getattr(cls, "execute", None)
        if execute is None:
            # A base of others.
            return
        missing = [name for name in ("inputs", "outputs") if not hasattr(cls, name)]
        if missing:
            raise TypeError(f"the model {cls.__name__} does not declare its {' and '.join(missing)}")
        cls.declaration = _declare(cls.__name__, execute, cls.inputs, cls.outputs, cls.max_batch_size, skip=1)

    def initialize(self, instance: InstanceInfo) -> None:
        """Read what the model needs."""

    def finalize(self) -> None:
        """Let go of it."""


def find_declared(module: ModuleType) -> DeclaredModel[..., Any] | type[Model] | None:
    """The one model that a module declares; None without. Raises InferenceError where there are several."""
    found = {
        id(value): (name, value)
        for name, value in vars(module).items()
        if is_declared(value) and value.__module__ == module.__name__
    }
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(f"`{name}`" for name, _ in found.values())
        raise invalid_argument(
            f"Python model {module.__file__} declares several models: {names}. One is served."
        )
    [(_, declared)] = found.values()
    return declared  # type: ignore[no-any-return]


def is_declared(value: object) -> bool:
    """Whether it is a decorated function, or a subclass of Model that has an `execute`."""
    if isinstance(value, type):
        return issubclass(value, Model) and "declaration" in value.__dict__
    return isinstance(value, DeclaredModel)


def _declare(
    name: str,
    function: Callable[..., Any],
    inputs: Mapping[str, TensorType],
    outputs: Mapping[str, TensorType],
    max_batch_size: int,
    skip: int = 0,
) -> Declaration:
    for kind, tensors in (("input", inputs), ("output", outputs)):
        if not tensors:
            raise TypeError(f"the model {name} declares no {kind}s")
        for tensor_name, tensor_type in tensors.items():
            if not isinstance(tensor_type, TensorType):
                raise TypeError(
                    f"{kind} '{tensor_name}' of the model {name}: a type such as bls.FP32[-1] is expected"
                )
    is_async_stream = inspect.isasyncgenfunction(function)
    is_decoupled = is_async_stream or inspect.isgeneratorfunction(function)
    if is_decoupled and max_batch_size:
        raise TypeError(f"the model {name} yields its answers: it cannot take several requests as one batch")
    return Declaration(
        name,
        dict(inputs),
        dict(outputs),
        _optional_inputs(name, function, inputs, skip),
        max_batch_size,
        is_async=is_async_stream or inspect.iscoroutinefunction(function),
        is_decoupled=is_decoupled,
    )


def _optional_inputs(
    name: str, function: Callable[..., Any], inputs: Mapping[str, TensorType], skip: int
) -> frozenset[str]:
    """The inputs whose parameters have defaults, once the parameters are found to be the inputs."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for parameter in named:
        if parameter not in inputs:
            hint = suggest(parameter, inputs)
            raise TypeError(
                f"the model {name} takes '{parameter}', which is not among its inputs"
                + (f" ({hint})" if hint else "")
            )
    for input_name in inputs:
        if input_name not in named and not takes_any:
            raise TypeError(f"the model {name} does not take its input '{input_name}'")
    return frozenset(
        parameter.name for parameter in named.values() if parameter.default is not parameter.empty
    )
