"""An ensemble as text that people and their tools read: mermaid, dot, svg, or plain lines for a terminal.

Owns the formats and their escaping; what is drawn comes from `drawing`, the svg's geometry from `layout`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Final, assert_never

from cantata.dag.composition import FindModel
from cantata.dag.drawing import Connection, Drawing, End, Terminal, TerminalKind
from cantata.dag.graph import StepNode
from cantata.dag.svg import svg_lines
from cantata.grammars.model_config import ModelConfig


class GraphFormat(enum.Enum):
    """What an ensemble can be drawn as."""

    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"
    TEXT = "text"


def render_graph(config: ModelConfig, find_model: FindModel, format: GraphFormat | str) -> str:
    """Draw an ensemble; `find_model` as for its checks, and it may find nothing. Ends with a newline.

    Raises ValueError for a format that is none.
    """
    drawing = Drawing(config, find_model)
    match GraphFormat(format):
        case GraphFormat.MERMAID:
            lines = _mermaid(drawing)
        case GraphFormat.DOT:
            lines = _dot(drawing)
        case GraphFormat.SVG:
            lines = svg_lines(drawing)
        case GraphFormat.TEXT:
            lines = _text(drawing)
        case unknown:
            assert_never(unknown)
    return "\n".join(lines) + "\n"


def _ends(drawing: Drawing) -> dict[End, str]:
    """Every end with an id that each format takes as a bare word."""
    ends: dict[End, str] = {}
    counts: dict[str, int] = {}
    for index in range(len(drawing.graph.steps)):
        ends[StepNode(index)] = f"step{index}"
    for connection in drawing.connections:
        for end in (connection.source, connection.target):
            if isinstance(end, Terminal) and end not in ends:
                number = counts.get(end.kind.value, 0)
                counts[end.kind.value] = number + 1
                ends[end] = f"{end.kind.value}{number}"
    return ends


_MERMAID_SHAPES: Final = {
    TerminalKind.INPUT: ('(["', '"])'),
    TerminalKind.OUTPUT: ('(["', '"])'),
    TerminalKind.LOOSE: ('{{"', '"}}'),
}


def _mermaid(drawing: Drawing) -> Iterator[str]:
    ends = _ends(drawing)
    yield "flowchart LR"
    for end, word in ends.items():
        if isinstance(end, StepNode):
            notes = ", ".join(drawing.step_notes(end.index))
            title = _mermaid_text(f"{end.index}: {drawing.step_title(end.index)}")
            yield f'    {word}["{title}{"<br/>" + _mermaid_text(notes) if notes else ""}"]'
        else:
            left, right = _MERMAID_SHAPES[end.kind]
            yield f"    {word}{left}{_mermaid_text(end.name)}{right}"
    for connection in drawing.connections:
        label = "<br/>".join(
            _mermaid_text(part) for part in (connection.tensor, drawing.type_of(connection.tensor)) if part
        )
        yield f'    {ends[connection.source]} -- "{label}" --> {ends[connection.target]}'


def _mermaid_text(text: str) -> str:
    """Entities for whatever mermaid, or the HTML it makes, would read as markup."""
    return "".join(f"#{ord(char)};" if char in '"#<>&`|;\\\n\r' else char for char in text)


def _dot(drawing: Drawing) -> Iterator[str]:
    ends = _ends(drawing)
    yield f"digraph {_dot_text(drawing.config.name or 'ensemble')} {{"
    yield "    rankdir=LR;"
    yield '    node [fontname="Helvetica" fontsize=11];'
    yield '    edge [fontname="Helvetica" fontsize=9];'
    for end, word in ends.items():
        if isinstance(end, StepNode):
            lines = [f"{end.index}: {drawing.step_title(end.index)}", *drawing.step_notes(end.index)]
            yield f"    {word} [shape=box style=rounded label={_dot_text(*lines)}];"
        else:
            style = " style=dashed color=red" if end.kind is TerminalKind.LOOSE else ""
            yield f"    {word} [shape=ellipse{style} label={_dot_text(end.name)}];"
    for connection in drawing.connections:
        lines = [part for part in (connection.tensor, drawing.type_of(connection.tensor)) if part]
        ports = "".join(
            f" {attribute}={_dot_text(port)}"
            for attribute, port in (
                ("taillabel", connection.source_port),
                ("headlabel", connection.target_port),
            )
            if port and port != connection.tensor
        )
        yield f"    {ends[connection.source]} -> {ends[connection.target]} [label={_dot_text(*lines)}{ports}];"
    yield "}"


def _dot_text(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines)
    return '"' + "\\n".join(escaped) + '"'


def _text(drawing: Drawing) -> Iterator[str]:
    config = drawing.config
    batches = f", batches of up to {config.max_batch_size}" if config.max_batch_size else ""
    yield f"ensemble '{config.name}'{batches}"
    yield from _text_block(
        drawing,
        "inputs",
        (
            (item.tensor, "->", item)
            for item in drawing.connections
            if _is_terminal(item.source, TerminalKind.INPUT)
        ),
    )
    order = drawing.graph.steps_in_order()
    order += [index for index in range(len(drawing.graph.steps)) if index not in set(order)]
    for index in order:
        notes = ", ".join(drawing.step_notes(index))
        title = f"step {index}  {drawing.step_title(index)}" + (f"  ({notes})" if notes else "")
        reads = (
            (item.target_port, "<-", item) for item in drawing.connections if item.target == StepNode(index)
        )
        writes = (
            (item.source_port, "->", item) for item in drawing.connections if item.source == StepNode(index)
        )
        yield from _text_block(drawing, title, (*reads, *writes))
    yield from _text_block(
        drawing,
        "outputs",
        (
            (item.tensor, "<-", item)
            for item in drawing.connections
            if _is_terminal(item.target, TerminalKind.OUTPUT)
        ),
    )


def _text_block(
    drawing: Drawing, title: str, entries: Iterable[tuple[str, str, Connection]]
) -> Iterator[str]:
    rows = []
    for name, arrow, item in entries:
        other, port = (item.source, item.source_port) if arrow == "<-" else (item.target, item.target_port)
        rows.append((name, arrow, item.tensor, drawing.type_of(item.tensor), _text_end(drawing, other, port)))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    yield ""
    yield title
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True))
        yield "  " + "  ".join((*cells, row[4])).rstrip()


def _text_end(drawing: Drawing, end: End, port: str) -> str:
    if isinstance(end, StepNode):
        return f"step {end.index} {drawing.graph.steps[end.index].model_name}.{port}"
    match end.kind:
        case TerminalKind.INPUT:
            return "the request"
        case TerminalKind.OUTPUT:
            return "the response"
        case TerminalKind.LOOSE:
            return "NOTHING"
        case unknown:
            assert_never(unknown)


def _is_terminal(end: End, kind: TerminalKind) -> bool:
    return isinstance(end, Terminal) and end.kind is kind
