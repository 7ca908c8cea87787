"""Which argument or result of a PyTorch model a tensor's name means."""

from __future__ import annotations

import pytest

from cantata.runtime.backends.torch_naming import Argument, ValuePath, match_inputs, match_outputs, pick
from cantata.runtime.errors import InferenceError, StatusCode

TWO = (Argument("a", "ARGS[0]"), Argument("b", "ARGS[1]"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "a"], {"b": 1, "a": 0}),
        (["ARGS[1]", "ARGS[0]"], {"ARGS[1]": 1, "ARGS[0]": 0}),
        (["X__1", "Y__0"], {"X__1": 1, "Y__0": 0}),
        (["INPUT__0", "INPUT__1"], {"INPUT__0": 0, "INPUT__1": 1}),
        (["first", "second"], {"first": 0, "second": 1}),
    ],
)
def test_inputs_are_found_by_the_first_convention_that_all_follow(
    names: list[str], expected: dict[str, int]
) -> None:
    assert match_inputs("m", names, TWO) == expected


@pytest.mark.parametrize("names", [["b", "X__0"], ["b", "ARGS[0]"], ["X__0", "Y__0"], ["b", "other"]])
def test_where_one_input_misses_the_convention_all_are_taken_in_order(names: list[str]) -> None:
    assert match_inputs("m", names, TWO) == {names[0]: 0, names[1]: 1}


def test_an_argument_with_a_default_may_be_left_out() -> None:
    arguments = (Argument("a"), Argument("b", is_required=False))
    assert match_inputs("m", ["a"], arguments) == {"a": 0}


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ["a"],
            "model 'm': the model takes a, b, but the configuration has 1 inputs and none for: b",
        ),
        (
            ["b"],
            "model 'm': the model takes a, b, but the configuration has 1 inputs and none for: a",
        ),
        (
            ["x", "y", "z"],
            "model 'm', input 'z': the model takes 2 inputs (a, b), none of which is that one",
        ),
        (
            ["X__0", "X__7"],
            "model 'm', input 'X__7': the model takes 2 inputs (a, b), none of which is that one",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(names: list[str], text: str) -> None:
    with pytest.raises(InferenceError) as caught:
        match_inputs("m", names, TWO)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARG, text)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["RESULT"], {"RESULT": ()}),
        (["RESULT[1]", "RESULT[0][key]"], {"RESULT[1]": (1,), "RESULT[0][key]": (0, "key")}),
        (["Y__1", "X__0"], {"Y__1": (1,), "X__0": (0,)}),
        (["first", "second"], {"first": (0,), "second": (1,)}),
        (["RESULT[1]", "second"], {"RESULT[1]": (0,), "second": (1,)}),
    ],
)
def test_outputs_are_found_by_path_by_number_or_in_order(
    names: list[str], expected: dict[str, ValuePath]
) -> None:
    assert match_outputs(names) == expected


@pytest.mark.parametrize(
    ("result", "name", "path", "expected"),
    [
        (5, "X", (0,), 5),
        (5, "RESULT", (), 5),
        ((5, 6), "X", (1,), 6),
        ([5, {"key": 6}], "X", (1, "key"), 6),
        ({"X": 5, "Y": 6}, "Y", (0,), 6),
        (["a", "b"], "WORDS", (0,), ["a", "b"]),
    ],
)
def test_a_value_is_picked_out_of_the_result(
    result: object, name: str, path: ValuePath, expected: object
) -> None:
    assert pick(result, name, path) == expected


@pytest.mark.parametrize(("result", "path"), [(5, (1,)), ((5,), (1,)), ({"Y": 5}, (0,))])
def test_a_value_that_is_not_there_is_a_lookup_error(result: object, path: ValuePath) -> None:
    with pytest.raises(LookupError):
        pick(result, "X", path)
