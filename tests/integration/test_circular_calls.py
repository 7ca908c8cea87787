"""Models that call themselves: an answer where an instance is free, an error where none ever will be, never a hang."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cantata import InferenceError, Server
from tests.support.model_files import python_config, tensor_text, write_model

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")

# Counts its input down to zero, one call of TARGET for each step.
COUNT_DOWN = """
{keyword}def execute(self, requests):
    responses = []
    for request in requests:
        value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        if value[0] > 0:
            call = pb_utils.InferenceRequest(
                model_name="{target}", requested_output_names=["OUTPUT"], inputs=[pb_utils.Tensor("INPUT", value - 1)]
            )
            answer = {call}
            if answer.has_error():
                raise pb_utils.TritonModelException(answer.error().message())
            value = pb_utils.get_output_tensor_by_name(answer, "OUTPUT").as_numpy() + 1
        responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", value)]))
    return responses
"""


def write_caller(repository: Path, name: str, target: str, *, is_async: bool = False, count: int = 1) -> None:
    code = COUNT_DOWN.format(
        target=target,
        keyword="async " if is_async else "",
        call="await call.async_exec()" if is_async else "call.exec()",
    )
    groups = f"instance_group {{ count: {count} kind: KIND_CPU }} "
    groups += 'parameters { key: "EXECUTION_ISOLATION" value: { string_value: "thread" } }'
    write_model(repository, name, python_config([IN], [OUT], extra=groups), code)


def count_down(server: Server, name: str, start: int) -> float:
    return float(server.infer(name, {"INPUT": np.array([start], np.float32)})["OUTPUT"][0])


def test_a_model_without_a_free_instance_is_refused_its_own_call(tmp_path: Path) -> None:
    write_caller(tmp_path, "self", "self")
    with Server(tmp_path) as server:
        assert count_down(server, "self", 0) == 0
        with pytest.raises(
            InferenceError, match="model 'self' is called by a request that keeps its own instances busy"
        ):
            count_down(server, "self", 1)
        assert count_down(server, "self", 0) == 0


def test_a_model_with_instances_left_calls_itself(tmp_path: Path) -> None:
    write_caller(tmp_path, "self", "self", count=3)
    with Server(tmp_path) as server:
        assert count_down(server, "self", 2) == 2
        with pytest.raises(InferenceError, match="none is left to answer"):
            count_down(server, "self", 3)


def test_a_circle_of_models_is_noticed(tmp_path: Path) -> None:
    write_caller(tmp_path, "a", "b")
    write_caller(tmp_path, "b", "a")
    with Server(tmp_path) as server:
        assert count_down(server, "a", 1) == 1
        with pytest.raises(
            InferenceError, match="model 'a' is called by a request that keeps its own instances busy"
        ):
            count_down(server, "a", 2)


def test_a_coroutine_may_call_itself_as_often_as_it_likes(tmp_path: Path) -> None:
    write_caller(tmp_path, "self", "self", is_async=True)
    with Server(tmp_path) as server:
        assert count_down(server, "self", 50) == 50
