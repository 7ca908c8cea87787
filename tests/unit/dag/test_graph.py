"""The graph of an ensemble: what leads where, and where it stands in the text."""

from __future__ import annotations

from cantata.dag.graph import EnsembleGraph, StepNode, TensorNode, cycle_through
from cantata.grammars.problems import Position, Positions
from cantata.grammars.reading import read_model_config
from tests.support.ensembles import ensemble, step

TEXT = """\
name: "pipeline"
platform: "ensemble"
input { name: "A" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "C" data_type: TYPE_FP32 dims: [ 4 ] }
ensemble_scheduling {
  step {
    model_name: "second"
    input_map { key: "X" value: "B" }
    input_map { key: "Y" value: "B" }
    output_map { key: "OUT" value: "C" }
  }
  step {
    model_name: "first"
    input_map { key: "IN" value: "A" }
    output_map { key: "OUT" value: "B" }
  }
}
"""


def graph_of_text() -> EnsembleGraph:
    parsed = read_model_config(TEXT, "config.pbtxt")
    assert parsed.config is not None
    return EnsembleGraph(parsed.config, parsed.positions)


def test_every_node_knows_where_it_is_first_named() -> None:
    graph = graph_of_text()
    lines = {node: graph.position(node).line for node in graph.graph.nodes}
    assert lines == {
        TensorNode("A"): 3,
        TensorNode("C"): 4,
        StepNode(0): 6,
        TensorNode("B"): 8,
        StepNode(1): 12,
    }


def test_an_edge_holds_every_map_entry_behind_it() -> None:
    entries = graph_of_text().entries(TensorNode("B"), StepNode(0))
    assert [(entry.name, entry.tensor, entry.position) for entry in entries] == [
        ("X", "B", Position(8, 5)),
        ("Y", "B", Position(9, 5)),
    ]


def test_steps_come_in_the_order_of_their_tensors() -> None:
    assert graph_of_text().steps_in_order() == [1, 0]


def test_independent_steps_keep_the_order_of_the_configuration() -> None:
    steps = [step("m", {"I": "A"}, {"O": f"T{index}"}) for index in range(5)]
    assert EnsembleGraph(ensemble(["A"], ["T0"], steps), Positions()).steps_in_order() == [0, 1, 2, 3, 4]


def test_steps_that_can_never_run_are_not_among_them() -> None:
    config = ensemble(["A"], ["B"], [step("m", {"I": "LOST"}, {"O": "C"}), step("n", {"I": "A"}, {"O": "B"})])
    graph = EnsembleGraph(config, Positions())
    assert graph.steps_in_order() == [1]
    assert graph.ready_tensors() == {"A", "B"}


def test_the_shortest_way_back_is_found() -> None:
    dependencies = {"a": ["b", "c"], "b": ["c"], "c": ["a"], "d": ["a"]}
    assert cycle_through("a", dependencies) == ["a", "c", "a"]
    assert cycle_through("d", dependencies) == []
    assert cycle_through("unknown", dependencies) == []
