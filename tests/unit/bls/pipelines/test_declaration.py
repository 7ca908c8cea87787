"""What a pipeline declares, and what is said where the declaration and the code do not fit."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cantata import bls

X = {"X": bls.FP32[-1]}
Y = {"Y": bls.FP32[-1]}


async def returns(X: Any) -> Any:
    return {"Y": X}


async def yields(X: Any) -> AsyncIterator[Any]:
    yield {"Y": X}


def test_a_decorated_function_is_still_that_function() -> None:
    @bls.model(inputs=X, outputs=Y)
    def double(X: float) -> float:
        """Twice."""
        return X * 2

    assert (double(2.0), double.__doc__) == (4.0, "Twice.")


@pytest.mark.parametrize(
    ("function", "is_async", "is_decoupled"),
    [
        (lambda X: X, False, False),
        (lambda X: (yield X), False, True),
        (returns, True, False),
        (yields, True, True),
    ],
)
def test_what_kind_of_function_it_is_says_how_it_runs(
    function: Callable[..., Any], is_async: bool, is_decoupled: bool
) -> None:
    declaration = bls.model(inputs=X, outputs=Y)(function).declaration
    assert (declaration.is_async, declaration.is_decoupled) == (is_async, is_decoupled)


def test_inputs_whose_parameters_have_defaults_are_optional() -> None:
    @bls.model(inputs={**X, "LIMIT": bls.INT32[1], "FLAG": bls.BOOL[1]}, outputs=Y)
    def model(X: Any, LIMIT: Any = None, *, FLAG: Any = False) -> Any: ...

    assert model.declaration.optional_inputs == {"LIMIT", "FLAG"}


def test_a_function_may_take_any_input() -> None:
    @bls.model(inputs={"boxes.0": bls.FP32[-1]}, outputs=Y)
    def model(**inputs: Any) -> Any: ...

    assert model.declaration.inputs == {"boxes.0": bls.FP32[-1]}


def test_a_class_declares_itself_by_its_attributes() -> None:
    class Base(bls.Model):
        inputs = X
        outputs = Y

    class Double(Base):
        def execute(self, X: Any) -> Any: ...

    assert (Double.declaration.name, Double.declaration.inputs) == ("Double", X)
    assert not hasattr(Base, "declaration")


WRONG: list[tuple[str, dict[str, Any], Callable[..., Any], str]] = [
    (
        "unknown parameter",
        {},
        lambda X, Xs: X,
        "the model <lambda> takes 'Xs', which is not among its inputs",
    ),
    ("input not taken", {}, lambda: 1, "the model <lambda> does not take its input 'X'"),
    ("no inputs", {"inputs": {}}, lambda: 1, "the model <lambda> declares no inputs"),
    ("no outputs", {"outputs": {}}, lambda X: 1, "the model <lambda> declares no outputs"),
    (
        "no dims",
        {"inputs": {"X": bls.FP32}},
        lambda X: 1,
        "input 'X' of the model <lambda>: a type such as bls.FP32[-1] is expected",
    ),
    (
        "stacked stream",
        {"max_batch_size": 4},
        yields,
        "the model yields yields its answers: it cannot take several requests as one batch",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "function", "text"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_a_declaration_that_does_not_fit_is_refused(
    arguments: dict[str, Any], function: Callable[..., Any], text: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        bls.model(**{"inputs": X, "outputs": Y, **arguments})(function)


def test_a_class_without_outputs_is_refused() -> None:
    with pytest.raises(TypeError, match="Half does not declare its outputs"):
        type("Half", (bls.Model,), {"inputs": X, "execute": returns})


@pytest.mark.parametrize("dims", [(), 0, -2, (3, "a"), 1.5])
def test_dims_that_no_tensor_has_are_refused(dims: Any) -> None:
    with pytest.raises(TypeError, match="the dims of a tensor"):
        bls.FP32[dims]
