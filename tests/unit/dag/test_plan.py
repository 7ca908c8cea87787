"""What an ensemble compiles to, and what its prunings keep."""

from __future__ import annotations

import time

import pytest

from cantata.dag.plan import MAX_PRUNED_PLANS, BatchAdaptation, BatchChange, Plan, compile_plan
from cantata.grammars.model_config import EnsembleStep, ModelOutput, ModelTensorReshape
from tests.support.ensembles import FP32, composing_model, ensemble, models_of, step

DIAMOND = ensemble(
    ["A"],
    ["D", "E"],
    [
        step("split", {"IN": "A"}, {"LEFT": "B", "RIGHT": "C"}),
        step("left", {"IN": "B"}, {"OUT": "D"}),
        step("right", {"IN": "C"}, {"OUT": "E"}),
    ],
)


def step_indices(plan: Plan) -> list[int]:
    return [step.index for step in plan.steps]


def test_the_plan_of_all_outputs_has_every_step_in_the_order_of_the_configuration() -> None:
    plan = compile_plan(DIAMOND, models_of(DIAMOND))
    assert [(entry.index, entry.model_name, entry.model_version) for entry in plan.steps] == [
        (0, "split", -1),
        (1, "left", -1),
        (2, "right", -1),
    ]
    assert (plan.name, plan.output_names, plan.is_decoupled) == ("pipeline", ("D", "E"), False)


def test_a_pruned_plan_keeps_the_ancestors_and_asks_them_for_what_is_needed_alone() -> None:
    plan = compile_plan(DIAMOND, models_of(DIAMOND)).pruned(("E",))
    assert step_indices(plan) == [0, 2]
    assert [entry.output_names for entry in plan.steps] == [("RIGHT",), ("OUT",)]
    assert plan.output_names == ("E",)


@pytest.mark.parametrize("requested", [(), ("D", "E"), ("E", "D")])
def test_asking_for_every_output_is_the_plan_itself(requested: tuple[str, ...]) -> None:
    plan = compile_plan(DIAMOND, models_of(DIAMOND))
    assert plan.pruned(requested) is plan


def test_a_pruned_plan_is_made_once_for_each_set() -> None:
    plan = compile_plan(DIAMOND, models_of(DIAMOND))
    assert plan.pruned(("E",)) is plan.pruned(("E",))


def test_the_cache_of_pruned_plans_is_bounded() -> None:
    names = [f"O{index}" for index in range(MAX_PRUNED_PLANS * 2)]
    config = ensemble(["A"], names, [step("m", {"A": "A"}, {name: name for name in names})])
    plan = compile_plan(config, models_of(config))
    for name in names:
        assert plan.pruned((name,)).output_names == (name,)
    assert len(plan._pruned) <= MAX_PRUNED_PLANS


def test_asking_for_an_output_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="ensemble 'pipeline' has no output 'B'"):
        compile_plan(DIAMOND, models_of(DIAMOND)).pruned(("B",))


def test_a_decoupled_step_begins_a_stream_that_its_readers_inherit() -> None:
    config = ensemble(
        ["A"],
        ["D"],
        [
            step("third", {"IN": "C"}, {"OUT": "D"}),
            step("first", {"IN": "A"}, {"OUT": "B"}),
            step("second", {"IN": "B"}, {"OUT": "C"}),
        ],
    )
    plan = compile_plan(config, models_of(config, decoupled=[1]))
    assert [(entry.stream, entry.output_stream) for entry in plan.steps] == [(1, 1), (0, 1), (1, 1)]
    assert [sorted(stream.tensors) for stream in plan.streams] == [["A"], ["B", "C", "D"]]
    assert plan.is_decoupled


def test_a_name_that_is_both_input_and_written_keeps_the_value_of_the_request() -> None:
    config = ensemble(["A"], ["B"], [step("m", {"IN": "A"}, {"OUT": "B", "ECHO": "A"})])
    plan = compile_plan(config, models_of(config))
    assert plan.steps[0].output_names == ("OUT",)


@pytest.mark.parametrize(
    ("label", "steps", "outputs", "decoupled", "text"),
    [
        (
            "a cycle",
            [step("a", {"IN": "A", "BACK": "C"}, {"OUT": "B"}), step("b", {"IN": "B"}, {"OUT": "C"})],
            ["C"],
            (),
            "step 0 of ensemble 'pipeline' can never run",
        ),
        (
            "a join of decoupled models",
            [step("a", {"IN": "A"}, {"OUT": "B"}), step("b", {"X": "A", "Y": "B"}, {"OUT": "C"})],
            ["C"],
            (0,),
            "step 1 of ensemble 'pipeline' joins responses of different decoupled models",
        ),
        (
            "outputs of different streams",
            [step("a", {"IN": "A"}, {"OUT": "B"}), step("b", {"IN": "A"}, {"OUT": "C"})],
            ["B", "C"],
            (0,),
            "the outputs of ensemble 'pipeline' come from different decoupled models",
        ),
    ],
)
def test_wiring_that_the_checks_refuse_does_not_compile(
    label: str, steps: list[EnsembleStep], outputs: list[str], decoupled: tuple[int, ...], text: str
) -> None:
    config = ensemble(["A"], outputs, steps)
    with pytest.raises(ValueError) as caught:
        compile_plan(config, models_of(config, decoupled))
    assert str(caught.value) == text, label


@pytest.mark.parametrize(
    ("change", "dims", "shape", "adapted"),
    [
        (BatchChange.ADD, (-1, 16), (3, 16), (1, 3, 16)),
        (BatchChange.ADD, (16,), (3, 16), None),
        (BatchChange.ADD, (16,), (15,), None),
        (BatchChange.ADD, (), (), (1,)),
        (BatchChange.STRIP, (16,), (1, 16), (16,)),
        (BatchChange.STRIP, (16,), (2, 16), None),
        (BatchChange.STRIP, (-1, 16), (1, 16), None),
        (BatchChange.STRIP, (16,), (), None),
    ],
)
def test_a_batch_of_one_is_added_or_stripped_where_the_reader_needs_it(
    change: BatchChange, dims: tuple[int, ...], shape: tuple[int, ...], adapted: tuple[int, ...] | None
) -> None:
    assert BatchAdaptation(change, dims).adapt(shape) == adapted


def test_adaptations_stand_on_the_edges_between_models_that_batch_and_models_that_do_not() -> None:
    config = ensemble(
        {"A": [4]},
        {"D": [4]},
        [
            step("plain", {"IN": "A"}, {"OUT": "B"}),
            step("batching", {"IN": "B"}, {"OUT": "C"}),
            step("plain", {"IN": "C"}, {"OUT": "D"}),
        ],
        max_batch_size=8,
    )
    plain = composing_model("plain", {"IN": [-1, 4]}, {"OUT": [-1, 4]})
    batching = composing_model("batching", {"IN": [4]}, {"OUT": [4]}, max_batch_size=8)
    plan = compile_plan(config, [plain, batching, plain])
    strip = BatchAdaptation(BatchChange.STRIP, (-1, 4))
    assert [entry.adaptations for entry in plan.steps] == [
        (("IN", strip),),
        (("IN", BatchAdaptation(BatchChange.ADD, (4,))),),
        (("IN", strip),),
    ]
    assert plan.output_adaptations == (("D", BatchAdaptation(BatchChange.ADD, (4,))),)


def test_an_ensemble_output_is_compared_in_its_reshaped_form() -> None:
    config = ensemble(["A"], ["B"], [step("m", {"IN": "A"}, {"OUT": "B"})])
    output = ModelOutput(name="B", data_type=FP32, dims=(1, 4), reshape=ModelTensorReshape(shape=(4,)))
    config = config.model_copy(update={"output": (output,)})
    plan = compile_plan(config, [composing_model("m", max_batch_size=2)])
    assert plan.output_adaptations == (("B", BatchAdaptation(BatchChange.STRIP, (4,))),)


def test_a_thousand_steps_compile_well_within_a_second() -> None:
    steps = [step("m", {"IN": f"T{index}"}, {"OUT": f"T{index + 1}"}) for index in range(1000)]
    config = ensemble(["T0"], ["T1000"], steps)
    models = models_of(config)
    begun = time.process_time()
    plan = compile_plan(config, models)
    assert time.process_time() - begun < 1.0
    assert len(plan.steps) == 1000
