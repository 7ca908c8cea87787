"""The classification extension: an output as its best classes, `<value>:<index>[:<label>]` (reference, section 3).

Shared by both front-ends. Knows no wire.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Final

import numpy as np

from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import invalid_argument
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.tensor import Tensor

MAX_ELEMENTS: Final = 1_000_000
_UNSUPPORTED: Final = frozenset({DataType.BOOL, DataType.FP16, DataType.BF16, DataType.BYTES})
_FLOATS: Final = frozenset({DataType.FP32, DataType.FP64})


def classified(tensor: Tensor, class_count: int, model: ModelVersion, output_name: str) -> Tensor:
    """The `class_count` largest elements of each batch item (or of the whole, where the model does not batch).

    Equal values keep the order of their indices. Raises InferenceError for datatypes without an order.
    """
    if tensor.datatype in _UNSUPPORTED:
        raise invalid_argument(
            f"class result not available for output due to unsupported type '{tensor.datatype.name}'"
        )
    if tensor.array.size > MAX_ELEMENTS:
        raise invalid_argument("classification output tensor too large")
    batch = tensor.shape[:1] if model.spec.batches else ()
    items = tensor.array.reshape(prod(batch), -1) if tensor.array.size else np.empty((prod(batch), 0))
    labels = labels_of(model, output_name)
    kept = min(class_count, items.shape[1])
    classes = np.empty((len(items), kept), dtype=object)
    for row, values in enumerate(items):
        best = np.argsort(values[::-1], kind="stable")[::-1][:kept]
        best = len(values) - 1 - best
        classes[row] = [_class_text(values[index], int(index), tensor.datatype, labels) for index in best]
    return Tensor(DataType.BYTES, classes.reshape((*batch, kept)))


def _class_text(value: np.generic, index: int, datatype: DataType, labels: tuple[str, ...]) -> bytes:
    number = f"{value:.6f}" if datatype in _FLOATS else str(value)
    label = f":{labels[index]}" if index < len(labels) and labels[index] else ""
    return f"{number}:{index}{label}".encode()


def labels_of(model: ModelVersion, output_name: str) -> tuple[str, ...]:
    """The lines of an output's label file; empty where it has none, or where it cannot be read.

    An ensemble's output without a file has the labels of the step's output that it comes from.
    """
    for output in model.config.output:
        if output.name == output_name and output.label_filename:
            directory = model.directory.resolve()
            path = (directory / output.label_filename).resolve()
            if path.is_relative_to(directory) and path.is_file():
                return _lines_of(path, path.stat().st_mtime_ns)
            return ()
    ensemble = model.config.ensemble_scheduling
    if ensemble is not None:
        for step, step_model in zip(ensemble.step, model.depends_on, strict=True):
            for step_output, tensor in step.output_map.items():
                if tensor == output_name:
                    return labels_of(step_model, step_output)
    return ()


@lru_cache(maxsize=64)
def _lines_of(path: Path, modified_ns: int) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines())
