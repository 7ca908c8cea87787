"""Tiny ONNX models, written as the bytes of a model.onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import NodeProto, TensorProto, ValueInfoProto, helper

FLOAT = TensorProto.FLOAT

# An element type, and the dims: None or a name for any size.
Dims = Sequence[int | str | None]


def onnx_model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[int, Dims]] | Sequence[ValueInfoProto],
    outputs: Mapping[str, tuple[int, Dims]] | Sequence[ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
) -> bytes:
    """A model of these nodes."""
    graph = helper.make_graph(
        list(nodes), "graph", _values(inputs), _values(outputs), initializer=list(initializers)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


def identity_model(element_type: int = FLOAT, dims: Dims = (None, 4)) -> bytes:
    """OUT is IN."""
    node = helper.make_node("Identity", ["IN"], ["OUT"])
    return onnx_model([node], {"IN": (element_type, dims)}, {"OUT": (element_type, dims)})


def add_sub_model(dims: Dims = (None, 4)) -> bytes:
    """SUM is A + B, DIFFERENCE is A - B, in FP32."""
    nodes = [
        helper.make_node("Add", ["A", "B"], ["SUM"]),
        helper.make_node("Sub", ["A", "B"], ["DIFFERENCE"]),
    ]
    return onnx_model(
        nodes, {"A": (FLOAT, dims), "B": (FLOAT, dims)}, {"SUM": (FLOAT, dims), "DIFFERENCE": (FLOAT, dims)}
    )


def write_model(directory: Path, content: bytes, filename: str = "model.onnx", version: int = 1) -> Path:
    """Put a model's file into `directory`/`version`, and return the version directory."""
    version_directory = directory / str(version)
    version_directory.mkdir(parents=True, exist_ok=True)
    (version_directory / filename).write_bytes(content)
    return version_directory


def _values(
    tensors: Mapping[str, tuple[int, Dims]] | Sequence[ValueInfoProto],
) -> list[ValueInfoProto]:
    if not isinstance(tensors, Mapping):
        return list(tensors)
    return [
        helper.make_tensor_value_info(name, element_type, list(dims))
        for name, (element_type, dims) in tensors.items()
    ]
