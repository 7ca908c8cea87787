"""Ensembles through the embedded server, on real Python models: what a user's pipeline does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cantata import InferenceError, Server
from cantata.runtime.errors import StatusCode
from tests.support.model_files import (
    SPLIT,
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_add,
    write_identity,
    write_model,
)

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")


def floats(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def executions(server: Server, name: str) -> int:
    return server.core.statistics(name)[0].execution_count


def test_a_chain_carries_its_tensors_through(tmp_path: Path) -> None:
    one, two = write_add(tmp_path, 1), write_add(tmp_path, 2)
    steps = [
        step_text(one, {"INPUT": "INPUT"}, {"OUTPUT": "middle"}),
        step_text(two, {"INPUT": "middle"}, {"OUTPUT": "OUTPUT"}),
    ]
    write_model(tmp_path, "chain", ensemble_config([IN], [OUT], steps))
    with Server(tmp_path) as server:
        outputs = server.infer("chain", {"INPUT": floats(1, 2)})
    assert {name: list(array) for name, array in outputs.items()} == {"OUTPUT": [4.0, 5.0]}


def test_only_what_is_requested_runs(tmp_path: Path) -> None:
    one, two = write_add(tmp_path, 1), write_add(tmp_path, 2)
    steps = [
        step_text(one, {"INPUT": "INPUT"}, {"OUTPUT": "ONE"}),
        step_text(two, {"INPUT": "INPUT"}, {"OUTPUT": "TWO"}),
    ]
    write_model(tmp_path, "heads", ensemble_config([IN], [tensor_text("ONE"), tensor_text("TWO")], steps))
    with Server(tmp_path) as server:
        outputs = server.infer("heads", {"INPUT": floats(1)}, outputs=("TWO",))
        assert (list(outputs), executions(server, one), executions(server, two)) == (["TWO"], 0, 1)


def test_an_ensemble_within_an_ensemble_says_at_each_level_where_it_failed(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "broken",
        python_config([IN], [OUT]),
        """
        def execute(self, requests):
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError("no ink", pb_utils.TritonError.UNAVAILABLE))]
        """,
    )
    write_model(
        tmp_path,
        "inner",
        ensemble_config([IN], [OUT], [step_text("broken", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]),
    )
    write_model(
        tmp_path,
        "outer",
        ensemble_config([IN], [OUT], [step_text("inner", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]),
    )
    with Server(tmp_path) as server, pytest.raises(InferenceError) as failed:
        server.infer("outer", {"INPUT": floats(1)})
    assert failed.value.code is StatusCode.UNAVAILABLE
    assert failed.value.message == (
        "in ensemble 'outer', step 0 ('inner'): in ensemble 'inner', step 0 ('broken'): no ink"
    )


def test_a_batch_dimension_is_added_and_taken_away_between_steps(tmp_path: Path) -> None:
    batching, plain = write_add(tmp_path, 1, max_batch_size=4), write_add(tmp_path, 2)
    steps = [
        step_text(plain, {"INPUT": "INPUT"}, {"OUTPUT": "a"}),
        step_text(batching, {"INPUT": "a"}, {"OUTPUT": "b"}),
        step_text(plain, {"INPUT": "b"}, {"OUTPUT": "OUTPUT"}),
    ]
    write_model(tmp_path, "mixed", ensemble_config([IN], [OUT], steps))
    with Server(tmp_path) as server:
        outputs = server.infer("mixed", {"INPUT": floats(1, 2)})
    assert outputs["OUTPUT"].tolist() == [6.0, 7.0]


def test_an_optional_input_that_is_missing_is_left_out_of_its_step(tmp_path: Path) -> None:
    optional = tensor_text("BIAS", extra="optional: true")
    write_model(
        tmp_path,
        "bias",
        python_config([IN, optional], [OUT]),
        """
        def execute(self, requests):
            responses = []
            for request in requests:
                value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
                bias = pb_utils.get_input_tensor_by_name(request, "BIAS")
                total = value if bias is None else value + bias.as_numpy()
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", total)]))
            return responses
        """,
    )
    step = step_text("bias", {"INPUT": "INPUT", "BIAS": "BIAS"}, {"OUTPUT": "OUTPUT"})
    write_model(tmp_path, "maybe", ensemble_config([IN, optional], [OUT], [step]))
    with Server(tmp_path) as server:
        without = server.infer("maybe", {"INPUT": floats(1)})
        biased = server.infer("maybe", {"INPUT": floats(1), "BIAS": floats(5)})
    assert (without["OUTPUT"].tolist(), biased["OUTPUT"].tolist()) == ([1.0], [6.0])


def test_a_decoupled_step_makes_the_ensemble_stream_in_order(tmp_path: Path) -> None:
    one = write_add(tmp_path, 1)
    write_model(tmp_path, "split", python_config([IN], [OUT], decoupled=True), SPLIT)
    steps = [
        step_text("split", {"INPUT": "INPUT"}, {"OUTPUT": "each"}),
        step_text(one, {"INPUT": "each"}, {"OUTPUT": "OUTPUT"}),
    ]
    write_model(tmp_path, "stream", ensemble_config([IN], [OUT], steps))
    with Server(tmp_path) as server:
        answers = [
            answer["OUTPUT"].tolist()
            for answer in server.stream("stream", {"INPUT": np.arange(50, dtype=np.float32)})
        ]
        assert server.core.model("stream").is_decoupled
        assert list(server.stream("stream", {"INPUT": floats()})) == []
    assert answers == [[value + 1.0] for value in range(50)]


def test_max_inflight_requests_bounds_a_step_and_loses_nothing(tmp_path: Path) -> None:
    one = write_add(tmp_path, 1)
    write_model(tmp_path, "split", python_config([IN], [OUT], decoupled=True), SPLIT)
    steps = [
        step_text("split", {"INPUT": "INPUT"}, {"OUTPUT": "each"}),
        step_text(one, {"INPUT": "each"}, {"OUTPUT": "OUTPUT"}),
    ]
    write_model(tmp_path, "stream", ensemble_config([IN], [OUT], steps, extra="max_inflight_requests: 2"))
    with Server(tmp_path) as server:
        answers = [
            answer["OUTPUT"].tolist()
            for answer in server.stream("stream", {"INPUT": np.arange(200, dtype=np.float32)})
        ]
    assert answers == [[value + 1.0] for value in range(200)]


def test_a_step_that_is_refused_fails_the_request_with_its_place(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "three",
        python_config([tensor_text("INPUT", dims="3")], [OUT]),
        "def execute(self, requests):\n    return []",
    )
    write_identity(tmp_path)
    steps = [
        step_text("identity", {"INPUT": "INPUT"}, {"OUTPUT": "a"}),
        step_text("three", {"INPUT": "a"}, {"OUTPUT": "OUTPUT"}),
    ]
    write_model(tmp_path, "chain", ensemble_config([IN], [OUT], steps))
    with Server(tmp_path) as server, pytest.raises(InferenceError) as failed:
        server.infer("chain", {"INPUT": floats(1)})
    assert failed.value.code is StatusCode.INVALID_ARG
    assert failed.value.message == (
        "in ensemble 'chain', step 1 ('three'): [request id: <id_unknown>] unexpected shape for input 'INPUT' for "
        "model 'three'. Expected [3], got [1]."
    )


def test_an_output_that_a_step_never_sets_is_named(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "silent",
        python_config([IN], [OUT], decoupled=True),
        "def execute(self, requests):\n    for request in requests:\n"
        "        request.get_response_sender().send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)",
    )
    write_model(
        tmp_path,
        "quiet",
        ensemble_config([IN], [OUT], [step_text("silent", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]),
    )
    with Server(tmp_path) as server:
        assert list(server.stream("quiet", {"INPUT": floats(1)})) == []


def test_the_figures_of_an_ensemble_are_the_sums_over_its_steps(tmp_path: Path) -> None:
    one, two = write_add(tmp_path, 1), write_add(tmp_path, 2)
    steps = [
        step_text(one, {"INPUT": "INPUT"}, {"OUTPUT": "a"}),
        step_text(two, {"INPUT": "a"}, {"OUTPUT": "OUTPUT"}),
    ]
    write_model(tmp_path, "chain", ensemble_config([IN], [OUT], steps))
    with Server(tmp_path) as server:
        for _ in range(3):
            server.infer("chain", {"INPUT": floats(1)})
        figures = {name: server.core.statistics(name)[0] for name in ("chain", one, two)}
    assert [
        (f.inference_count, f.execution_count, f.inference_stats.success.count) for f in figures.values()
    ] == [(3, 3, 3)] * 3
    parts = [figures[name].inference_stats.compute_infer.ns for name in (one, two)]
    assert figures["chain"].inference_stats.compute_infer.ns == sum(parts)


def test_parameters_and_sequence_reach_every_step(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "tell",
        python_config([IN], [OUT, tensor_text("SEEN", "STRING")]),
        """
        def execute(self, requests):
            return [
                pb_utils.InferenceResponse([
                    pb_utils.Tensor("OUTPUT", pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()),
                    pb_utils.Tensor("SEEN", np.array([request.parameters() + request.request_id()], dtype=object)),
                ])
                for request in requests
            ]
        """,
    )
    steps = [
        step_text("tell", {"INPUT": "INPUT"}, {"OUTPUT": "a", "SEEN": "FIRST"}),
        step_text("tell", {"INPUT": "a"}, {"SEEN": "SECOND"}),
    ]
    outputs = [tensor_text("FIRST", "STRING"), tensor_text("SECOND", "STRING")]
    write_model(tmp_path, "telling", ensemble_config([IN], outputs, steps))
    with Server(tmp_path) as server:
        seen = server.infer("telling", {"INPUT": floats(1)}, parameters={"colour": "red"}, id="r7")
    first, second = seen["FIRST"][0].decode(), seen["SECOND"][0].decode()
    assert first == second
    assert '"colour"' in first
    assert first.endswith("r7")


def test_a_failed_composing_model_fails_its_ensemble_and_nothing_else(tmp_path: Path) -> None:
    write_identity(tmp_path)
    write_model(tmp_path, "broken", python_config([IN], [OUT]), code="import nowhere_to_be_found\n")
    write_model(
        tmp_path,
        "over",
        ensemble_config([IN], [OUT], [step_text("broken", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]),
    )
    with Server(tmp_path, exit_on_error=False) as server:
        assert server.infer("identity", {"INPUT": floats(1)})["OUTPUT"].tolist() == [1.0]
        reasons = {failure.name: failure.reason for failure in server.core.failures()}
        with pytest.raises(InferenceError, match="has no available versions"):
            server.infer("over", {"INPUT": floats(1)})
    assert "nowhere_to_be_found" in reasons["broken"]
    assert "ensemble 'over' depends on 'broken' which has no loaded version" in reasons["over"]


def test_ensembles_that_need_each_other_are_refused(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        "a",
        ensemble_config([IN], [OUT], [step_text("b", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]),
    )
    write_model(
        tmp_path,
        "b",
        ensemble_config([IN], [OUT], [step_text("a", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]),
    )
    with pytest.raises(InferenceError) as failed, Server(tmp_path):
        pass
    assert "circular dependency between ensembles: a -> ... -> b -> a" in failed.value.message
