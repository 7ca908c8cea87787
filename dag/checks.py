"""Everything that can be wrong with an ensemble's wiring, found before anything is served and reported at
once.

Owns the rules for one configuration alone (`check_ensemble`) and among ensembles (`check_cycles`), in
Triton's words with our positions and hints; `composition` has those beside the models that an ensemble
names. Knows neither disk nor backend. What holds for every model is in `grammars.rules`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from cantata.dag.composition import (
    ComposingModel,
    FindModel,
    MissingModel,
    check_composition,
    is_decoupled_ensemble,
)
from cantata.dag.graph import EnsembleGraph, MapEntry, cycle_through
from cantata.grammars.model_config import ModelConfig
from cantata.grammars.problems import Path, Position, Positions, Problem, suggest

__all__ = [
    "ComposingModel",
    "FindModel",
    "MissingModel",
    "check_composition",
    "check_cycles",
    "check_ensemble",
    "is_decoupled_ensemble",
]


def check_ensemble(config: ModelConfig, positions: Positions) -> list[Problem]:
    """What is wrong with an ensemble by its configuration alone; [] for a model that is none."""
    if config.ensemble_scheduling is None:
        return []
    return [*_forbidden_fields(config, positions), *_Wiring(config, positions).problems()]


def check_cycles(ensembles: Mapping[str, ModelConfig], positions: Mapping[str, Positions]) -> list[Problem]:
    """One problem for each ensemble that needs itself, directly or through others; `model` says which."""
    dependencies = {
        name: [step.model_name for step in config.ensemble_scheduling.step if step.model_name in ensembles]
        for name, config in ensembles.items()
        if config.ensemble_scheduling is not None
    }
    problems = []
    for name in sorted(dependencies):
        way = cycle_through(name, dependencies)
        if way:
            scheduling = ensembles[name].ensemble_scheduling
            assert scheduling is not None
            index = next(i for i, step in enumerate(scheduling.step) if step.model_name == way[1])
            problem = positions.get(name, Positions()).problem(
                ("ensemble_scheduling", "step", index, "model_name"),
                f"circular dependency between ensembles: {name} -> ... -> {way[-2]} -> {name}",
                "the whole way: " + " -> ".join(way),
            )
            problems.append(dataclasses.replace(problem, model=name))
    return problems


def _forbidden_fields(config: ModelConfig, positions: Positions) -> Iterator[Problem]:
    name = config.name
    if config.platform != "ensemble":
        yield positions.problem(
            ("ensemble_scheduling",),
            f"ensemble scheduling cannot be set for model '{name}' whose platform is not ensemble",
            'an ensemble says platform: "ensemble"',
        )
    if config.instance_group:
        yield positions.problem(
            ("instance_group",),
            f"instance group should not be specified for ensemble '{name}'",
            "the composing models have instances; an ensemble has none",
        )
    if config.optimization is not None:
        yield positions.problem(
            ("optimization",),
            f"optimization should not be specified for ensemble '{name}'",
            "specify it for the composing models",
        )
    if config.model_warmup:
        yield positions.problem(
            ("model_warmup",),
            f"model_warmup can not be specified for ensemble '{name}'",
            "specify it for the composing models",
        )


class _Wiring:
    """The rules about steps and tensors, over one graph."""

    def __init__(self, config: ModelConfig, positions: Positions) -> None:
        self._name = config.name
        self._positions = positions
        self._graph = EnsembleGraph(config, positions)
        self._ready = self._graph.ready_tensors()
        self._mapped = self._graph.mapped_tensors
        # Tensors whose trouble has been told with an output that hangs on them.
        self._explained: set[str] = set()

    def problems(self) -> Iterator[Problem]:
        if not self._graph.steps:
            yield self._problem(("ensemble_scheduling",), f"must specify 'step' for ensemble '{self._name}'")
            return
        incomplete = list(self._incomplete_steps())
        yield from incomplete
        yield from self._tensors_written_twice()
        if incomplete:
            # What such a step would have read and written is not known: the rest would be guesses.
            return
        yield from self._unused_inputs()
        yield from self._unwritten_outputs()
        yield from self._unused_tensors()

    def _incomplete_steps(self) -> Iterator[Problem]:
        for index, step in enumerate(self._graph.steps):
            for field in ("model_name", "input_map", "output_map"):
                if not getattr(step, field):
                    yield self._problem(
                        ("ensemble_scheduling", "step", index),
                        f"must specify '{field}' in step {index} of ensemble '{self._name}'",
                    )

    def _tensors_written_twice(self) -> Iterator[Problem]:
        for tensor in self._mapped:
            writers = self._graph.writers(tensor)
            for entry in writers[1:]:
                yield self._problem(
                    entry.path,
                    f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble "
                    f"'{self._name}' step {entry.step}",
                    f"{self._step(writers[0])} writes it already{_line(writers[0].position)}",
                )

    def _unused_inputs(self) -> Iterator[Problem]:
        for index, name in enumerate(self._graph.inputs):
            if name not in self._mapped:
                # The quotes stand as clients know this text.
                yield self._problem(
                    ("input", index, "name"),
                    f"ensemble input '{name}' for ensemble {self._name}' is not used",
                    self._where_meant(name, [tensor for tensor in self._mapped if self._is_loose(tensor)])
                    or "no step's input_map reads it",
                )

    def _unwritten_outputs(self) -> Iterator[Problem]:
        for index, name in enumerate(self._graph.outputs):
            path = ("output", index, "name")
            if name not in self._mapped:
                written = [tensor for tensor in self._mapped if self._graph.writers(tensor)]
                yield self._problem(
                    path,
                    f"ensemble output '{name}' for ensemble {self._name}' is not used",
                    self._where_meant(name, written) or "no step's output_map writes it",
                )
            elif name not in self._ready:
                culprit = self._unready_ancestor(name)
                message = f"output '{name}' for ensemble '{self._name}' is not written"
                if culprit != name:
                    message += f": at least one of its depending tensors, '{culprit}', is not connected"
                yield self._problem(path, message, self._why_unready(culprit))

    def _unused_tensors(self) -> Iterator[Problem]:
        for tensor in self._mapped:
            if tensor in self._graph.outputs or tensor in self._explained:
                continue
            readers = self._graph.readers(tensor)
            if tensor in self._ready and readers:
                continue
            entry = (self._graph.writers(tensor) or readers)[0]
            yield self._problem(
                entry.path,
                f"ensemble tensor '{tensor}' is unused in ensemble '{self._name}'",
                self._why_unused(tensor, entry) if tensor in self._ready else self._why_unready(tensor),
            )

    def _unready_ancestor(self, output: str) -> str:
        """The tensor to blame: one that nothing writes if there is such, else the deepest of a cycle."""
        seen = {output}
        pending = [output]
        deepest = output
        unwritten = ""
        while pending:
            deepest = pending.pop()
            if not self._graph.writers(deepest) and not unwritten:
                unwritten = deepest
            waiting = [
                tensor
                for tensor in self._graph.dependencies(deepest)
                if tensor not in self._ready and tensor not in seen
            ]
            seen.update(waiting)
            pending.extend(reversed(waiting))
        self._explained |= seen
        return unwritten or deepest

    def _why_unready(self, tensor: str) -> str:
        cycle = self._graph.cycle_of(tensor)
        if cycle:
            return "these steps wait for each other: " + ", ".join(str(index) for index in cycle)
        if self._graph.writers(tensor):
            return "it hangs on tensors that never get a value"
        readers = self._graph.readers(tensor)
        known = [name for name in (*self._graph.inputs, *self._mapped) if name in self._ready]
        told = f"{self._step(readers[0])} reads it{_line(readers[0].position)}, but nothing writes it"
        return "; ".join(filter(None, (told, suggest(tensor, known))))

    def _why_unused(self, tensor: str, entry: MapEntry) -> str:
        told = f"{self._step(entry)} writes it, but no step reads it and it is no output of the ensemble"
        wanted = [name for name in self._mapped if self._is_loose(name)]
        unmapped = [name for name in self._graph.outputs if name not in self._mapped]
        return "; ".join(filter(None, (told, suggest(tensor, [*unmapped, *wanted]))))

    def _is_loose(self, tensor: str) -> bool:
        """Whether steps read `tensor`, but nothing gives it a value."""
        return not self._graph.writers(tensor) and tensor not in self._graph.inputs

    def _where_meant(self, name: str, candidates: list[str]) -> str:
        """A did-you-mean with the place of what may have been meant."""
        hint = suggest(name, candidates)
        for tensor in candidates:
            if hint and repr(tensor) in hint:
                entry = (self._graph.writers(tensor) or self._graph.readers(tensor))[0]
                return f"{hint} {self._step(entry)} names it{_line(entry.position)}"
        return hint

    def _step(self, entry: MapEntry) -> str:
        return f"step {entry.step} ('{self._graph.steps[entry.step].model_name}')"

    def _problem(self, path: Path, message: str, hint: str = "") -> Problem:
        return dataclasses.replace(self._positions.problem(path, message, hint), model=self._name)


def _line(position: Position) -> str:
    return f" in line {position.line}" if position.line else ""
