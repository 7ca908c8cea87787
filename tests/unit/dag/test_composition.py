"""What is found wrong between an ensemble and the models of its steps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cantata.dag.composition import (
    ComposingModel,
    FindModel,
    MissingModel,
    check_composition,
    is_decoupled_ensemble,
)
from cantata.grammars.model_config import (
    DataType,
    EnsembleStep,
    ModelConfig,
    ModelTensorReshape,
    ModelTransactionPolicy,
)
from cantata.grammars.problems import Positions
from cantata.grammars.reading import read_model_config
from tests.support.ensembles import composing_model, ensemble, step

INT64 = DataType.TYPE_INT64


def finder(*models: ModelConfig, versions: Sequence[int] = (1,), is_complete: bool = True) -> FindModel:
    """Finds these models, all with the same versions."""
    by_name = {model.name: ComposingModel(model, tuple(versions), is_complete) for model in models}
    return lambda name, _: by_name.get(name) or MissingModel(is_known=False, known_models=tuple(by_name))


def messages(config: ModelConfig, find_model: FindModel) -> list[str]:
    return [problem.message for problem in check_composition(config, Positions(), find_model)]


def one_step(**step_changes: object) -> ModelConfig:
    entry = step("m", {"IN": "A"}, {"OUT": "B"}).model_copy(update=step_changes)
    return ensemble(["A"], ["B"], [entry])


def test_a_fitting_composition_has_no_problem() -> None:
    assert messages(one_step(), finder(composing_model("m"))) == []


def test_models_that_are_not_there_are_named_together_with_what_may_be_meant() -> None:
    config = ensemble(
        ["A"],
        ["D"],
        [
            step("resise", {"I": "A"}, {"O": "B"}),
            step("b", {"I": "B"}, {"O": "C"}),
            step("b", {"I": "C"}, {"O": "D"}),
        ],
    )
    [problem] = check_composition(config, Positions(), finder(composing_model("resize")))
    assert (
        problem.message == "ensemble pipeline contains models that are not available or ambiguous: resise, b"
    )
    assert problem.path == "ensemble_scheduling.step[0].model_name"
    assert problem.hint == "step 0 ('resise'): did you mean 'resize'?"
    assert problem.model == "pipeline"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            MissingModel(is_known=True, reason="bad platform", is_valid=False),
            "ensemble 'pipeline' depends on 'm' which is not valid. Model 'm' failed with error: bad platform",
        ),
        (MissingModel(is_known=True), "ensemble 'pipeline' depends on 'm' which has no loaded version."),
        (
            MissingModel(is_known=True, reason="no file"),
            "ensemble 'pipeline' depends on 'm' which has no loaded version. Model 'm' loading failed with "
            "error: no file",
        ),
        (
            ComposingModel(composing_model("m"), ()),
            "ensemble 'pipeline' depends on 'm' which has no loaded version.",
        ),
    ],
)
def test_models_that_can_not_be_had(model: ComposingModel | MissingModel, text: str) -> None:
    assert messages(one_step(), lambda *_: model) == [text]


def test_what_is_wrong_with_a_model_is_said_once_however_many_steps_run_it() -> None:
    config = ensemble(
        ["A"], ["C"], [step("m", {"IN": "A"}, {"OUT": "B"}), step("m", {"IN": "B"}, {"OUT": "C"})]
    )
    assert len(messages(config, finder(composing_model("m"), versions=()))) == 1
    assert len(messages(config, lambda *_: MissingModel(is_known=True))) == 1
    assert len(messages(config, lambda *_: MissingModel(is_known=False))) == 1


def test_a_version_that_is_not_loaded() -> None:
    [problem] = check_composition(
        one_step(model_version=2), Positions(), finder(composing_model("m"), versions=(3, 1))
    )
    text = "ensemble 'pipeline' depends on 'm' whose required version 2 is not loaded."
    assert (problem.message, problem.hint) == (text, "'m' has versions 1, 3")


def test_a_step_without_a_version_is_told_how_to_ask_for_the_latest() -> None:
    [problem] = check_composition(one_step(model_version=0), Positions(), finder(composing_model("m")))
    assert problem.message == "ensemble 'pipeline' depends on 'm' whose required version 0 is not loaded."
    assert problem.hint == (
        "without model_version a step asks for version 0; -1 asks for the latest; 'm' has version 1"
    )


@pytest.mark.parametrize(
    ("own", "its", "fits"), [(4, 8, True), (4, 4, True), (4, 0, True), (0, 8, True), (8, 4, False)]
)
def test_a_step_takes_the_batches_that_the_ensemble_allows(own: int, its: int, fits: bool) -> None:
    config = ensemble({"A": [-1]}, {"B": [-1]}, [step("m", {"IN": "A"}, {"OUT": "B"})], max_batch_size=own)
    dims = [-1] if its else [-1, -1]
    model = composing_model("m", {"IN": dims}, {"OUT": dims}, max_batch_size=its)
    config = (
        config if own else ensemble({"A": [-1, -1]}, {"B": [-1, -1]}, [step("m", {"IN": "A"}, {"OUT": "B"})])
    )
    assert messages(config, finder(model)) == (
        []
        if fits
        else [
            "ensemble pipeline allows maximum batch size 8, but it contains model m which only allows maximum "
            "batch size to be 4"
        ]
    )


def test_map_keys_must_be_tensors_of_the_model_and_its_inputs_must_be_mapped() -> None:
    config = ensemble(["A"], ["B"], [step("m", {"IMGE": "A"}, {"TXT": "B"})])
    problems = check_composition(config, Positions(), finder(composing_model("m", ["IMAGE"], ["TEXT"])))
    assert [(problem.message, problem.hint) for problem in problems] == [
        (
            "in ensemble pipeline, ensemble tensor A is mapping to non-existing input IMGE in model m",
            "did you mean 'IMAGE'?",
        ),
        (
            "in ensemble pipeline, input IMAGE in model m is not mapped to any ensemble tensors",
            "is it 'IMAGE' that is meant by 'IMGE'?",
        ),
        (
            "in ensemble pipeline, ensemble tensor B is mapped from non-existing output TXT in model m",
            "did you mean 'TEXT'?",
        ),
    ]


def test_an_optional_input_need_not_be_mapped() -> None:
    assert messages(one_step(), finder(composing_model("m", ["IN", "MORE"], optional=["MORE"]))) == []


def test_tensors_that_a_backend_has_yet_to_declare_are_not_missed() -> None:
    config = ensemble(["A"], ["B"], [step("m", {"X": "A"}, {"Y": "B"})])
    assert messages(config, finder(ModelConfig(name="m"), is_complete=False)) == []


def test_what_an_incomplete_model_does_declare_is_checked() -> None:
    model = composing_model("m", {"IN": (INT64, [4])}, ["OUT"])
    assert messages(one_step(), finder(model, is_complete=False)) == [
        "in ensemble pipeline, ensemble tensor A: inconsistent data type: TYPE_FP32 is inferred from model "
        "pipeline while TYPE_INT64 is inferred from model m"
    ]


def test_the_first_declaration_is_what_all_later_ones_are_held_against() -> None:
    config = ensemble(
        {"A": [4]},
        {"C": [4]},
        [step("m", {"IN": "A"}, {"OUT": "B"}), step("n", {"IN": "B"}, {"OUT": "C"})],
    )
    first = composing_model("m", {"IN": [4]}, {"OUT": (INT64, [2, 3])})
    second = composing_model("n", {"IN": [2, 4]}, {"OUT": [4]})
    assert messages(config, finder(first, second)) == [
        "in ensemble pipeline, ensemble tensor B: inconsistent data type: TYPE_INT64 is inferred from model m "
        "while TYPE_FP32 is inferred from model n",
        "in ensemble pipeline, ensemble tensor B: inconsistent shape: [2,3] is inferred from model m while "
        "[2,4] is inferred from model n",
    ]


@pytest.mark.parametrize(
    ("label", "own_dims", "own_batch", "dims", "batch", "fits"),
    [
        ("equal", [4], 0, [4], 0, True),
        ("a wildcard", [-1], 0, [4], 0, True),
        ("another size", [4], 0, [5], 0, False),
        ("another rank", [4], 0, [1, 4], 0, False),
        ("both batch", [4], 8, [4], 8, True),
        ("the batch dimension written out", [4], 8, [-1, 4], 0, True),
        ("a fixed batch dimension written out", [4], 8, [2, 4], 0, True),
        ("the same dims, one batching", [4], 8, [4], 0, True),
        ("other full dims", [4], 8, [-1, 5], 0, False),
    ],
)
def test_shapes_fit_with_or_without_the_batch_dimension(
    label: str, own_dims: list[int], own_batch: int, dims: list[int], batch: int, fits: bool
) -> None:
    config = ensemble(
        {"A": own_dims}, {"B": [7]}, [step("m", {"IN": "A"}, {"OUT": "B"})], max_batch_size=own_batch
    )
    model = composing_model("m", {"IN": dims}, {"OUT": [7]}, max_batch_size=batch)
    assert (messages(config, finder(model)) == []) is fits, label


def test_a_shape_conflict_prints_the_batch_dimension() -> None:
    config = ensemble({"A": [4]}, {"B": [4]}, [step("m", {"IN": "A"}, {"OUT": "B"})], max_batch_size=8)
    model = composing_model("m", {"IN": [5]}, {"OUT": [4]}, max_batch_size=8)
    assert messages(config, finder(model)) == [
        "in ensemble pipeline, ensemble tensor A: inconsistent shape: [-1,4] is inferred from model pipeline "
        "while [-1,5] is inferred from model m"
    ]


def test_the_ensemble_s_own_tensors_count_in_their_reshaped_form() -> None:
    config = one_step()
    [own] = config.input
    own = own.model_copy(update={"dims": (2, 2), "reshape": ModelTensorReshape(shape=(4,))})
    assert messages(config.model_copy(update={"input": (own,)}), finder(composing_model("m"))) == []


TEXT = """\
name: "pipeline"
platform: "ensemble"
input { name: "A" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "B" data_type: TYPE_FP32 dims: [ 4 ] }
ensemble_scheduling {
  step {
    model_name: "m"
    model_version: -1
    input_map { key: "IN" value: "A" }
    output_map { key: "OUT" value: "B" }
  }
}
"""


def test_a_mismatch_names_both_ends_and_their_lines() -> None:
    parsed = read_model_config(TEXT, "config.pbtxt")
    assert parsed.config is not None
    model = composing_model("m", {"IN": [5]}, {"OUT": [4]})
    [problem] = check_composition(parsed.config, parsed.positions, finder(model))
    assert (problem.file, problem.line) == ("config.pbtxt", 9)
    assert problem.hint == "the ensemble's input 'A' (line 3) against input 'IN' of step 0 ('m') in line 9"


def chain(*pairs: tuple[str, str], outputs: str) -> ModelConfig:
    """Steps d (decoupled), p (plain) of the form ('d', 'AB>C')."""
    steps: list[EnsembleStep] = []
    for name, wiring in pairs:
        reads, writes = wiring.split(">")
        steps.append(
            step(
                name, {f"I{tensor}": tensor for tensor in reads}, {f"O{tensor}": tensor for tensor in writes}
            )
        )
    return ensemble(["A"], tuple(outputs), steps)


def decoupled_finder(config: ModelConfig) -> FindModel:
    """Gives every step a model with what it maps; those whose names begin with d are decoupled."""
    scheduling = config.ensemble_scheduling
    assert scheduling is not None
    return finder(
        *(
            composing_model(
                entry.model_name,
                tuple(entry.input_map),
                tuple(entry.output_map),
                decoupled=entry.model_name.startswith("d"),
            )
            for entry in scheduling.step
        )
    )


@pytest.mark.parametrize(
    ("label", "config", "culprit", "hint"),
    [
        ("one decoupled step", chain(("d", "A>B"), ("p", "B>C"), outputs="C"), None, ""),
        ("a diamond behind one", chain(("d", "A>BC"), ("p", "B>D"), ("q", "CD>E"), outputs="E"), None, ""),
        ("two in a row", chain(("d", "A>B"), ("d2", "B>C"), outputs="C"), None, ""),
        (
            "with a tensor of the request",
            chain(("d", "A>B"), ("p", "AB>C"), outputs="C"),
            "p",
            "'A' comes once a request, 'B' comes with each response of step 0 ('d')",
        ),
        (
            "two decoupled steps",
            chain(("d", "A>B"), ("d2", "A>C"), ("p", "BC>D"), outputs="D"),
            "p",
            "'B' comes with each response of step 0 ('d'), 'C' comes with each response of step 1 ('d2')",
        ),
        (
            "in the outputs",
            chain(("d", "A>B"), ("p", "A>C"), outputs="BC"),
            "pipeline",
            "'B' comes with each response of step 0 ('d'), 'C' comes once a request",
        ),
        ("only decoupled by its own word", chain(("p", "A>B"), outputs="B"), None, ""),
    ],
)
def test_responses_of_different_decoupled_models_do_not_meet(
    label: str, config: ModelConfig, culprit: str | None, hint: str
) -> None:
    problems = check_composition(config, Positions(), decoupled_finder(config))
    expected = (
        []
        if culprit is None
        else [
            (
                f"in ensemble pipeline, step of model '{culprit}' receives inputs originated from different "
                "decoupled models",
                hint,
            )
        ]
    )
    assert [(problem.message, problem.hint) for problem in problems] == expected, label


def test_an_ensemble_is_decoupled_when_a_step_is_even_in_a_nested_ensemble() -> None:
    inner = chain(("d", "A>B"), outputs="B").model_copy(update={"name": "inner"})
    outer = chain(("inner", "A>B"), outputs="B")
    find = finder(inner, composing_model("d", decoupled=True))
    assert is_decoupled_ensemble(inner, find)
    assert is_decoupled_ensemble(outer, find)


def test_what_an_ensemble_says_of_itself_does_not_make_it_decoupled() -> None:
    config = one_step().model_copy(
        update={"model_transaction_policy": ModelTransactionPolicy(decoupled=True)}
    )
    assert not is_decoupled_ensemble(config, finder(composing_model("m")))


def test_ensembles_in_a_circle_do_not_keep_the_question_going() -> None:
    config = ensemble(["A"], ["B"], [step("pipeline", {"A": "A"}, {"B": "B"})])
    assert not is_decoupled_ensemble(config, finder(config))
