"""What one run of an ensemble answers to each event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from cantata.dag.plan import Plan, compile_plan
from cantata.dag.run import (
    EnsembleRun,
    Fail,
    Finish,
    Instruction,
    Respond,
    RunStep,
    RunStopped,
    SequenceOverride,
    StopReason,
)
from tests.support.ensembles import ensemble, models_of, step

Run = EnsembleRun[str, str]


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    """The runs of a test; each must be consistent when the test ends."""
    made: list[Run] = []
    yield made
    for run in made:
        run.check_invariants()


def plan_of(
    *steps: tuple[str, str], inputs: str = "A", outputs: str, decoupled: tuple[int, ...] = ()
) -> Plan:
    """A plan of steps ('AB', 'C'): single-letter tensors in and out, under the same names in the model."""
    config = ensemble(
        tuple(inputs),
        tuple(outputs),
        [
            step(f"m{index}", {name: name for name in reads}, {name: name for name in writes})
            for index, (reads, writes) in enumerate(steps)
        ],
    )
    return compile_plan(config, models_of(config, decoupled))


def described(instructions: list[Instruction[str, str]]) -> list[object]:
    """Instructions as plain values, to be compared."""
    plain: list[object] = []
    for instruction in instructions:
        match instruction:
            case RunStep():
                plain.append((instruction.step.index, instruction.iteration, instruction.inputs))
            case Respond():
                plain.append(("respond", instruction.outputs, instruction.final))
            case Fail():
                plain.append(("fail", instruction.error))
            case Finish():
                plain.append("finish")
    return plain


def started(runs: list[Run], plan: Plan, inputs: Mapping[str, str]) -> tuple[Run, list[RunStep[str]]]:
    """A run that has begun, and its first steps."""
    run = Run(plan)
    runs.append(run)
    return run, steps_in(run.start(inputs))


def steps_in(instructions: list[Instruction[str, str]]) -> list[RunStep[str]]:
    """The instructions, which must all be steps."""
    steps = [instruction for instruction in instructions if isinstance(instruction, RunStep)]
    assert len(steps) == len(instructions)
    return steps


def test_a_chain_passes_each_value_on_and_answers_with_the_last(runs: list[Run]) -> None:
    run, [first] = started(runs, plan_of(("A", "B"), ("B", "C"), outputs="C"), {"A": "a"})
    assert (first.step.index, first.inputs, first.step.output_names) == (0, {"A": "a"}, ("B",))
    [second] = steps_in(run.step_responded(first, {"B": "b"}, final=True))
    assert (second.step.index, second.inputs) == (1, {"B": "b"})
    assert described(run.step_responded(second, {"C": "c"}, final=True)) == [("respond", {"C": "c"}, True)]
    assert run.is_finished


def test_the_branches_of_a_diamond_run_at_once_and_their_join_waits_for_both(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("B", "C"), ("B", "D"), ("CD", "E"), outputs="E")
    run, [first] = started(runs, plan, {"A": "a"})
    left, right = steps_in(run.step_responded(first, {"B": "b"}, final=True))
    assert (left.inputs, right.inputs) == ({"B": "b"}, {"B": "b"})
    assert run.step_responded(right, {"D": "d"}, final=True) == []
    [join] = steps_in(run.step_responded(left, {"C": "c"}, final=True))
    assert join.inputs == {"C": "c", "D": "d"}
    assert described(run.step_responded(join, {"E": "e"}, final=True)) == [("respond", {"E": "e"}, True)]


def test_one_tensor_can_feed_two_inputs_of_a_step(runs: list[Run]) -> None:
    config = ensemble(["A"], ["B"], [step("add", {"X": "A", "Y": "A"}, {"SUM": "B"})])
    _, [only] = started(runs, compile_plan(config, models_of(config)), {"A": "a"})
    assert only.inputs == {"X": "a", "Y": "a"}


def test_a_tensor_that_is_both_input_and_output_is_answered_as_it_came(runs: list[Run]) -> None:
    run, [only] = started(runs, plan_of(("A", "B"), outputs="AB"), {"A": "a"})
    answer = run.step_responded(only, {"B": "b"}, final=True)
    assert described(answer) == [("respond", {"A": "a", "B": "b"}, True)]


def test_an_output_that_needs_no_step_is_answered_at_once(runs: list[Run]) -> None:
    run = Run(plan_of(("A", "B"), outputs="AB").pruned(("A",)))
    runs.append(run)
    assert described(run.start({"A": "a"})) == [("respond", {"A": "a"}, True)]


def test_a_missing_optional_input_is_left_out_of_the_step(runs: list[Run]) -> None:
    _, [only] = started(runs, plan_of(("AB", "C"), inputs="AB", outputs="C"), {"A": "a"})
    assert only.inputs == {"A": "a"}


def test_an_output_that_a_step_did_not_return_is_a_null_to_its_readers(runs: list[Run]) -> None:
    run, [first] = started(runs, plan_of(("A", "BC"), ("BC", "D"), outputs="D"), {"A": "a"})
    [second] = steps_in(run.step_responded(first, {"B": "b"}, final=True))
    assert second.inputs == {"B": "b"}


def test_a_null_is_left_out_of_the_answer_even_if_nothing_remains(runs: list[Run]) -> None:
    run, [only] = started(runs, plan_of(("A", "B"), outputs="B"), {"A": "a"})
    assert described(run.step_responded(only, {}, final=True)) == [("respond", {}, True)]


def test_every_response_of_a_decoupled_step_is_an_iteration_of_what_follows(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("B", "C"), outputs="C", decoupled=(0,))
    run, [producer] = started(runs, plan, {"A": "a"})
    [step0] = steps_in(run.step_responded(producer, {"B": "b0"}, final=False))
    [step1] = steps_in(run.step_responded(producer, {"B": "b1"}, final=False))
    assert (step0.iteration, step0.inputs) == (0, {"B": "b0"})
    assert (step1.iteration, step1.inputs) == (1, {"B": "b1"})
    assert run.step_responded(producer, None, final=True) == []
    assert described(run.step_responded(step0, {"C": "c0"}, True)) == [("respond", {"C": "c0"}, False)]
    assert described(run.step_responded(step1, {"C": "c1"}, True)) == [("respond", {"C": "c1"}, True)]


def test_responses_leave_in_the_order_of_their_iterations(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("B", "C"), outputs="C", decoupled=(0,))
    run, [producer] = started(runs, plan, {"A": "a"})
    steps = [steps_in(run.step_responded(producer, {"B": f"b{k}"}, final=k == 2))[0] for k in range(3)]
    assert run.step_responded(steps[2], {"C": "c2"}, True) == []
    assert run.step_responded(steps[1], {"C": "c1"}, True) == []
    assert described(run.step_responded(steps[0], {"C": "c0"}, True)) == [
        ("respond", {"C": "c0"}, False),
        ("respond", {"C": "c1"}, False),
        ("respond", {"C": "c2"}, True),
    ]


def test_values_of_one_iteration_meet_whatever_order_the_branches_end_in(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("B", "C"), ("B", "D"), ("CD", "E"), outputs="E", decoupled=(0,))
    run, [producer] = started(runs, plan, {"A": "a"})
    c0, d0 = steps_in(run.step_responded(producer, {"B": "b0"}, final=False))
    c1, d1 = steps_in(run.step_responded(producer, {"B": "b1"}, final=True))
    assert run.step_responded(c1, {"C": "c1"}, True) == []
    assert run.step_responded(d0, {"D": "d0"}, True) == []
    assert described(run.step_responded(d1, {"D": "d1"}, True)) == [(3, 1, {"C": "c1", "D": "d1"})]
    assert described(run.step_responded(c0, {"C": "c0"}, True)) == [(3, 0, {"C": "c0", "D": "d0"})]


def test_a_decoupled_step_behind_another_numbers_its_responses_over_all_its_runs(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("B", "C"), outputs="C", decoupled=(0, 1))
    run, [producer] = started(runs, plan, {"A": "a"})
    [inner0] = steps_in(run.step_responded(producer, {"B": "b0"}, final=False))
    [inner1] = steps_in(run.step_responded(producer, {"B": "b1"}, final=True))
    answers = [
        run.step_responded(inner1, {"C": "x"}, False),
        run.step_responded(inner0, {"C": "y"}, True),
        run.step_responded(inner1, {"C": "z"}, True),
    ]
    assert [described(answer) for answer in answers] == [
        [("respond", {"C": "x"}, False)],
        [("respond", {"C": "y"}, False)],
        [("respond", {"C": "z"}, True)],
    ]


def test_a_decoupled_ensemble_without_any_response_just_finishes(runs: list[Run]) -> None:
    run, [producer] = started(runs, plan_of(("A", "B"), outputs="B", decoupled=(0,)), {"A": "a"})
    assert run.step_responded(producer, None, final=True) == [Finish()]


def test_a_decoupled_ensemble_finishes_after_its_last_response(runs: list[Run]) -> None:
    run, [producer] = started(runs, plan_of(("A", "B"), outputs="B", decoupled=(0,)), {"A": "a"})
    assert described(run.step_responded(producer, {"B": "b"}, False)) == [("respond", {"B": "b"}, False)]
    assert run.step_responded(producer, None, final=True) == [Finish()]


def test_an_iteration_that_a_step_drops_does_not_hold_up_the_later_ones(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("B", "C"), outputs="C", decoupled=(0,))
    run, [producer] = started(runs, plan, {"A": "a"})
    [step0] = steps_in(run.step_responded(producer, {"B": "b0"}, final=False))
    [step1] = steps_in(run.step_responded(producer, {"B": "b1"}, final=False))
    assert run.step_responded(step1, {"C": "c1"}, True) == []
    assert described(run.step_responded(step0, None, True)) == [("respond", {"C": "c1"}, False)]
    assert run.step_responded(producer, None, final=True) == [Finish()]


def test_an_ensemble_that_is_not_decoupled_answers_once_when_its_steps_have_ended(runs: list[Run]) -> None:
    run, [only] = started(runs, plan_of(("A", "B"), outputs="B"), {"A": "a"})
    assert run.step_responded(only, {"B": "b"}, final=False) == []
    assert run.step_responded(only, {"B": "again"}, final=False) == []
    assert described(run.step_responded(only, None, final=True)) == [("respond", {"B": "b"}, True)]


def test_an_output_that_is_never_set_fails_naming_it_and_the_silent_step(runs: list[Run]) -> None:
    run, [first] = started(runs, plan_of(("A", "B"), ("B", "C"), outputs="C"), {"A": "a"})
    assert run.step_responded(first, None, final=True) == [
        Fail(
            RunStopped(
                StopReason.OUTPUT_NOT_SET,
                "unexpected deadlock, at least one output is not set while no more ensemble steps can be "
                "made: 'C' cannot be made because step 0 ('m0') ended without a response",
            )
        )
    ]


def test_the_first_error_is_sent_once_after_the_steps_in_flight_have_ended(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("A", "C"), ("A", "D"), ("BCD", "E"), outputs="E")
    run, [one, two, three] = started(runs, plan, {"A": "a"})
    assert run.step_failed(two, "no memory") == []
    assert run.step_failed(three, "later") == []
    assert run.step_responded(one, {"B": "b"}, final=True) == [Fail("no memory")]
    assert run.step_failed(one, "after the end") == []


def test_a_run_that_has_met_an_error_says_so_to_whoever_has_yet_to_dispatch(runs: list[Run]) -> None:
    run, [left, right] = started(runs, plan_of(("A", "B"), ("A", "C"), ("BC", "D"), outputs="D"), {"A": "a"})
    was_stopped = run.is_stopped
    assert run.step_failed(left, "refused") == []
    assert (was_stopped, run.is_stopped) == (False, True)
    assert run.step_failed(right, "not dispatched") == [Fail("refused")]


def test_a_failing_decoupled_step_is_waited_for_and_what_it_sent_stays_sent(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("B", "C"), outputs="C", decoupled=(0,))
    run, [producer] = started(runs, plan, {"A": "a"})
    [step0] = steps_in(run.step_responded(producer, {"B": "b0"}, final=False))
    assert described(run.step_responded(step0, {"C": "c0"}, True)) == [("respond", {"C": "c0"}, False)]
    assert run.step_failed(producer, "broken", final=False) == []
    assert run.step_responded(producer, {"B": "b1"}, final=False) == []
    assert run.step_responded(producer, None, final=True) == [Fail("broken")]


def test_cancellation_is_noticed_before_the_next_step(runs: list[Run]) -> None:
    run, [first] = started(runs, plan_of(("A", "B"), ("B", "C"), outputs="C"), {"A": "a"})
    run.cancel()
    assert run.step_responded(first, {"B": "b"}, final=True) == [
        Fail(RunStopped(StopReason.CANCELLED, "the request was cancelled"))
    ]


def test_cancellation_waits_for_the_siblings_in_flight(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("A", "C"), ("B", "D"), ("CD", "E"), outputs="E")
    run, [left, right] = started(runs, plan, {"A": "a"})
    run.cancel()
    assert run.step_responded(left, {"B": "b"}, final=True) == []
    [ending] = run.step_responded(right, {"C": "c"}, final=True)
    assert isinstance(ending, Fail)


def test_a_run_cancelled_before_it_starts_runs_no_step(runs: list[Run]) -> None:
    run = Run(plan_of(("A", "B"), outputs="B"))
    runs.append(run)
    run.cancel()
    assert run.start({"A": "a"}) == [Fail(RunStopped(StopReason.CANCELLED, "the request was cancelled"))]


def test_an_answer_that_needs_no_further_step_is_given_despite_cancellation(runs: list[Run]) -> None:
    run, [only] = started(runs, plan_of(("A", "B"), outputs="B"), {"A": "a"})
    run.cancel()
    assert described(run.step_responded(only, {"B": "b"}, True)) == [("respond", {"B": "b"}, True)]


def test_a_sequence_that_a_response_names_reaches_its_readers_and_the_answer(runs: list[Run]) -> None:
    plan = plan_of(("A", "B"), ("B", "C"), ("C", "D"), outputs="BD")
    override = SequenceOverride("session", start=True, end=False)
    run, [first] = started(runs, plan, {"A": "a"})
    [second] = steps_in(run.step_responded(first, {"B": "b"}, True, override))
    [third] = steps_in(run.step_responded(second, {"C": "c"}, True))
    [answer] = run.step_responded(third, {"D": "d"}, True)
    assert isinstance(answer, Respond)
    assert (second.sequence, third.sequence, answer.sequence) == (override, None, override)


def test_what_a_step_says_after_its_final_is_ignored(runs: list[Run]) -> None:
    run, [first] = started(runs, plan_of(("A", "B"), ("B", "C"), outputs="C"), {"A": "a"})
    [second] = steps_in(run.step_responded(first, {"B": "b"}, final=True))
    assert run.step_responded(first, {"B": "again"}, final=True) == []
    assert described(run.step_responded(second, {"C": "c"}, True)) == [("respond", {"C": "c"}, True)]
