"""Random ensembles, run in random orders, against the plain evaluator."""

from __future__ import annotations

import weakref
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cantata.dag.checks import ComposingModel, check_composition, check_ensemble
from cantata.dag.plan import Plan, compile_plan
from cantata.dag.run import EnsembleRun, Fail, Finish, Instruction, Respond, RunStep, RunStopped, StopReason
from cantata.grammars.problems import Positions
from tests.support.ensembles import ensemble, models_of, step
from tests.support.random_ensembles import Digest, RandomEnsemble, evaluate, random_ensemble

ENSEMBLES = st.builds(
    random_ensemble,
    st.integers(0, 2**32),
    st.integers(1, 40),
    decoupled_count=st.integers(0, 3),
    has_nulls=st.booleans(),
    has_silence=st.booleans(),
)
SEEDS = st.integers(0, 2**32)


class Value:
    """A tensor of the tests: its place, its digest, and a life that can be watched."""

    __slots__ = ("__weakref__", "digest", "iteration", "tensor")

    def __init__(self, tensor: str, iteration: int, digest: Digest) -> None:
        self.tensor = tensor
        self.iteration = iteration
        self.digest = digest


class Flight:
    """A step that has been asked for, and what of it has been answered."""

    def __init__(self, run_step: RunStep[Value], response_count: int, inputs: dict[str, Digest]) -> None:
        self.run_step = run_step
        self.response_count = response_count
        self.inputs = inputs
        self.answered = 0

    @property
    def key(self) -> tuple[int, int]:
        return self.run_step.step.index, self.run_step.iteration


class Simulation:
    """Drives one run, ending steps in a random order, and watches what it may keep and say."""

    def __init__(self, subject: RandomEnsemble, plan: Plan, seed: int) -> None:
        self.subject = subject
        self.plan = plan
        self.random = Random(seed)
        self.run: EnsembleRun[Value, str] = EnsembleRun(plan)
        self.flights: list[Flight] = []
        self.step_inputs: dict[tuple[int, int], dict[str, Digest]] = {}
        self.arrivals: dict[int, list[tuple[int, int]]] = {index: [] for index in subject.decoupled}
        self.answers: list[dict[str, Digest]] = []
        self.endings: list[Instruction[Value, str]] = []
        self.inputs = {
            name: self.random.randrange(2**32)
            for name in subject.inputs
            if not subject.has_nulls or self.random.random() < 0.8
        }
        self._alive: weakref.WeakSet[Value] = weakref.WeakSet()
        self._readers: dict[str, set[int]] = {}
        for entry in plan.steps:
            for tensor in subject.steps[entry.index].input_map.values():
                self._readers.setdefault(tensor, set()).add(entry.index)

    def start(self) -> None:
        self._follow(
            self.run.start({name: self._value(name, 0, digest) for name, digest in self.inputs.items()})
        )

    def advance(self) -> None:
        """One more event of one step in flight."""
        flight = self.random.choice(self.flights)
        run_step = flight.run_step
        if flight.answered == flight.response_count:
            self.flights.remove(flight)
            self._follow(self.run.step_responded(run_step, None, final=True))
            return
        index = run_step.step.index
        iteration = run_step.iteration
        if index in self.arrivals:
            iteration = len(self.arrivals[index])
            self.arrivals[index].append((run_step.iteration, flight.answered))
        response = self.subject.response(index, flight.inputs, flight.answered)
        names = self.subject.steps[index].output_map
        outputs = {
            name: self._value(names[name], iteration, digest)
            for name, digest in response.items()
            if name in run_step.step.output_names
        }
        flight.answered += 1
        final = flight.answered == flight.response_count and self.random.random() < 0.6
        if final:
            self.flights.remove(flight)
        instructions = self.run.step_responded(run_step, outputs, final)
        del outputs
        self._follow(instructions)

    def fail(self, error: str) -> None:
        """One step in flight fails, at once or with its final still to come."""
        flight = self.random.choice(self.flights)
        flight.answered = flight.response_count
        final = self.random.random() < 0.5
        if final:
            self.flights.remove(flight)
        self._follow(self.run.step_failed(flight.run_step, error, final))

    def check_memory(self) -> None:
        """No value is kept that no step and no answer still needs."""
        for value in self._alive:
            waiting = [
                index
                for index in self._readers.get(value.tensor, ())
                if (index, value.iteration) not in self.step_inputs
            ]
            # A dropped iteration has no answer: then the count of answers says nothing of their numbers.
            is_answered = not self.subject.has_silence and value.iteration < len(self.answers)
            is_to_be_answered = (
                value.tensor in self.plan.output_names and not is_answered and not self.endings
            )
            assert waiting or is_to_be_answered, (value.tensor, value.iteration)

    def check_nothing_is_kept(self) -> None:
        self.flights.clear()
        assert list(self._alive) == []

    def _value(self, tensor: str, iteration: int, digest: Digest) -> Value:
        value = Value(tensor, iteration, digest)
        self._alive.add(value)
        return value

    def _follow(self, instructions: list[Instruction[Value, str]]) -> None:
        for instruction in instructions:
            assert not self.endings, "an instruction after the final one"
            match instruction:
                case RunStep():
                    self._begin(instruction)
                case Respond():
                    self.answers.append({name: value.digest for name, value in instruction.outputs.items()})
                    instruction.outputs.clear()
                    if instruction.final:
                        self.endings.append(instruction)
                case Finish() | Fail():
                    self.endings.append(instruction)
        self.run.check_invariants()
        assert bool(self.endings) == (not self.flights) == self.run.is_finished

    def _begin(self, run_step: RunStep[Value]) -> None:
        inputs = {name: value.digest for name, value in run_step.inputs.items()}
        run_step.inputs.clear()
        flight = Flight(run_step, self.subject.response_count(run_step.step.index, inputs), inputs)
        assert flight.key not in self.step_inputs, "a step ran twice for one iteration"
        self.step_inputs[flight.key] = inputs
        self.flights.append(flight)


def simulate(subject: RandomEnsemble, plan: Plan, seed: int) -> Simulation:
    """Run to the end, watching memory on the way."""
    simulation = Simulation(subject, plan, seed)
    simulation.start()
    # Looking at every value after every event of a large run would take minutes.
    events_between_looks = 1 + len(plan.steps) // 20
    events = 0
    while simulation.flights:
        if events % events_between_looks == 0:
            simulation.check_memory()
        simulation.advance()
        events += 1
    return simulation


def check_against_evaluator(subject: RandomEnsemble, simulation: Simulation) -> None:
    requested = simulation.plan.output_names
    expected = evaluate(subject, simulation.inputs, requested, simulation.arrivals)
    assert simulation.step_inputs == expected.step_inputs
    assert simulation.answers == expected.answers
    [ending] = simulation.endings
    if not simulation.plan.is_decoupled:
        if expected.answers:
            assert isinstance(ending, Respond)
        else:
            assert isinstance(ending, Fail)
            assert isinstance(ending.error, RunStopped)
            assert ending.error.reason is StopReason.OUTPUT_NOT_SET
    else:
        assert isinstance(ending, Respond | Finish)


@given(ENSEMBLES)
def test_random_ensembles_are_sound(subject: RandomEnsemble) -> None:
    models = {model.name: model for model in subject.models()}
    assert check_ensemble(subject.config, Positions()) == []
    found = check_composition(subject.config, Positions(), lambda name, _: ComposingModel(models[name], (1,)))
    assert found == []


@settings(max_examples=300)
@given(ENSEMBLES, SEEDS)
def test_a_run_does_what_the_evaluator_says_whatever_order_steps_end_in(
    subject: RandomEnsemble, seed: int
) -> None:
    simulation = simulate(subject, compile_plan(subject.config, subject.models()), seed)
    check_against_evaluator(subject, simulation)
    simulation.check_nothing_is_kept()


@given(ENSEMBLES, SEEDS, st.data())
def test_a_pruned_run_runs_the_ancestors_of_what_is_requested_and_nothing_else(
    subject: RandomEnsemble, seed: int, data: st.DataObject
) -> None:
    requested = tuple(data.draw(st.lists(st.sampled_from(subject.outputs), min_size=1, unique=True)))
    plan = compile_plan(subject.config, subject.models()).pruned(requested)
    assert {entry.index for entry in plan.steps} == subject.ancestors(requested)
    assert set(plan.output_names) == set(requested)
    check_against_evaluator(subject, simulate(subject, plan, seed))


@given(ENSEMBLES, SEEDS, st.integers(0, 30))
def test_after_a_failure_nothing_runs_and_the_first_error_ends_the_run_once(
    subject: RandomEnsemble, seed: int, events: int
) -> None:
    simulation = Simulation(subject, compile_plan(subject.config, subject.models()), seed)
    simulation.start()
    while simulation.flights and events:
        simulation.advance()
        events -= 1
    if not simulation.flights:
        return
    simulation.fail("first")
    ran, answered = len(simulation.step_inputs), len(simulation.answers)
    while simulation.flights:
        if simulation.random.random() < 0.3:
            simulation.fail("later")
        else:
            simulation.advance()
    assert simulation.endings == [Fail("first")]
    assert (len(simulation.step_inputs), len(simulation.answers)) == (ran, answered)
    simulation.check_nothing_is_kept()


@given(ENSEMBLES, SEEDS, st.integers(0, 30))
def test_after_cancellation_no_step_runs_and_the_run_still_ends_once(
    subject: RandomEnsemble, seed: int, events: int
) -> None:
    simulation = Simulation(subject, compile_plan(subject.config, subject.models()), seed)
    simulation.start()
    while simulation.flights and events:
        simulation.advance()
        events -= 1
    simulation.run.cancel()
    ran = len(simulation.step_inputs)
    while simulation.flights:
        simulation.advance()
    assert len(simulation.step_inputs) == ran
    [ending] = simulation.endings
    if isinstance(ending, Fail):
        assert isinstance(ending.error, RunStopped)
    simulation.check_nothing_is_kept()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decoupled_count", [0, 2])
def test_a_thousand_steps_run_like_a_few(seed: int, decoupled_count: int) -> None:
    subject = random_ensemble(seed, 1000, decoupled_count=decoupled_count, has_nulls=True)
    simulation = simulate(subject, compile_plan(subject.config, subject.models()), seed)
    check_against_evaluator(subject, simulation)
    simulation.check_nothing_is_kept()


def test_a_chain_of_a_thousand_steps_needs_no_deep_stack() -> None:
    config = ensemble(["T0"], ["T1000"], [step("m", {"I": f"T{i}"}, {"O": f"T{i + 1}"}) for i in range(1000)])
    run: EnsembleRun[int, str] = EnsembleRun(compile_plan(config, models_of(config)))
    instructions = run.start({"T0": 0})
    for index in range(1000):
        [run_step] = instructions
        assert isinstance(run_step, RunStep)
        assert run_step.inputs == {"I": index}
        instructions = run.step_responded(run_step, {"O": index + 1}, final=True)
    [answer] = instructions
    assert isinstance(answer, Respond)
    assert answer.outputs == {"T1000": 1000}
