"""How an ensemble looks in each format."""

from __future__ import annotations

import re
import time
from itertools import combinations
from xml.etree import ElementTree

import pytest

from cantata.dag.composition import ComposingModel, MissingModel
from cantata.dag.drawing import Drawing
from cantata.dag.layout import ROW_GAP, layered_layout
from cantata.dag.render import GraphFormat, render_graph
from cantata.grammars.model_config import DataType, ModelConfig
from tests.support.ensembles import composing_model, ensemble, models_of, step

OCR = ensemble(
    {"IMAGE": (DataType.TYPE_UINT8, [-1])},
    {"TEXT": (DataType.TYPE_STRING, [-1])},
    [
        step("decode", {"BYTES": "IMAGE"}, {"PIXELS": "pixels"}),
        step("read", {"x": "pixels"}, {"y": "TEXT"}, model_version=3),
    ],
    name="ocr",
)
MODELS = {
    "decode": composing_model(
        "decode", ["BYTES"], {"PIXELS": [3, 224, 224]}, max_batch_size=8, decoupled=True
    ),
    "read": composing_model("read", ["x"], ["y"]),
}


def find(name: str, _version: int) -> ComposingModel | MissingModel:
    return ComposingModel(MODELS[name], (1,)) if name in MODELS else MissingModel(is_known=False)


def nobody(_name: str, _version: int) -> MissingModel:
    return MissingModel(is_known=False)


def test_text_lists_each_step_with_its_tensors_and_where_they_go() -> None:
    assert (
        render_graph(OCR, find, GraphFormat.TEXT)
        == """\
ensemble 'ocr'

inputs
  IMAGE  ->  IMAGE  UINT8 [-1]  step 0 decode.BYTES

step 0  decode  (python, batches of up to 8, decoupled)
  BYTES   <-  IMAGE   UINT8 [-1]           the request
  PIXELS  ->  pixels  FP32 [-1,3,224,224]  step 1 read.x

step 1  read version 3  (python)
  x  <-  pixels  FP32 [-1,3,224,224]  step 0 decode.PIXELS
  y  ->  TEXT    BYTES [-1]           the response

outputs
  TEXT  <-  TEXT  BYTES [-1]  step 1 read.y
"""
    )


def test_mermaid_has_types_and_shapes_on_the_edges() -> None:
    assert (
        render_graph(OCR, find, GraphFormat.MERMAID)
        == """\
flowchart LR
    step0["0: decode<br/>python, batches of up to 8, decoupled"]
    step1["1: read version 3<br/>python"]
    input0(["IMAGE"])
    output0(["TEXT"])
    input0 -- "IMAGE<br/>UINT8 [-1]" --> step0
    step0 -- "pixels<br/>FP32 [-1,3,224,224]" --> step1
    step1 -- "TEXT<br/>BYTES [-1]" --> output0
"""
    )


def test_dot_has_types_and_shapes_on_the_edges() -> None:
    text = render_graph(OCR, find, GraphFormat.DOT)
    assert text.startswith('digraph "ocr" {\n')
    edge = r'step0 -> step1 [label="pixels\nFP32 [-1,3,224,224]" taillabel="PIXELS" headlabel="x"];'
    assert edge in text


def svg_texts(config: ModelConfig) -> list[str]:
    root = ElementTree.fromstring(render_graph(config, find, GraphFormat.SVG))
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_svg_is_well_formed_and_says_the_same() -> None:
    assert set(svg_texts(OCR)) == {
        "0: decode",
        "python",
        "batches of up to 8",
        "decoupled",
        "1: read version 3",
        "IMAGE",
        "UINT8 [-1]",
        "pixels",
        "FP32 [-1,3,224,224]",
        "TEXT",
        "BYTES [-1]",
    }


def test_models_that_are_not_found_leave_types_out() -> None:
    text = render_graph(OCR, nobody, GraphFormat.TEXT)
    assert "step 0  decode  (not found)\n  BYTES   <-  IMAGE   UINT8 [-1]  the request" in text
    assert "  PIXELS  ->  pixels              step 1 read.x" in text


def test_a_broken_ensemble_shows_its_loose_ends() -> None:
    config = ensemble(["A"], ["B"], [step("m", {"X": "LOST", "Y": "B"}, {"O": "C"})])
    text = render_graph(config, nobody, GraphFormat.TEXT)
    assert "X  <-  LOST            NOTHING" in text
    assert "Y  <-  B     FP32 [4]  NOTHING" in text
    assert "A  ->  A  FP32 [4]  NOTHING" in text


def test_a_cycle_is_drawn_too() -> None:
    config = ensemble(
        ["A"], ["C"], [step("m", {"X": "A", "Y": "C"}, {"O": "B"}), step("n", {"X": "B"}, {"O": "C"})]
    )
    for format in GraphFormat:
        assert render_graph(config, nobody, format)


def test_an_ensemble_of_nothing_is_drawn_too() -> None:
    for format in GraphFormat:
        assert render_graph(ensemble([], [], []), nobody, format)


def test_a_format_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="png"):
        render_graph(OCR, find, "png")


NASTY = '<b>"quoted" & #1; \\ [x] `</svg>\x01'


def nasty_ensemble() -> ModelConfig:
    return ensemble([NASTY], ["B"], [step(NASTY, {NASTY: NASTY}, {"O": "B"})], name=NASTY)


def test_names_are_escaped_in_svg() -> None:
    readable = NASTY.replace("\x01", "\N{REPLACEMENT CHARACTER}")
    assert f"0: {readable}" in svg_texts(nasty_ensemble())


def test_names_are_escaped_in_mermaid() -> None:
    text = render_graph(nasty_ensemble(), nobody, GraphFormat.MERMAID)
    for line in text.splitlines()[1:]:
        assert line.count('"') == 2
        assert "<b>" not in line


def test_names_are_escaped_in_dot() -> None:
    text = render_graph(nasty_ensemble(), nobody, GraphFormat.DOT)
    for line in text.splitlines():
        assert len(re.sub(r"\\.", "", line).split('"')) % 2 == 1


def test_boxes_do_not_overlap_and_connections_run_to_the_right() -> None:
    sizes = {number: (40.0 + number % 5 * 20, 20.0 + number % 3 * 15) for number in range(30)}
    connections = [
        (number, other)
        for number in range(30)
        for other in (number + 1, number + 4, number * 2)
        if number < other < 30
    ]
    layout = layered_layout(sizes, connections)
    for one, other in combinations(layout.boxes.values(), 2):
        apart_x = one.x + one.width <= other.x or other.x + other.width <= one.x
        apart_y = (
            one.y + one.height + ROW_GAP <= other.y + 0.01 or other.y + other.height + ROW_GAP <= one.y + 0.01
        )
        assert apart_x or apart_y
    for path in layout.paths:
        assert [x for x, _ in path] == sorted(x for x, _ in path)
    for box in layout.boxes.values():
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= layout.width
        assert box.y + box.height <= layout.height


def test_what_runs_back_passes_below_all_boxes() -> None:
    sizes = dict.fromkeys("ab", (40.0, 20.0))
    layout = layered_layout(sizes, [("a", "b"), ("b", "a")])
    lowest = max(box.y + box.height for box in layout.boxes.values())
    back = max(layout.paths, key=len)
    assert lowest < max(y for _, y in back) < layout.height


def test_a_large_ensemble_is_drawn_in_a_moment() -> None:
    steps = [step("m", {"I": f"T{index // 2}"}, {"O": f"T{index + 1}"}) for index in range(300)]
    config = ensemble(["T0"], [f"T{index}" for index in range(150, 301)], steps)
    models = {model.name: model for model in models_of(config)}
    begun = time.process_time()
    drawing = Drawing(config, lambda name, _: ComposingModel(models[name], (1,)))
    assert len(drawing.connections) == 451
    assert render_graph(config, nobody, GraphFormat.SVG)
    assert time.process_time() - begun < 5
