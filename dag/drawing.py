"""What there is to draw of an ensemble, whatever the format: steps, tensors with type and shape, connections.

Owns the labels and the way from graph to picture. Draws broken ensembles too, as far as they go. Knows no format.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cantata.dag.composition import ComposingModel, FindModel
from cantata.dag.graph import EnsembleGraph, StepNode
from cantata.grammars.model_config import DataType, ModelConfig, ModelInput, ModelOutput
from cantata.grammars.problems import Positions


class TerminalKind(enum.Enum):
    """What an end of a connection is that is no step."""

    INPUT = "input"
    OUTPUT = "output"
    # A tensor that nothing writes, or nothing reads: the ensemble is broken here.
    LOOSE = "loose"


@dataclass(frozen=True, slots=True)
class Terminal:
    """An ensemble input or output, or a loose end."""

    kind: TerminalKind
    name: str


End: TypeAlias = StepNode | Terminal


@dataclass(frozen=True, slots=True)
class Connection:
    """An ensemble tensor on its way from what gives it a value to one reader.

    The ports are names of the model's own tensors; "" at a terminal.
    """

    tensor: str
    source: End
    source_port: str
    target: End
    target_port: str


class Drawing:
    """One ensemble, labelled. Types and shapes come from whoever declares a tensor first: the ensemble, the step
    that writes it, a step that reads it; a model that is not found leaves them out.
    """

    def __init__(self, config: ModelConfig, find_model: FindModel) -> None:
        self.config = config
        self.graph = EnsembleGraph(config, Positions())
        self._models = [find_model(step.model_name, step.model_version) for step in self.graph.steps]
        self._types: dict[str, str] = {}
        self._declare_types()
        self.connections = tuple(self._connections())

    def step_title(self, index: int) -> str:
        """The model's name, with its version where one is asked for."""
        step = self.graph.steps[index]
        version = f" version {step.model_version}" if step.model_version != -1 else ""
        return f"{step.model_name or '(no model)'}{version}"

    def step_notes(self, index: int) -> tuple[str, ...]:
        """What is worth saying of a step's model."""
        model = self._models[index]
        if not isinstance(model, ComposingModel):
            return ("not found" if not model.is_known else "not loaded",)
        notes = []
        config = model.config
        if config.ensemble_scheduling is not None:
            notes.append("ensemble")
        elif config.backend or config.platform:
            notes.append(config.backend or config.platform)
        if config.max_batch_size:
            notes.append(f"batches of up to {config.max_batch_size}")
        if config.model_transaction_policy is not None and config.model_transaction_policy.decoupled:
            notes.append("decoupled")
        return tuple(notes)

    def type_of(self, tensor: str) -> str:
        """`FP32 [-1,16]`, or "" where nobody declares it."""
        return self._types.get(tensor, "")

    def label(self, tensor: str) -> str:
        """The tensor's name with its type and shape."""
        return " ".join(filter(None, (tensor, self.type_of(tensor))))

    def _declare_types(self) -> None:
        batches = self.config.max_batch_size > 0
        own: tuple[ModelInput | ModelOutput, ...] = (*self.config.input, *self.config.output)
        for tensor in own:
            self._types.setdefault(tensor.name, _type_text(tensor, batches))
        for index, step in enumerate(self.graph.steps):
            if (config := self._config_of(index)) is not None:
                self._declare(config, config.output, step.output_map)
        for index, step in enumerate(self.graph.steps):
            if (config := self._config_of(index)) is not None:
                self._declare(config, config.input, step.input_map)

    def _config_of(self, index: int) -> ModelConfig | None:
        model = self._models[index]
        return model.config if isinstance(model, ComposingModel) else None

    def _declare(
        self, config: ModelConfig, declared: Sequence[ModelInput | ModelOutput], names: Mapping[str, str]
    ) -> None:
        for tensor in declared:
            if tensor.name in names:
                self._types.setdefault(names[tensor.name], _type_text(tensor, config.max_batch_size > 0))

    def _connections(self) -> Iterator[Connection]:
        tensors = dict.fromkeys((*self.graph.inputs, *self.graph.mapped_tensors, *self.graph.outputs))
        for tensor in tensors:
            for source, source_port in self._sources(tensor):
                for target, target_port in self._targets(tensor):
                    yield Connection(tensor, source, source_port, target, target_port)

    def _sources(self, tensor: str) -> list[tuple[End, str]]:
        found: list[tuple[End, str]] = []
        if tensor in self.graph.inputs:
            found.append((Terminal(TerminalKind.INPUT, tensor), ""))
        found += [(StepNode(entry.step), entry.name) for entry in self.graph.writers(tensor)]
        return found or [(Terminal(TerminalKind.LOOSE, tensor), "")]

    def _targets(self, tensor: str) -> list[tuple[End, str]]:
        found: list[tuple[End, str]] = [
            (StepNode(entry.step), entry.name) for entry in self.graph.readers(tensor)
        ]
        if tensor in self.graph.outputs:
            found.append((Terminal(TerminalKind.OUTPUT, tensor), ""))
        return found or [(Terminal(TerminalKind.LOOSE, tensor), "")]


def _type_text(tensor: ModelInput | ModelOutput, batches: bool) -> str:
    if tensor.data_type is DataType.TYPE_STRING:
        name = "BYTES"
    else:
        name = tensor.data_type.name.removeprefix("TYPE_")
    dims = (-1, *tensor.dims) if batches else tensor.dims
    return f"{name} [{','.join(str(size) for size in dims)}]"
