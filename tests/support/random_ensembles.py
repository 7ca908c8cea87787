"""Random sound ensembles, models whose answers follow from their inputs, and what an ensemble should answer.

The evaluator here is as plain as it can be: it knows tensors by name and iteration, and nothing of plans.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from cantata.grammars.model_config import EnsembleStep, ModelConfig
from tests.support.ensembles import ensemble, models_of, step

# What a step of the model is worth: a number that depends on all that went into it.
Digest = int
# (tensor, iteration) -> its digest, or None for a null.
Values = dict[tuple[str, int], Digest | None]


@dataclass(frozen=True)
class RandomEnsemble:
    """An ensemble that the checks accept, and which of its steps are decoupled, drop responses or return nulls."""

    config: ModelConfig
    decoupled: frozenset[int]
    has_nulls: bool
    has_silence: bool

    @property
    def steps(self) -> tuple[EnsembleStep, ...]:
        assert self.config.ensemble_scheduling is not None
        return self.config.ensemble_scheduling.step

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.config.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.config.output)

    def models(self) -> list[ModelConfig]:
        return models_of(self.config, sorted(self.decoupled))

    def ancestors(self, requested: Iterable[str]) -> set[int]:
        """The steps that the requested outputs hang on."""
        writers = {
            tensor: index for index, entry in enumerate(self.steps) for tensor in entry.output_map.values()
        }
        found: set[int] = set()
        pending = list(requested)
        while pending:
            index = writers.get(pending.pop())
            if index is not None and index not in found:
                found.add(index)
                pending.extend(self.steps[index].input_map.values())
        return found

    def response_count(self, index: int, inputs: Mapping[str, Digest]) -> int:
        """How often a step answers these inputs."""
        if index in self.decoupled:
            return _digest("count", index, inputs) % 4
        return 0 if self.has_silence and _digest("silence", index, inputs) % 23 == 0 else 1

    def response(self, index: int, inputs: Mapping[str, Digest], number: int) -> dict[str, Digest]:
        """What it answers the `number`-th time, by the names of the model's outputs; a null is left out."""
        digests = {name: _digest(name, index, inputs, number) for name in self.steps[index].output_map}
        if not self.has_nulls:
            return digests
        return {name: digest for name, digest in digests.items() if digest % 9}


def random_ensemble(
    seed: int,
    step_count: int,
    *,
    decoupled_count: int = 0,
    has_nulls: bool = False,
    has_silence: bool = False,
) -> RandomEnsemble:
    """An ensemble of about this many steps, fewer where some would lead nowhere."""
    random = Random(seed)
    builder = _Builder(random, decoupled_count)
    for index in range(step_count):
        builder.add_step(index)
    return builder.finish(has_nulls, has_silence)


@dataclass
class _Builder:
    random: Random
    decoupled_count: int
    # Tensors by stream: a step reads from one stream alone.
    streams: list[list[str]] = field(default_factory=list)
    steps: list[tuple[dict[str, str], dict[str, str], bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = [f"in{index}" for index in range(self.random.randint(1, 4))]
        self.streams.append(list(self.inputs))

    def add_step(self, index: int) -> None:
        random = self.random
        stream = random.choice((self.streams[-1], self.streams[-1], random.choice(self.streams)))
        # Half of the reads are of recent tensors, so that graphs grow deep as well as broad.
        pool = stream[-6:] if random.random() < 0.5 else stream
        reads = [random.choice(pool) for _ in range(random.randint(1, 4))]
        writes = [f"t{index}_{port}" for port in range(random.randint(1, 3))]
        is_decoupled = len(self.streams) <= self.decoupled_count and random.random() < 0.3
        if is_decoupled:
            self.streams.append(list(writes))
        else:
            stream.extend(writes)
        self.steps.append(
            (
                {f"I{port}": tensor for port, tensor in enumerate(reads)},
                {f"O{port}": tensor for port, tensor in enumerate(writes)},
                is_decoupled,
            )
        )

    def finish(self, has_nulls: bool, has_silence: bool) -> RandomEnsemble:
        """Choose outputs and leave out what they do not need; steps come in any order."""
        stream = self.streams[-1]
        written = [tensor for tensor in stream if tensor not in self.inputs]
        outputs = self.random.sample(
            written, min(len(written), self.random.randint(1, 5 + len(self.steps) // 3))
        )
        needed = set(outputs)
        kept: list[tuple[dict[str, str], dict[str, str], bool]] = []
        for reads, writes, is_decoupled in reversed(self.steps):
            wanted = {name: tensor for name, tensor in writes.items() if tensor in needed}
            if wanted:
                needed.update(reads.values())
                kept.append((reads, wanted, is_decoupled))
        if len(self.streams) == 1 and self.random.random() < 0.2:
            outputs.append(next(name for name in self.inputs if name in needed))
        self.random.shuffle(kept)
        config = ensemble(
            [name for name in self.inputs if name in needed],
            outputs,
            [step(f"m{index}", reads, writes) for index, (reads, writes, _) in enumerate(kept)],
        )
        decoupled = frozenset(index for index, (_, _, is_decoupled) in enumerate(kept) if is_decoupled)
        return RandomEnsemble(config, decoupled, has_nulls, has_silence)


@dataclass(frozen=True)
class Expected:
    """What an ensemble should do: the inputs of each step and iteration, and its answers in order."""

    step_inputs: dict[tuple[int, int], dict[str, Digest]]
    answers: list[dict[str, Digest]]


def evaluate(
    subject: RandomEnsemble,
    inputs: Mapping[str, Digest],
    requested: Sequence[str],
    arrivals: Mapping[int, Sequence[tuple[int, int]]],
) -> Expected:
    """Evaluate by names, step after step. `arrivals` says for each decoupled step in which order its responses
    came, as (iteration of the run, number within it): that order numbers the iterations behind it.
    """
    values: Values = {(name, 0): inputs.get(name) for name in subject.inputs}
    step_inputs: dict[tuple[int, int], dict[str, Digest]] = {}
    left = sorted(subject.ancestors(requested))
    known = set(subject.inputs)
    while left:
        index = next(index for index in left if known.issuperset(subject.steps[index].input_map.values()))
        left.remove(index)
        runs = _runs(subject.steps[index], values)
        step_inputs.update({(index, iteration): given for iteration, given in runs.items()})
        values.update(_outputs(subject, index, runs, arrivals.get(index, ())))
        known.update(subject.steps[index].output_map.values())
    iterations = sorted({iteration for name, iteration in values if name in requested})
    answers = []
    for iteration in iterations:
        if all((name, iteration) in values for name in requested):
            found = {name: values[name, iteration] for name in requested}
            answers.append({name: digest for name, digest in found.items() if digest is not None})
    return Expected(step_inputs, answers)


def _runs(entry: EnsembleStep, values: Values) -> dict[int, dict[str, Digest]]:
    """The inputs of a step for each iteration that all its tensors have."""
    runs = {}
    first = next(iter(entry.input_map.values()))
    for iteration in [number for name, number in values if name == first]:
        if all((tensor, iteration) in values for tensor in entry.input_map.values()):
            given = {name: values[tensor, iteration] for name, tensor in entry.input_map.items()}
            runs[iteration] = {name: digest for name, digest in given.items() if digest is not None}
    return runs


def _outputs(
    subject: RandomEnsemble,
    index: int,
    runs: Mapping[int, dict[str, Digest]],
    arrivals: Sequence[tuple[int, int]],
) -> Values:
    made = [
        (iteration, number)
        for iteration, given in runs.items()
        for number in range(subject.response_count(index, given))
    ]
    if index in subject.decoupled:
        assert sorted(arrivals) == sorted(made)
        numbered = list(enumerate(arrivals))
    else:
        numbered = [(iteration, (iteration, number)) for iteration, number in made]
    values: Values = {}
    for iteration, (run, number) in numbered:
        response = subject.response(index, runs[run], number)
        for name, tensor in subject.steps[index].output_map.items():
            values[tensor, iteration] = response.get(name)
    return values


def _digest(*parts: object) -> Digest:
    text = repr([sorted(part.items()) if isinstance(part, dict) else part for part in parts])
    return zlib.crc32(text.encode())
