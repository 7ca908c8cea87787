"""An ensemble as a graph of networkx: steps and tensors are nodes, the entries of the maps are edges.

Owns the graph and the questions that checks and drawings ask of it. Used when a configuration is checked or
drawn, never while a request is served. Draws nothing and judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import networkx as nx

from cantata.grammars.model_config import EnsembleStep, ModelConfig
from cantata.grammars.problems import Path, Position, Positions


@dataclass(frozen=True, slots=True)
class StepNode:
    """A step, by its index in the configuration."""

    index: int


@dataclass(frozen=True, slots=True)
class TensorNode:
    """An ensemble tensor, by its name."""

    name: str


Node: TypeAlias = StepNode | TensorNode


@dataclass(frozen=True, slots=True)
class MapEntry:
    """One entry of a step's input_map or output_map, and where it stands."""

    step: int
    name: str
    tensor: str
    path: Path
    position: Position


class EnsembleGraph:
    """The graph of one ensemble. An edge runs from a tensor to each step that reads it, and from a step to
    what it writes; its attribute `entries` holds the map entries behind it. A node's `position` is where it
    is first named: an ensemble tensor's declaration, or the entry that mentions it.
    """

    def __init__(self, config: ModelConfig, positions: Positions) -> None:
        scheduling = config.ensemble_scheduling
        self.config = config
        self.steps: tuple[EnsembleStep, ...] = scheduling.step if scheduling is not None else ()
        self.inputs = tuple(tensor.name for tensor in config.input)
        self.outputs = tuple(tensor.name for tensor in config.output)
        self.graph: nx.DiGraph[Node] = nx.DiGraph()
        for field, names in (("input", self.inputs), ("output", self.outputs)):
            for index, name in enumerate(names):
                self._add_tensor(name, positions.at((field, index, "name")))
        # Every entry by its tensor, in the order of the configuration.
        self._readers: dict[str, list[MapEntry]] = {}
        self._writers: dict[str, list[MapEntry]] = {}
        for index, step in enumerate(self.steps):
            path: Path = ("ensemble_scheduling", "step", index)
            self.graph.add_node(StepNode(index), position=positions.at(path))
            self._add_map(index, step.input_map, (*path, "input_map"), positions, self._readers)
            self._add_map(index, step.output_map, (*path, "output_map"), positions, self._writers)

    @property
    def mapped_tensors(self) -> tuple[str, ...]:
        """The tensors that some step reads or writes, in the order of the configuration."""
        tensors: dict[str, None] = {}
        for step in self.steps:
            tensors.update(dict.fromkeys((*step.input_map.values(), *step.output_map.values())))
        return tuple(tensors)

    def readers(self, tensor: str) -> list[MapEntry]:
        """The input_map entries that read `tensor`."""
        return self._readers.get(tensor, [])

    def writers(self, tensor: str) -> list[MapEntry]:
        """The output_map entries that write `tensor`; more than one is a mistake."""
        return self._writers.get(tensor, [])

    def position(self, node: Node) -> Position:
        """Where a node is first named."""
        position: Position = self.graph.nodes[node]["position"]
        return position

    def entries(self, source: Node, target: Node) -> tuple[MapEntry, ...]:
        """The map entries behind an edge."""
        entries: tuple[MapEntry, ...] = self.graph.edges[source, target]["entries"]
        return entries

    def dependencies(self, tensor: str) -> tuple[str, ...]:
        """The tensors that the steps which write `tensor` read."""
        found: dict[str, None] = {}
        for entry in self.writers(tensor):
            found.update(dict.fromkeys(self.steps[entry.step].input_map.values()))
        return tuple(found)

    def ready_tensors(self) -> set[str]:
        """The tensors that get a value when the ensemble's inputs have theirs."""
        ready = set(self.inputs)
        missing = [set(step.input_map.values()) for step in self.steps]
        pending = list(self.inputs)
        while pending:
            tensor = pending.pop()
            for entry in self.readers(tensor):
                if tensor not in missing[entry.step]:
                    continue
                missing[entry.step].discard(tensor)
                if not missing[entry.step]:
                    fresh = [name for name in self.steps[entry.step].output_map.values() if name not in ready]
                    ready.update(fresh)
                    pending.extend(fresh)
        return ready

    def steps_in_order(self) -> list[int]:
        """The steps that can run, each after those whose tensors it reads."""
        ready = self.ready_tensors()
        runnable = [
            StepNode(index)
            for index, step in enumerate(self.steps)
            if step.input_map and ready.issuperset(step.input_map.values())
        ]
        order: nx.DiGraph[Node] = nx.DiGraph()
        order.add_nodes_from(runnable)
        for node in runnable:
            for tensor in self.steps[node.index].input_map.values():
                if tensor not in self.inputs:
                    order.add_edges_from((StepNode(entry.step), node) for entry in self.writers(tensor))
        cyclic = not nx.is_directed_acyclic_graph(order)
        nodes = list(order) if cyclic else nx.lexicographical_topological_sort(order, key=_node_order)
        return [node.index for node in nodes if isinstance(node, StepNode)]

    def cycle_of(self, tensor: str) -> list[int]:
        """The steps that wait for each other through `tensor`; none in a sound graph."""
        for component in nx.strongly_connected_components(self.graph):
            if TensorNode(tensor) in component and len(component) > 1:
                return sorted(node.index for node in component if isinstance(node, StepNode))
        return []

    def _add_tensor(self, name: str, position: Position) -> None:
        if TensorNode(name) not in self.graph:
            self.graph.add_node(TensorNode(name), position=position)

    def _add_map(
        self,
        index: int,
        names: dict[str, str],
        path: Path,
        positions: Positions,
        entries: dict[str, list[MapEntry]],
    ) -> None:
        for name, tensor in names.items():
            entry = MapEntry(index, name, tensor, (*path, name), positions.at((*path, name)))
            entries.setdefault(tensor, []).append(entry)
            self._add_tensor(tensor, entry.position)
            ends: tuple[Node, Node] = (TensorNode(tensor), StepNode(index))
            source, target = ends if entries is self._readers else ends[::-1]
            known = self.graph.edges[source, target]["entries"] if self.graph.has_edge(source, target) else ()
            self.graph.add_edge(source, target, entries=(*known, entry))


def cycle_through(name: str, dependencies: dict[str, list[str]]) -> list[str]:
    """The shortest way from `name` back to itself, both ends named; empty where there is none."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edges_from((source, target) for source, targets in dependencies.items() for target in targets)
    if name not in graph:
        return []
    ways: Iterable[list[str]] = (
        nx.shortest_path(graph, target, name)
        for target in dependencies.get(name, ())
        if nx.has_path(graph, target, name)
    )
    return min(([name, *way] for way in ways), key=len, default=[])


def _node_order(node: Node) -> int:
    return node.index if isinstance(node, StepNode) else -1
