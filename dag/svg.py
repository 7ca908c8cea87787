"""An ensemble as one self-contained svg: steps as boxes, each tensor with type and shape on its way between them.

Owns shapes, colours and XML escaping; needs no font file, script or other program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from cantata.dag.drawing import Drawing, TerminalKind
from cantata.dag.graph import EnsembleGraph, Node, StepNode, TensorNode
from cantata.dag.layout import Box, Layout, layered_layout

_LINE_HEIGHT: Final = 15.0
# Wide enough for the widest letters of common sans-serif fonts at the sizes below.
_CHARACTER_WIDTH: Final = 6.9
_PADDING: Final = 9.0
_STYLE: Final = (
    "svg{background:#fff}"
    "text{font:12px Helvetica,Arial,sans-serif;text-anchor:middle;fill:#1c2733}"
    ".small{font-size:10.5px;fill:#55636f}"
    ".title{font-weight:bold}"
    "rect{stroke-width:1.2}"
    ".step rect{fill:#e8f0fe;stroke:#4472c4}"
    ".tensor rect{fill:#f6f7f8;stroke:#b6bec6}"
    ".input rect{fill:#e6f4ea;stroke:#3c8c52}"
    ".output rect{fill:#fdf3dc;stroke:#c08a1e}"
    ".loose rect{fill:#fdeaea;stroke:#c53929;stroke-dasharray:4 3}"
    "path{fill:none;stroke:#7b8894;stroke-width:1.3}"
)


def svg_lines(drawing: Drawing) -> Iterator[str]:
    """The lines of the svg document."""
    graph = drawing.graph
    labels = {node: _label(drawing, node) for node in graph.graph.nodes}
    sizes = {
        node: (
            max(len(line) for line in lines) * _CHARACTER_WIDTH + 2 * _PADDING,
            len(lines) * _LINE_HEIGHT + _PADDING,
        )
        for node, lines in labels.items()
    }
    edges = list(graph.graph.edges)
    layout: Layout[Node] = layered_layout(sizes, edges)
    size = f"{layout.width:.0f}", f"{layout.height:.0f}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" role="img">'
    )
    yield f"<title>ensemble {_xml(drawing.config.name)}</title>"
    yield f"<style>{_STYLE}</style>"
    yield '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7"'
    yield ' orient="auto"><path d="M0,0 L8,4 L0,8 z" style="fill:#7b8894;stroke:none"/></marker></defs>'
    for (source, target), points in zip(edges, layout.paths, strict=True):
        told = ", ".join(_ports(graph, source, target))
        yield f'<path d="{_curve(points)}" marker-end="url(#arrow)"><title>{_xml(told)}</title></path>'
    for node, lines in labels.items():
        yield from _box(layout.boxes[node], lines, _css_class(graph, node))
    yield "</svg>"


def _label(drawing: Drawing, node: Node) -> list[str]:
    if isinstance(node, StepNode):
        return [f"{node.index}: {drawing.step_title(node.index)}", *drawing.step_notes(node.index)]
    return [node.name, *filter(None, (drawing.type_of(node.name),))]


def _css_class(graph: EnsembleGraph, node: Node) -> str:
    if isinstance(node, StepNode):
        return "step"
    if node.name in graph.inputs:
        return TerminalKind.INPUT.value
    if not graph.writers(node.name) or not (node.name in graph.outputs or graph.readers(node.name)):
        return TerminalKind.LOOSE.value
    return TerminalKind.OUTPUT.value if node.name in graph.outputs else "tensor"


def _ports(graph: EnsembleGraph, source: Node, target: Node) -> Iterator[str]:
    for entry in graph.entries(source, target):
        model = f"{graph.steps[entry.step].model_name}.{entry.name}"
        yield f"{entry.tensor} → {model}" if isinstance(source, TensorNode) else f"{model} → {entry.tensor}"


def _curve(points: tuple[tuple[float, float], ...]) -> str:
    """A line through the points that leaves and enters each of them level."""
    x, y = points[0]
    parts = [f"M{x:.1f},{y:.1f}"]
    for next_x, next_y in points[1:]:
        bend = (x + next_x) / 2
        parts.append(f"C{bend:.1f},{y:.1f} {bend:.1f},{next_y:.1f} {next_x:.1f},{next_y:.1f}")
        x, y = next_x, next_y
    return " ".join(parts)


def _box(box: Box, lines: list[str], css_class: str) -> Iterator[str]:
    radius = 4.0 if css_class == "step" else min(box.height, 40.0) / 2
    yield f"<g class={quoteattr(css_class)}>"
    yield (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'rx="{radius:.1f}"/>'
    )
    baseline = box.y + _PADDING / 2 + _LINE_HEIGHT * 0.75
    for number, line in enumerate(lines):
        style = "small" if number else "title" if css_class == "step" else "name"
        yield (
            f'<text class="{style}" x="{box.x + box.width / 2:.1f}" '
            f'y="{baseline + number * _LINE_HEIGHT:.1f}">{_xml(line)}</text>'
        )
    yield "</g>"


def _xml(text: str) -> str:
    """Escaped, with a mark for what no XML document may hold."""
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))
