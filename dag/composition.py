"""The rules between an ensemble and the models that its steps name: are they there, and do they fit together.

Owns these rules and whether an ensemble is decoupled. The caller finds the models and says which versions of
them there are; nothing here knows whether they are loaded or only lie on a disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cantata.dag.graph import EnsembleGraph
from cantata.grammars.model_config import DataType, EnsembleStep, ModelConfig, ModelInput, ModelOutput
from cantata.grammars.problems import Path, Positions, Problem, suggest


@dataclass(frozen=True, slots=True)
class ComposingModel:
    """A model that a step names: its completed configuration, and the versions that can be had.

    `is_complete` is False when the configuration leaves tensors to be completed by a backend that has not
    been asked: then what it does not declare is not checked.
    """

    config: ModelConfig
    versions: tuple[int, ...]
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class MissingModel:
    """A model that a step names and that can not be had: unknown, invalid, or without a loaded version.

    `reason` is the model's own error, `known_models` what could have been meant by an unknown name.
    """

    is_known: bool
    reason: str = ""
    is_valid: bool = True
    known_models: tuple[str, ...] = ()


FindModel: TypeAlias = Callable[[str, int], ComposingModel | MissingModel]


def check_composition(config: ModelConfig, positions: Positions, find_model: FindModel) -> list[Problem]:
    """What is wrong between an ensemble and the models that `find_model(name, version)` gives for its steps."""
    if config.ensemble_scheduling is None:
        return []
    return _Composition(config, positions, find_model).problems()


def is_decoupled_ensemble(config: ModelConfig, find_model: FindModel) -> bool:
    """Whether any step, or any step of a nested ensemble, may answer any number of times."""
    return _is_decoupled(config, find_model, frozenset())


def _is_decoupled(config: ModelConfig, find_model: FindModel, above: frozenset[str]) -> bool:
    if config.ensemble_scheduling is None:
        policy = config.model_transaction_policy
        return policy is not None and policy.decoupled
    if config.name in above:
        return False
    above |= {config.name}
    models = (find_model(step.model_name, step.model_version) for step in config.ensemble_scheduling.step)
    return any(
        isinstance(model, ComposingModel) and _is_decoupled(model.config, find_model, above)
        for model in models
    )


@dataclass(frozen=True, slots=True)
class _Declaration:
    """What one side says of an ensemble tensor. `where` names it in a hint."""

    model: str
    data_type: DataType
    dims: tuple[int, ...]
    batches: bool
    where: str

    @property
    def full_dims(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batches else self.dims

    def has_shape_of(self, other: _Declaration) -> bool:
        return _shapes_fit(self.dims, other.dims) or _shapes_fit(self.full_dims, other.full_dims)


class _Composition:
    """One check of one ensemble."""

    def __init__(self, config: ModelConfig, positions: Positions, find_model: FindModel) -> None:
        self._config = config
        self._name = config.name
        self._positions = positions
        self._find_model = find_model
        self._graph = EnsembleGraph(config, positions)
        self._steps = self._graph.steps
        self._found = [find_model(step.model_name, step.model_version) for step in self._steps]
        # The first declaration of each ensemble tensor: what every later one is held against.
        self._declared: dict[str, _Declaration] = {}

    def problems(self) -> list[Problem]:
        self._declare_own_tensors()
        problems = [*self._missing_models()]
        told: set[tuple[str, int]] = set()
        for index, (step, model) in enumerate(zip(self._steps, self._found, strict=True)):
            # What is wrong with a model itself is said once, however many steps run it.
            is_new = (step.model_name, step.model_version) not in told
            told.add((step.model_name, step.model_version))
            if isinstance(model, ComposingModel):
                if is_new:
                    problems += self._version(index, step, model)
                    problems += self._batch_size(index, model)
                problems += self._inputs(index, step, model)
                problems += self._outputs(index, step, model)
            elif is_new and model.is_known:
                problems.append(self._unusable_model(index, step, model))
        problems += self._joins()
        return [dataclasses.replace(problem, model=self._name) for problem in problems]

    def _missing_models(self) -> Iterator[Problem]:
        missing = {
            step.model_name: (index, model)
            for index, (step, model) in reversed([*enumerate(zip(self._steps, self._found, strict=True))])
            if isinstance(model, MissingModel) and not model.is_known
        }
        if not missing:
            return
        names = list(missing)[::-1]
        hints = []
        for name in names:
            index, model = missing[name]
            hint = suggest(name, model.known_models)
            hints.append(f"{self._where(index, 'model_name')}: {hint}" if hint else "")
        yield self._problem(
            missing[names[0]][0],
            f"ensemble {self._name} contains models that are not available or ambiguous: {', '.join(names)}",
            "model_name",
            hint="; ".join(filter(None, hints)),
        )

    def _unusable_model(self, index: int, step: EnsembleStep, model: MissingModel) -> Problem:
        name = step.model_name
        if model.is_valid:
            return self._no_version(index, name, model.reason)
        return self._problem(
            index,
            f"ensemble '{self._name}' depends on '{name}' which is not valid. "
            f"Model '{name}' failed with error: {model.reason}",
            "model_name",
        )

    def _version(self, index: int, step: EnsembleStep, model: ComposingModel) -> Iterator[Problem]:
        name, version = step.model_name, step.model_version
        if not model.versions:
            yield self._no_version(index, name, "")
        elif version != -1 and version not in model.versions:
            there = ", ".join(str(known) for known in sorted(model.versions))
            hint = f"'{name}' has version{'s' if len(model.versions) > 1 else ''} {there}"
            if version == 0:
                hint = f"without model_version a step asks for version 0; -1 asks for the latest; {hint}"
            yield self._problem(
                index,
                f"ensemble '{self._name}' depends on '{name}' whose required version {version} is not loaded.",
                "model_version",
                hint=hint,
            )

    def _no_version(self, index: int, name: str, error: str) -> Problem:
        message = f"ensemble '{self._name}' depends on '{name}' which has no loaded version."
        if error:
            message += f" Model '{name}' loading failed with error: {error}"
        return self._problem(index, message, "model_name")

    def _batch_size(self, index: int, model: ComposingModel) -> Iterator[Problem]:
        own, its = self._config.max_batch_size, model.config.max_batch_size
        if its != 0 and its < own:
            yield self._positions.problem(
                ("max_batch_size",),
                f"ensemble {self._name} allows maximum batch size {own}, but it contains model "
                f"{self._steps[index].model_name} which only allows maximum batch size to be {its}",
                f"{self._where(index, 'model_name')}; lower this to {its}, or raise the model's",
            )

    def _inputs(self, index: int, step: EnsembleStep, model: ComposingModel) -> Iterator[Problem]:
        known = {tensor.name: tensor for tensor in model.config.input}
        for name, tensor in step.input_map.items():
            if name in known:
                yield from self._declare(index, ("input_map", name), tensor, known[name], model)
            elif model.is_complete:
                yield self._problem(
                    index,
                    f"in ensemble {self._name}, ensemble tensor {tensor} is mapping to non-existing input "
                    f"{name} in model {step.model_name}",
                    "input_map",
                    name,
                    hint=_alternatives(name, list(known), "inputs"),
                )
        for name, declared in known.items():
            if name not in step.input_map and not declared.optional:
                strange = [key for key in step.input_map if key not in known]
                yield self._problem(
                    index,
                    f"in ensemble {self._name}, input {name} in model {step.model_name} is not mapped to any "
                    "ensemble tensors",
                    "input_map",
                    hint=suggest(name, strange).replace("did you mean", f"is it {name!r} that is meant by"),
                )

    def _outputs(self, index: int, step: EnsembleStep, model: ComposingModel) -> Iterator[Problem]:
        known = {tensor.name: tensor for tensor in model.config.output}
        for name, tensor in step.output_map.items():
            if name in known:
                yield from self._declare(index, ("output_map", name), tensor, known[name], model)
            elif model.is_complete:
                yield self._problem(
                    index,
                    f"in ensemble {self._name}, ensemble tensor {tensor} is mapped from non-existing output "
                    f"{name} in model {step.model_name}",
                    "output_map",
                    name,
                    hint=_alternatives(name, list(known), "outputs"),
                )

    def _declare_own_tensors(self) -> None:
        batches = self._config.max_batch_size > 0
        groups: tuple[tuple[str, Sequence[ModelInput | ModelOutput]], ...] = (
            ("input", self._config.input),
            ("output", self._config.output),
        )
        for field, tensors in groups:
            for index, tensor in enumerate(tensors):
                if not _is_declared(tensor):
                    continue
                dims = tensor.dims if tensor.reshape is None else tensor.reshape.shape
                line = self._positions.at((field, index, "name")).line
                where = f"the ensemble's {field} '{tensor.name}'" + (f" (line {line})" if line else "")
                declared = _Declaration(self._name, tensor.data_type, tuple(dims), batches, where)
                self._declared.setdefault(tensor.name, declared)

    def _declare(
        self,
        index: int,
        path: tuple[str, str],
        tensor: str,
        spec: ModelInput | ModelOutput,
        model: ComposingModel,
    ) -> Iterator[Problem]:
        """Hold one end of an edge against the tensor's first declaration, or make it that."""
        if not _is_declared(spec):
            return
        field, name = path
        side = "input" if field == "input_map" else "output"
        step_name = self._steps[index].model_name
        second = _Declaration(
            step_name,
            spec.data_type,
            tuple(spec.dims),
            model.config.max_batch_size > 0,
            f"{side} '{name}' of {self._where(index, field, name)}",
        )
        first = self._declared.setdefault(tensor, second)
        prefix = f"in ensemble {self._name}, ensemble tensor {tensor}: inconsistent"
        hint = f"{first.where} against {second.where}"
        if first.data_type != second.data_type:
            yield self._problem(
                index,
                f"{prefix} data type: {first.data_type.name} is inferred from model {first.model} while "
                f"{second.data_type.name} is inferred from model {second.model}",
                field,
                name,
                hint=hint,
            )
        if not first.has_shape_of(second):
            yield self._problem(
                index,
                f"{prefix} shape: {_dims_text(first.full_dims)} is inferred from model {first.model} while "
                f"{_dims_text(second.full_dims)} is inferred from model {second.model}",
                field,
                name,
                hint=hint,
            )

    def _joins(self) -> Iterator[Problem]:
        """Steps, or the ensemble's outputs, that would join responses of different decoupled steps."""
        # The decoupled step whose responses each tensor comes with; -1 is the request itself.
        labels = dict.fromkeys(self._graph.inputs, -1)
        for index in self._graph.steps_in_order():
            step, model = self._steps[index], self._found[index]
            sources = self._sources(list(step.input_map.values()), labels)
            if len(sources) > 1:
                yield self._problem(
                    index, self._join_text(step.model_name), "input_map", hint=self._join_hint(sources)
                )
            label = next(iter(sources), -1)
            if isinstance(model, ComposingModel) and is_decoupled_ensemble(model.config, self._find_model):
                label = index
            for tensor in step.output_map.values():
                labels.setdefault(tensor, label)
        sources = self._sources(self._graph.outputs, labels)
        if len(sources) > 1:
            yield self._positions.problem(("output",), self._join_text(self._name), self._join_hint(sources))

    def _join_text(self, model_name: str) -> str:
        return (
            f"in ensemble {self._name}, step of model '{model_name}' receives inputs originated from "
            "different decoupled models"
        )

    @staticmethod
    def _sources(tensors: Sequence[str], labels: dict[str, int]) -> dict[int, str]:
        """The first of `tensors` for each label."""
        sources: dict[int, str] = {}
        for tensor in tensors:
            if tensor in labels:
                sources.setdefault(labels[tensor], tensor)
        return sources

    def _join_hint(self, sources: dict[int, str]) -> str:
        told = (
            f"'{tensor}' comes once a request"
            if label == -1
            else f"'{tensor}' comes with each response of {self._where(label, 'model_name')}"
            for label, tensor in sources.items()
        )
        return ", ".join(told)

    def _where(self, index: int, *field: str) -> str:
        line = self._positions.at(("ensemble_scheduling", "step", index, *field)).line
        return f"step {index} ('{self._steps[index].model_name}')" + (f" in line {line}" if line else "")

    def _problem(self, index: int, message: str, *field: str, hint: str = "") -> Problem:
        path: Path = ("ensemble_scheduling", "step", index, *field)
        return self._positions.problem(path, message, hint)


def _is_declared(tensor: ModelInput | ModelOutput) -> bool:
    """Whether type and dims are given; that they must be is a rule of each model's own."""
    return tensor.data_type != DataType.TYPE_INVALID and bool(tensor.dims)


def _shapes_fit(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == len(right) and all(
        one == other or -1 in (one, other) for one, other in zip(left, right, strict=True)
    )


def _dims_text(dims: tuple[int, ...]) -> str:
    return "[" + ",".join(str(size) for size in dims) + "]"


def _alternatives(word: str, known: list[str], noun: str) -> str:
    """A did-you-mean, or what there is to choose from."""
    hint = suggest(word, known)
    if hint or not known:
        return hint
    return f"its {noun} are " + ", ".join(f"'{name}'" for name in known)
