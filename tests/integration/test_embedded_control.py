"""What `cantata serve` has by flags and endpoints, in the embedded server: control of models, limits, figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cantata import Server
from cantata.runtime.errors import InferenceError, StatusCode
from tests.integration.test_model_control import constant, write_constant, write_over
from tests.support.model_files import python_config, tensor_text, write_identity, write_model

INPUT = {"INPUT": np.zeros(1, np.float32)}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_constant(tmp_path, 1)
    write_over(tmp_path)
    return tmp_path


def value(server: Server, model: str = "constant") -> float:
    return float(server.infer(model, INPUT)["OUTPUT"][0])


def test_models_are_loaded_and_unloaded_by_name(repository: Path) -> None:
    with Server(repository, model_control_mode="explicit", load_model=["over"]) as server:
        assert (value(server, "over"), server.is_ready(), server.is_ready("constant")) == (1.0, True, True)
        write_constant(repository, 22)
        server.load_model("over")
        assert value(server, "over") == 22.0
        server.unload_model("over", unload_dependents=True)
        assert server.repository_index(ready_only=True) == []
        with pytest.raises(InferenceError, match="not found in global map"):
            value(server)


@pytest.mark.parametrize("prefix", ["", "file:"])
def test_a_load_may_bring_its_configuration_and_files(repository: Path, prefix: str) -> None:
    config = {
        "backend": "python",
        "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [1]}],
    }
    code = write_model(repository.parent / "aside", "m", "", constant(7)) / "1" / "model.py"
    with Server(repository, model_control_mode="explicit") as server:
        files = {f"{prefix}1/model.py": code.read_bytes()}
        server.load_model("given", config=json.dumps(config), files=files)
        assert value(server, "given") == 7.0
        server.load_model("constant", config=json.dumps(config | {"max_batch_size": 0}))
        assert value(server) == 1.0


def test_figures_are_told(repository: Path) -> None:
    with Server(repository) as server:
        value(server)
        (figures,) = server.statistics("constant")
        assert figures.inference_stats.success.count == 1
        assert {entry.name: entry.state for entry in server.repository_index()} == {
            "constant": "READY",
            "over": "READY",
        }


def test_requests_are_limited_in_bytes(tmp_path: Path) -> None:
    write_identity(tmp_path)
    with Server(tmp_path, max_queue_bytes=1_000) as server:
        assert server.infer("identity", {"INPUT": np.ones(250, np.float32)})["OUTPUT"].shape == (250,)
        with pytest.raises(
            InferenceError, match="Exceeds maximum queue bytes: the request takes 1004"
        ) as shed:
            server.infer("identity", {"INPUT": np.ones(251, np.float32)})
        assert (shed.value.code, shed.value.retry_after_s) == (StatusCode.UNAVAILABLE, 1)
        assert server.core.admission.server is not None
        assert server.core.admission.server.figures.held == 0


def test_instances_are_limited_by_resources(tmp_path: Path) -> None:
    group = "instance_group [ { kind: KIND_CPU rate_limiter { resources [ { name: 'R' count: 5 } ] } } ]"
    write_identity(tmp_path, extra=group)
    with Server(tmp_path, rate_limit="execution_count", rate_limit_resource=["R:5:0"]) as server:
        assert server.infer("identity", INPUT)["OUTPUT"].tolist() == [0.0]
    with (
        pytest.raises(InferenceError, match='Resource count for "R" is limited to 4'),
        Server(tmp_path, rate_limit="execution_count", rate_limit_resource=["R:4"]),
    ):
        pass


def test_repositories_may_be_namespaces(tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second")):
        write_constant(tmp_path / name, number, "same")
    with Server([tmp_path / "first", tmp_path / "second"], model_namespacing=True) as server:
        assert value(server, f"{tmp_path}/second/same") == 1.0


def test_priority_and_timeout_are_for_the_queue(tmp_path: Path) -> None:
    seeing = """
    def execute(self, requests):
        seen = [np.array([float(request.priority()), request.timeout()], np.float32) for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array)]) for array in seen]
    """
    batching = "dynamic_batching { priority_levels: 3 default_priority_level: 2 }"
    config = python_config(
        [tensor_text("INPUT", dims="1")], [tensor_text("OUTPUT", dims="2")], max_batch_size=4, extra=batching
    )
    write_model(tmp_path, "seeing", config, seeing)
    with Server(tmp_path) as server:
        array = {"INPUT": np.zeros((1, 1), np.float32)}
        assert server.infer("seeing", array, priority=3, timeout_us=5_000_000)["OUTPUT"].tolist() == [
            3.0,
            5_000_000.0,
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_model": ["a"]}, "requires setting '--model-control-mode=explicit'"),
        ({"load_model": ["a", "*"], "model_control_mode": "explicit"}, "must be the ONLY startup model"),
        ({"model_control_mode": "sometimes"}, "'sometimes' is not a valid ModelControlMode"),
        ({"rate_limit": "on"}, "'on' is not a valid RateLimitMode"),
        ({"rate_limit_resource": ["R"]}, "option format is '<resource_name>:<count>:<device>'"),
        ({"max_queue_bytes": -1}, "max_queue_bytes: expected 0 or more, got -1"),
        ({"model_load_thread_count": 0}, "model_load_thread_count: expected 1 or more, got 0"),
        ({"repository_poll_secs": 0}, "repository_poll_secs: expected 0.001 or more, got 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Server(tmp_path, **options)  # type: ignore[arg-type]
