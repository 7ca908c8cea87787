"""Where the boxes of a layered drawing go: columns by dependency, rows so that connections run short.

Owns geometry alone: boxes have sizes and names, connections have ends. Knows neither ensembles nor svg.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import networkx as nx

N = TypeVar("N", bound=Hashable)

COLUMN_GAP: Final = 46.0
ROW_GAP: Final = 18.0
_MARGIN: Final = 20.0
_SWEEPS: Final = 6


@dataclass(frozen=True, slots=True)
class Box:
    """A placed box: its left top corner and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Layout(Generic[N]):
    """All boxes; for each connection, in order, the points it passes; and the size of the whole."""

    boxes: Mapping[N, Box]
    paths: tuple[tuple[tuple[float, float], ...], ...]
    width: float
    height: float


@dataclass(eq=False, slots=True)
class _Cell:
    """A box, or the place where a long connection passes through a column. `row` is its middle's height."""

    width: float
    height: float
    column: int
    row: float = 0.0


def layered_layout(sizes: Mapping[N, tuple[float, float]], connections: Sequence[tuple[N, N]]) -> Layout[N]:
    """Place boxes of these (width, height) from left to right along their connections.

    Connections against the flow (there are some only where the graph has cycles) run back to the left.
    """
    columns_of = _columns(sizes, connections)
    cells = {name: _Cell(width, height, columns_of[name]) for name, (width, height) in sizes.items()}
    columns: list[list[_Cell]] = [[] for _ in range(max(columns_of.values(), default=-1) + 1)]
    for cell in cells.values():
        columns[cell.column].append(cell)
    ways = [_way(cells[source], cells[target], columns) for source, target in connections]
    _arrange(columns, ways)
    lefts, width = _lefts(columns)
    top = min((cell.row - cell.height / 2 for column in columns for cell in column), default=0.0) - _MARGIN
    bottom = max((cell.row + cell.height / 2 for column in columns for cell in column), default=0.0) + _MARGIN
    if any(way[-1].column <= way[0].column for way in ways):
        bottom += ROW_GAP
    boxes = {}
    for name, cell in cells.items():
        left, column_width = lefts[cell.column]
        x = left + (column_width - cell.width) / 2
        boxes[name] = Box(x, cell.row - cell.height / 2 - top, cell.width, cell.height)
    paths = tuple(
        _path(boxes[source], boxes[target], way, lefts, top, bottom - _MARGIN)
        for (source, target), way in zip(connections, ways, strict=True)
    )
    return Layout(boxes, paths, width, bottom - top)


def _columns(sizes: Mapping[N, tuple[float, float]], connections: Sequence[tuple[N, N]]) -> dict[N, int]:
    """The column of each box: one to the right of all that lead to it."""
    graph: nx.DiGraph[N] = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from((source, target) for source, target in connections if source != target)
    while not nx.is_directed_acyclic_graph(graph):
        graph.remove_edge(*nx.find_cycle(graph)[-1][:2])
    return {name: column for column, names in enumerate(nx.topological_generations(graph)) for name in names}


def _way(source: _Cell, target: _Cell, columns: list[list[_Cell]]) -> list[_Cell]:
    """The cells from source to target, one a column, with new ones where it passes others by."""
    way = [source]
    for column in range(source.column + 1, target.column):
        passing = _Cell(0.0, 8.0, column)
        columns[column].append(passing)
        way.append(passing)
    way.append(target)
    return way


def _arrange(columns: list[list[_Cell]], ways: Sequence[list[_Cell]]) -> None:
    """Order each column, and give its cells their rows, by the rows of their neighbours to either side."""
    before: dict[_Cell, list[_Cell]] = {}
    after: dict[_Cell, list[_Cell]] = {}
    for way in ways:
        for left, right in itertools.pairwise(way):
            if left.column < right.column:
                before.setdefault(right, []).append(left)
                after.setdefault(left, []).append(right)
    for column in columns:
        _stack(column)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for column in columns if forward else reversed(columns):
            for cell in column:
                near = neighbours.get(cell)
                if near:
                    cell.row = sum(other.row for other in near) / len(near)
            column.sort(key=lambda cell: cell.row)
            _spread(column)


def _stack(column: Sequence[_Cell]) -> None:
    """Rows in order, centred on 0."""
    height = sum(cell.height + ROW_GAP for cell in column)
    top = -height / 2
    for cell in column:
        cell.row = top + cell.height / 2
        top += cell.height + ROW_GAP


def _spread(column: Sequence[_Cell]) -> None:
    """Push overlapping neighbours apart, keeping the column where it wanted to be on average."""
    wanted = sum(cell.row for cell in column) / max(len(column), 1)
    for upper, lower in itertools.pairwise(column):
        lower.row = max(lower.row, upper.row + (upper.height + lower.height) / 2 + ROW_GAP)
    shift = wanted - sum(cell.row for cell in column) / max(len(column), 1)
    for cell in column:
        cell.row += shift


def _lefts(columns: Sequence[Sequence[_Cell]]) -> tuple[list[tuple[float, float]], float]:
    """The left edge and the width of each column, and the width of all."""
    lefts = []
    left = _MARGIN
    for column in columns:
        width = max((cell.width for cell in column), default=0.0)
        lefts.append((left, width))
        left += width + COLUMN_GAP
    return lefts, left - COLUMN_GAP + _MARGIN if columns else 2 * _MARGIN


def _path(
    source: Box,
    target: Box,
    way: Sequence[_Cell],
    lefts: Sequence[tuple[float, float]],
    top: float,
    floor: float,
) -> tuple[tuple[float, float], ...]:
    """From the right side of one box to the left side of another, straight through each column between, or along
    the floor where it runs back.
    """
    begin, end = (source.x + source.width, source.middle), (target.x, target.middle)
    if way[-1].column <= way[0].column:
        return (begin, (begin[0] + _MARGIN / 2, floor - top), (end[0] - _MARGIN / 2, floor - top), end)
    points = [begin]
    for cell in way[1:-1]:
        left, width = lefts[cell.column]
        points += [(left, cell.row - top), (left + width, cell.row - top)]
    return (*points, end)
