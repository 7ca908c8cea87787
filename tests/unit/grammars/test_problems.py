"""Problems as text and as JSON, and suggestions for misspelt words."""

from __future__ import annotations

import pytest

from cantata.grammars.problems import Position, Positions, Problem, format_path, suggest


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("bad"), "bad"),
        (Problem("bad", hint="mend it"), "bad (mend it)"),
        (Problem("bad", path="input[0]"), "input[0]: bad"),
        (Problem("bad", "f", 3, 7, "name", "mend it"), "f:3:7: name: bad (mend it)"),
        (Problem("bad", "f"), "f: bad"),
        (Problem("bad", line=3, column=7), "3:7: bad"),
    ],
)
def test_a_problem_leaves_out_what_is_not_known(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_problem_in_json_has_every_part() -> None:
    assert Problem("bad", "f", 3, 7, "name", "mend it", "m").to_json() == {
        "message": "bad",
        "file": "f",
        "line": 3,
        "column": 7,
        "path": "name",
        "hint": "mend it",
        "model": "m",
    }


def test_positions_of_nothing_know_no_place() -> None:
    assert Positions().at(("name",)) == Position(0, 0)
    assert Positions("f").problem(("input", 0), "bad") == Problem("bad", "f", path="input[0]")


def test_a_path_quotes_what_is_no_name() -> None:
    assert format_path(("step", 1, "input_map", "a b")) == "step[1].input_map['a b']"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("nmae", "did you mean 'name'?"), ("NAME", "did you mean 'name'?"), ("q", ""), ("", "")],
)
def test_a_suggestion_is_made_only_where_a_word_is_near(word: str, hint: str) -> None:
    assert suggest(word, ["name", "platform"]) == hint
