"""`cantata check` and `cantata graph` as commands: what they print, and how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cantata.runtime.cli import main
from tests.support.model_files import (
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_add,
    write_model,
)

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    one = write_add(tmp_path, 1)
    write_model(
        tmp_path,
        "chain",
        ensemble_config([IN], [OUT], [step_text(one, {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]),
    )
    return tmp_path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    write_model(
        tmp_path,
        "typo",
        'backend: "python"\nmax_batch_sise: 4\ninput { name: "A" data_type: TYPE_FP23 dims: 1 }\n',
    )
    write_model(
        tmp_path,
        "lost",
        ensemble_config([IN], [OUT], [step_text("nobody", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]),
    )
    return tmp_path


def test_a_sound_repository_passes(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(sound)]) == 0
    assert capsys.readouterr().out == "2 models, no problems\n"


def test_every_problem_of_a_repository_is_reported_with_its_place(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(broken)]) == 1
    lines = capsys.readouterr().out.splitlines()
    typo, lost = broken / "typo" / "config.pbtxt", broken / "lost" / "config.pbtxt"
    assert [line.split(": ")[0] for line in lines[:3]] == [f"{typo}:2:1", f"{typo}:3:30", f"{lost}:5:32"] or [
        line.split(": ")[0] for line in lines[:3]
    ] == [f"{lost}:5:32", f"{typo}:2:1", f"{typo}:3:30"]
    text = "\n".join(lines)
    assert "did you mean 'max_batch_size'?" in text
    assert "did you mean 'TYPE_FP32'?" in text
    assert "ensemble lost contains models that are not available or ambiguous: nobody" in text
    assert lines[-1] == "2 models, 3 problems"


def test_problems_can_be_had_as_json(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(broken), "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == ["lost", "typo"]
    found = {(problem["model"], problem["line"], problem["column"]) for problem in document["problems"]}
    assert found == {("typo", 2, 1), ("typo", 3, 30), ("lost", 5, 32)}


def test_checking_does_not_run_models_whose_configuration_says_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, "never", python_config([IN], [OUT]), code="raise SystemExit('imported')\n")
    assert main(["check", str(tmp_path)]) == 0
    assert "no problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "expected"),
    [("text", "step 0  add_1"), ("mermaid", "flowchart"), ("dot", "digraph"), ("svg", "<svg")],
)
def test_an_ensemble_is_drawn_with_its_types_and_shapes(
    sound: Path, capsys: pytest.CaptureFixture[str], form: str, expected: str
) -> None:
    assert main(["graph", str(sound), "chain", "--format", form]) == 0
    drawing = capsys.readouterr().out
    assert expected in drawing
    assert "FP32" in drawing
    assert "[-1]" in drawing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chekc"], "cantata: unknown command 'chekc'; did you mean 'check'?"),
        (["--http-prot=1"], "cantata: unknown flag --http-prot; did you mean '--http-port'?"),
        (["--model-repository=/nowhere"], "server] cannot read model repository '/nowhere'"),
        (["check"], "cantata: check needs the directory of a model repository"),
        (
            ["check", "/nowhere"],
            "cantata: cannot read model repository '/nowhere': No such file or directory",
        ),
        (["check", ".", "--formt=json"], "cantata: unknown flag --formt; did you mean '--format'?"),
        (["graph", "REPOSITORY", "chian"], "did you mean 'chain'?"),
        (["serve", "--http-prt=1"], "cantata: unknown flag --http-prt; did you mean '--http-port'?"),
    ],
)
def test_a_wrong_command_line_says_what_was_meant(
    sound: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(sound) if word == "REPOSITORY" else word for word in arguments]) == 1
    assert message in capsys.readouterr().err
