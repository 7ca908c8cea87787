"""The classification extension: which classes, in which order, written how."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from cantata.runtime.datatypes import NUMPY_DTYPES, DataType
from cantata.runtime.errors import InferenceError
from cantata.runtime.frontends.classification import classified
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.tensor import Tensor
from tests.support.fake_server import FakeModel, identity, model_config


def model(
    datatype: DataType, *, max_batch_size: int = 0, directory: Path = Path("/nonexistent"), labels: str = ""
) -> ModelVersion:
    config = model_config(
        "m",
        {"IN": (datatype, (-1,))},
        {"OUT": (datatype, (-1,))},
        max_batch_size=max_batch_size,
        labels={"OUT": labels} if labels else None,
    )
    return cast(ModelVersion, FakeModel(config, identity, directory=directory))


def classes(datatype: DataType, values: object, count: int, owner: ModelVersion) -> list[object]:
    array = np.array(values, dtype=NUMPY_DTYPES[datatype])
    result = classified(Tensor(datatype, array), count, owner, "OUT")
    assert result.datatype is DataType.BYTES
    return cast("list[object]", result.array.tolist())


def test_the_largest_values_come_first_with_their_index() -> None:
    assert classes(DataType.FP32, [0.5, 2, 1], 2, model(DataType.FP32)) == [b"2.000000:1", b"1.000000:2"]


def test_equal_values_keep_the_order_of_their_indices() -> None:
    assert classes(DataType.INT32, [1, 3, 3, 1], 4, model(DataType.INT32)) == [b"3:1", b"3:2", b"1:0", b"1:3"]


def test_integers_are_exact() -> None:
    largest = 2**64 - 1
    assert classes(DataType.UINT64, [1, largest], 5, model(DataType.UINT64)) == [b"%d:1" % largest, b"1:0"]


def test_each_item_of_a_batch_has_classes_of_its_own() -> None:
    owner = model(DataType.INT8, max_batch_size=4)
    assert classes(DataType.INT8, [[1, 2], [4, 3]], 1, owner) == [[b"2:1"], [b"4:0"]]


def test_a_model_without_batches_is_ranked_as_a_whole() -> None:
    assert classes(DataType.INT8, [[1, 2], [4, 3]], 3, model(DataType.INT8)) == [b"4:2", b"3:3", b"2:1"]


def test_an_empty_output_has_no_classes() -> None:
    assert classes(DataType.FP32, [], 3, model(DataType.FP32)) == []
    array = np.zeros((2, 0), dtype=np.float32)
    result = classified(Tensor(DataType.FP32, array), 3, model(DataType.FP32, max_batch_size=2), "OUT")
    assert result.shape == (2, 0)


def test_labels_are_the_lines_of_the_outputs_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    owner = model(DataType.INT32, directory=tmp_path, labels="labels.txt")
    assert classes(DataType.INT32, [1, 3, 2], 3, owner) == [b"3:1:dog", b"2:2", b"1:0:cat"]


def test_a_label_file_outside_the_models_directory_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("secret\n")
    (tmp_path / "model").mkdir()
    owner = model(DataType.INT32, directory=tmp_path / "model", labels="../labels.txt")
    assert classes(DataType.INT32, [1], 1, owner) == [b"1:0"]


@pytest.mark.parametrize("datatype", [DataType.BOOL, DataType.FP16, DataType.BF16, DataType.BYTES])
def test_datatypes_without_classes_are_refused(datatype: DataType) -> None:
    array = np.zeros(1, dtype=NUMPY_DTYPES[datatype])
    with pytest.raises(InferenceError, match=f"due to unsupported type '{datatype.name}'"):
        classified(Tensor(datatype, array), 1, model(datatype), "OUT")


def test_a_very_large_output_is_refused() -> None:
    tensor = Tensor(DataType.INT8, np.zeros(1_000_001, dtype=np.int8))
    with pytest.raises(InferenceError, match="classification output tensor too large"):
        classified(tensor, 1, model(DataType.INT8), "OUT")
