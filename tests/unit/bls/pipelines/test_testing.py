"""`cantata.bls.testing`: pipelines run without a server, checked as a server checks them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cantata import bls
from cantata.bls import testing


@bls.model(inputs={"X": bls.FP32[2], "BY": bls.FP32[1]}, outputs={"Y": bls.FP32[2]})
def scale(X: np.ndarray, BY: Any = 2.0) -> dict[str, Any]:
    return {"Y": X * BY}


class Counter(bls.Model):
    inputs = {"N": bls.INT32[1]}  # noqa: RUF012
    outputs = {"I": bls.INT32[1]}  # noqa: RUF012
    finalized = 0

    def initialize(self, instance: bls.InstanceInfo) -> None:
        self.start = int(instance.parameters.get("start", 0))

    async def execute(self, N: np.ndarray) -> AsyncIterator[dict[str, Any]]:
        for index in range(int(N[0])):
            yield {"I": self.start + index}

    def finalize(self) -> None:
        type(self).finalized += 1


async def collected(answers: AsyncIterator[bls.Tensors]) -> list[list[Any]]:
    return [answer.only.tolist() async for answer in answers]


def test_a_model_is_run_with_lists_or_arrays() -> None:
    assert asyncio.run(testing.run(scale, X=[1, 2])).Y.tolist() == [2.0, 4.0]
    given = {"X": np.array([1, 2], np.float32), "BY": [3]}
    assert asyncio.run(testing.run(scale, given)).Y.tolist() == [3.0, 6.0]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"X": [1]}, "input 'X' of the model scale: expected the shape [2], got [1]"),
        ({"x": [1, 2]}, "the model scale has no input 'x' (did you mean 'X'?)"),
        ({}, "the model scale is not given its inputs ['X']"),
    ],
)
def test_wrong_inputs_are_refused(inputs: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        asyncio.run(testing.run(scale, inputs))


WRONG_ANSWERS: list[tuple[Any, str]] = [
    (None, "model 'wrong': a dictionary of the outputs is expected, not NoneType"),
    ({"Z": [1]}, "model 'wrong': there is no output 'Z'"),
    ({"Y": [1]}, "model 'wrong': output 'Y': expected the shape [2], got [1]"),
]


@pytest.mark.parametrize(("answer", "text"), WRONG_ANSWERS)
def test_an_answer_that_was_not_declared_is_an_error(answer: Any, text: str) -> None:
    @bls.model(inputs={"X": bls.FP32[2]}, outputs={"Y": bls.FP32[2]})
    def wrong(X: np.ndarray) -> Any:
        return answer

    with pytest.raises(bls.Error) as raised:
        asyncio.run(testing.run(wrong, X=[1, 2]))
    assert (raised.value.code, raised.value.text) == (bls.Code.INTERNAL, text)


def test_the_models_own_exceptions_come_out_as_they_are() -> None:
    @bls.model(inputs={"X": bls.FP32[1]}, outputs={"Y": bls.FP32[1]})
    async def broken(X: np.ndarray) -> Any:
        return {"Y": 1 // len([])}

    with pytest.raises(ZeroDivisionError):
        asyncio.run(testing.run(broken, X=[1]))


def test_a_stream_is_read_answer_by_answer() -> None:
    finalized = Counter.finalized
    assert asyncio.run(collected(testing.stream(Counter, N=[3]))) == [[0], [1], [2]]
    assert Counter.finalized == finalized + 1


def test_an_object_is_initialized_by_the_test() -> None:
    counter = Counter()
    counter.initialize(testing.instance_info(parameters={"start": "5"}))
    assert asyncio.run(collected(testing.stream(counter, N=[2]))) == [[5], [6]]


def test_plain_generators_are_streams_too() -> None:
    @bls.model(inputs={"X": bls.FP32[-1]}, outputs={"Y": bls.FP32[1]})
    def each(X: np.ndarray) -> Iterator[dict[str, Any]]:
        for value in X:
            yield {"Y": value}

    assert asyncio.run(collected(testing.stream(each, X=[1, 2]))) == [[1.0], [2.0]]


def test_a_stream_is_not_run_as_if_it_answered_once() -> None:
    with pytest.raises(
        TypeError, match=re.escape("the model Counter yields its answers: use testing.stream")
    ):
        asyncio.run(testing.run(Counter, N=[1]))


def test_a_model_py_is_loaded_with_the_modules_beside_it(tmp_path: Path) -> None:
    directory = tmp_path / "twice" / "1"
    directory.mkdir(parents=True)
    (directory / "factors.py").write_text("TWO = 2\n")
    (directory / "model.py").write_text(
        "from cantata import bls\nimport factors\n\n"
        "@bls.model(inputs={'X': bls.FP32[1]}, outputs={'Y': bls.FP32[1]})\n"
        "def twice(X):\n    return {'Y': X * factors.TWO}\n"
    )
    assert asyncio.run(testing.run(testing.load(directory / "model.py"), X=[4])).Y.tolist() == [8.0]


def test_a_stack_of_rows_has_a_leading_dimension() -> None:
    @bls.model(inputs={"X": bls.FP32[2]}, outputs={"Y": bls.FP32[1]}, max_batch_size=4)
    def total(X: np.ndarray) -> dict[str, Any]:
        return {"Y": X.sum(axis=1, keepdims=True)}

    assert asyncio.run(testing.run(total, X=[[1, 2], [3, 4]])).Y.tolist() == [[3.0], [7.0]]
