"""What is found wrong with an ensemble's own configuration, and among ensembles."""

from __future__ import annotations

import pytest

from cantata.dag.checks import check_cycles, check_ensemble
from cantata.grammars.model_config import (
    ModelConfig,
    ModelInstanceGroup,
    ModelOptimizationPolicy,
    ModelWarmup,
)
from cantata.grammars.problems import Positions
from cantata.grammars.reading import read_model_config
from tests.support.ensembles import ensemble, step

A_TO_B = step("m", {"IN": "A"}, {"OUT": "B"})
SOUND = ensemble(["A"], ["B"], [A_TO_B])


def messages(config: ModelConfig) -> list[str]:
    return [problem.message for problem in check_ensemble(config, Positions())]


def test_a_sound_ensemble_has_no_problem() -> None:
    assert check_ensemble(SOUND, Positions()) == []


def test_a_model_that_is_no_ensemble_is_not_looked_at() -> None:
    assert check_ensemble(ModelConfig(name="m", instance_group=(ModelInstanceGroup(),)), Positions()) == []


@pytest.mark.parametrize(
    ("label", "update", "text"),
    [
        (
            "another platform",
            {"platform": "onnxruntime_onnx"},
            "ensemble scheduling cannot be set for model 'pipeline' whose platform is not ensemble",
        ),
        (
            "instances",
            {"instance_group": (ModelInstanceGroup(),)},
            "instance group should not be specified for ensemble 'pipeline'",
        ),
        (
            "optimization",
            {"optimization": ModelOptimizationPolicy()},
            "optimization should not be specified for ensemble 'pipeline'",
        ),
        (
            "warmup",
            {"model_warmup": (ModelWarmup(name="w"),)},
            "model_warmup can not be specified for ensemble 'pipeline'",
        ),
    ],
)
def test_fields_that_an_ensemble_can_not_have(label: str, update: dict[str, object], text: str) -> None:
    assert messages(SOUND.model_copy(update=update)) == [text], label


@pytest.mark.parametrize(
    ("label", "config", "texts"),
    [
        ("no steps", ensemble(["A"], ["B"], []), ["must specify 'step' for ensemble 'pipeline'"]),
        (
            "steps that lack something",
            ensemble(
                ["A"],
                ["B"],
                [step("", {"IN": "A"}, {"OUT": "B"}), step("m", {}, {"O": "C"}), step("m", {"I": "C"}, {})],
            ),
            [
                "must specify 'model_name' in step 0 of ensemble 'pipeline'",
                "must specify 'input_map' in step 1 of ensemble 'pipeline'",
                "must specify 'output_map' in step 2 of ensemble 'pipeline'",
            ],
        ),
        (
            "a tensor written twice",
            ensemble(["A"], ["B"], [A_TO_B, A_TO_B]),
            ["ensemble tensor 'B' can appear in an output map only once for ensemble 'pipeline' step 1"],
        ),
        (
            "a tensor written twice by one step",
            ensemble(["A"], ["B"], [step("m", {"IN": "A"}, {"X": "B", "Y": "B"})]),
            ["ensemble tensor 'B' can appear in an output map only once for ensemble 'pipeline' step 0"],
        ),
        (
            "an input that nobody reads",
            ensemble(["A", "Z"], ["B"], [A_TO_B]),
            ["ensemble input 'Z' for ensemble pipeline' is not used"],
        ),
        (
            "an output that nobody writes",
            ensemble(["A"], ["B", "Z"], [A_TO_B]),
            ["ensemble output 'Z' for ensemble pipeline' is not used"],
        ),
        (
            "an output that is only read",
            ensemble(["A"], ["B", "C"], [step("m", {"IN": "A", "MORE": "C"}, {"OUT": "B"})]),
            [
                "output 'B' for ensemble 'pipeline' is not written: at least one of its depending tensors, 'C', "
                "is not connected",
                "output 'C' for ensemble 'pipeline' is not written",
            ],
        ),
        (
            "an output behind a tensor that nothing writes",
            ensemble(
                ["A"],
                ["D"],
                [step("m", {"X": "A", "Y": "LOST"}, {"OUT": "C"}), step("n", {"I": "C"}, {"O": "D"})],
            ),
            [
                "output 'D' for ensemble 'pipeline' is not written: at least one of its depending tensors, "
                "'LOST', is not connected"
            ],
        ),
        (
            "a cycle",
            ensemble(
                ["A"],
                ["C"],
                [step("m", {"X": "A", "Y": "C"}, {"OUT": "B"}), step("n", {"I": "B"}, {"O": "C"})],
            ),
            [
                "output 'C' for ensemble 'pipeline' is not written: at least one of its depending tensors, 'B', "
                "is not connected"
            ],
        ),
        (
            "a step that feeds itself",
            ensemble(["A"], ["B"], [step("m", {"X": "A", "Y": "B"}, {"OUT": "B"})]),
            ["output 'B' for ensemble 'pipeline' is not written"],
        ),
        (
            "a tensor that nobody reads",
            ensemble(["A"], ["B"], [step("m", {"IN": "A"}, {"OUT": "B", "MORE": "C"})]),
            ["ensemble tensor 'C' is unused in ensemble 'pipeline'"],
        ),
        (
            "a dead end that never runs",
            ensemble(["A"], ["B"], [A_TO_B, step("n", {"I": "LOST"}, {"O": "C"})]),
            [
                "ensemble tensor 'LOST' is unused in ensemble 'pipeline'",
                "ensemble tensor 'C' is unused in ensemble 'pipeline'",
            ],
        ),
        (
            "an input that is only written",
            ensemble(["A", "I"], ["B"], [step("m", {"IN": "A"}, {"OUT": "B", "MORE": "I"})]),
            ["ensemble tensor 'I' is unused in ensemble 'pipeline'"],
        ),
    ],
)
def test_wiring_that_can_not_work(label: str, config: ModelConfig, texts: list[str]) -> None:
    assert messages(config) == texts, label


@pytest.mark.parametrize(
    ("label", "config"),
    [
        ("an input that is also an output", ensemble(["A"], ["A", "B"], [A_TO_B])),
        (
            "an input that a step writes too",
            ensemble(["A"], ["B"], [step("m", {"I": "A"}, {"O": "B", "E": "A"})]),
        ),
        (
            "an output that is read on",
            ensemble(["A"], ["B", "C"], [A_TO_B, step("n", {"I": "B"}, {"O": "C"})]),
        ),
        ("steps in any order", ensemble(["A"], ["C"], [step("n", {"I": "B"}, {"O": "C"}), A_TO_B])),
    ],
)
def test_wiring_that_is_unusual_and_allowed(label: str, config: ModelConfig) -> None:
    assert messages(config) == [], label


TEXT = """\
platform: "ensemble"
name: "ocr"
input { name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1 ] }
output { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] }
ensemble_scheduling {
  step {
    model_name: "decode"
    model_version: -1
    input_map { key: "BYTES" value: "IMGAE" }
    output_map { key: "PIXELS" value: "pixels" }
    output_map { key: "SCALE" value: "scale" }
  }
  step {
    model_name: "read"
    model_version: -1
    input_map { key: "PIXELS" value: "pixels" }
    output_map { key: "TEXT" value: "pixels" }
  }
}
"""


def test_all_problems_are_told_at_once_with_their_places_and_what_may_be_meant() -> None:
    parsed = read_model_config(TEXT, "ocr/config.pbtxt")
    assert parsed.config is not None
    told = [
        (problem.line, problem.path, problem.hint)
        for problem in check_ensemble(parsed.config, parsed.positions)
    ]
    assert told == [
        (
            17,
            "ensemble_scheduling.step[1].output_map['TEXT']",
            "step 0 ('decode') writes it already in line 10",
        ),
        (3, "input[0].name", "did you mean 'IMGAE'? step 0 ('decode') names it in line 9"),
        (4, "output[0].name", "no step's output_map writes it"),
        (
            9,
            "ensemble_scheduling.step[0].input_map['BYTES']",
            "step 0 ('decode') reads it in line 9, but nothing writes it; did you mean 'IMAGE'?",
        ),
        (10, "ensemble_scheduling.step[0].output_map['PIXELS']", "these steps wait for each other: 1"),
        (
            11,
            "ensemble_scheduling.step[0].output_map['SCALE']",
            "it hangs on tensors that never get a value",
        ),
    ]


def test_steps_that_wait_for_each_other_are_named() -> None:
    config = ensemble(
        ["A"], ["C"], [step("m", {"X": "A", "Y": "C"}, {"OUT": "B"}), step("n", {"I": "B"}, {"O": "C"})]
    )
    [problem] = check_ensemble(config, Positions())
    assert problem.hint == "these steps wait for each other: 0, 1"


def calling(name: str, *models: str) -> ModelConfig:
    """An ensemble with one step for each of these models."""
    return ensemble(["A"], ["B"], [step(model, {"I": "A"}, {"O": "B"}) for model in models], name=name)


@pytest.mark.parametrize(
    ("label", "ensembles", "found"),
    [
        ("none", [calling("a", "b"), calling("b", "model")], []),
        (
            "itself",
            [calling("a", "a")],
            [("a", "circular dependency between ensembles: a -> ... -> a -> a", "the whole way: a -> a")],
        ),
        (
            "two",
            [calling("a", "b"), calling("b", "a")],
            [
                (
                    "a",
                    "circular dependency between ensembles: a -> ... -> b -> a",
                    "the whole way: a -> b -> a",
                ),
                (
                    "b",
                    "circular dependency between ensembles: b -> ... -> a -> b",
                    "the whole way: b -> a -> b",
                ),
            ],
        ),
        (
            "three, and one that only leads there",
            [calling("d", "a"), calling("a", "x", "b"), calling("b", "c"), calling("c", "a")],
            [
                (
                    "a",
                    "circular dependency between ensembles: a -> ... -> c -> a",
                    "the whole way: a -> b -> c -> a",
                ),
                (
                    "b",
                    "circular dependency between ensembles: b -> ... -> a -> b",
                    "the whole way: b -> c -> a -> b",
                ),
                (
                    "c",
                    "circular dependency between ensembles: c -> ... -> b -> c",
                    "the whole way: c -> a -> b -> c",
                ),
            ],
        ),
    ],
)
def test_ensembles_that_need_each_other(
    label: str, ensembles: list[ModelConfig], found: list[tuple[str, str, str]]
) -> None:
    problems = check_cycles({config.name: config for config in ensembles}, {})
    assert [(problem.model, problem.message, problem.hint) for problem in problems] == found, label
