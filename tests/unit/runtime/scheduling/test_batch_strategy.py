"""A model's own rule for its batches: where it is found, what it is asked, and what becomes of its mistakes."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from cantata.grammars.model_config import ModelConfig, ModelParameter
from cantata.runtime.errors import InferenceError
from cantata.runtime.scheduling.batch_strategy import load_batch_strategy
from cantata.runtime.scheduling.dynamic_batcher import DynamicBatcher
from tests.support.requests import identity_config, identity_spec, make_request

# No more than the parameter `budget` of elements in a batch.
BUDGET = """
    def batcher_initialize(config):
        return int(config["parameters"]["budget"]["string_value"])

    def batch_initialize(budget):
        return {"left": budget}

    def batch_include_request(batch, request):
        batch["left"] -= sum(tensor.array.size for tensor in request.inputs.values())
        return batch["left"] >= 0
"""


def config_of(**parameters: str) -> ModelConfig:
    given = {name: ModelParameter(string_value=value) for name, value in parameters.items()}
    return identity_config("volume", max_batch_size=8).model_copy(update={"parameters": given})


def batcher_with(
    directory: Path, code: str, filename: str = "batchstrategy.py", **parameters: str
) -> DynamicBatcher:
    (directory / filename).write_text(dedent(code))
    strategy = load_batch_strategy(config_of(**parameters), directory, directory / "1")
    assert strategy is not None
    return DynamicBatcher(identity_spec(max_batch_size=8), (), 0, strategy=strategy)


def test_without_a_strategy_there_is_none(tmp_path: Path) -> None:
    assert load_batch_strategy(config_of(), tmp_path, tmp_path / "1") is None


@pytest.mark.parametrize(
    ("filename", "parameters"),
    [("batchstrategy.py", {}), ("mine.py", {"TRITON_BATCH_STRATEGY_PATH": "mine.py"})],
)
def test_the_strategy_s_refusal_ends_a_batch(
    tmp_path: Path, filename: str, parameters: dict[str, str]
) -> None:
    batcher = batcher_with(tmp_path, BUDGET, filename, budget="5", **parameters)
    requests = [make_request(1, 2) for _ in range(5)]
    for request in requests:
        batcher.add(request, 0)
    batcher.check_invariants()
    assert [batcher.take(0).requests for _ in range(3)] == [requests[:2], requests[2:4], requests[4:]]


def test_the_first_request_of_a_batch_is_in_it_whatever_the_strategy_says(tmp_path: Path) -> None:
    batcher = batcher_with(tmp_path, BUDGET, budget="1")
    request = make_request(1, 2)
    batcher.add(request, 0)
    assert batcher.take(0).requests == [request]


def test_a_strategy_that_fails_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batcher = batcher_with(tmp_path, "def batch_include_request(batch, request): return 1 / 0")
    requests = [make_request(1, 2), make_request(1, 2)]
    for request in requests:
        batcher.add(request, 0)
    assert [batcher.take(0).requests for _ in range(2)] == [[request] for request in requests]
    assert "ZeroDivisionError" in caplog.text


BROKEN = [
    ("", {}, "must define batch_include_request"),
    ("import nothing_like_this", {}, "ModuleNotFoundError"),
    ("", {"TRITON_BATCH_STRATEGY_PATH": "lost.py"}, "lost.py' does not exist"),
    ("", {"TRITON_BATCH_STRATEGY_PATH": "strategy.so"}, "must name a Python file, got 'strategy.so'"),
]


@pytest.mark.parametrize(("code", "parameters", "message"), BROKEN)
def test_a_strategy_that_cannot_be_loaded_fails_the_model(
    tmp_path: Path, code: str, parameters: dict[str, str], message: str
) -> None:
    (tmp_path / "batchstrategy.py").write_text(code)
    with pytest.raises(InferenceError, match=message):
        load_batch_strategy(config_of(**parameters), tmp_path, tmp_path / "1")
