"""Queue policies, ragged batches, batching strategies and limits, as clients meet them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from cantata.runtime.execution.rate_limiter import RateLimitMode, ResourceCount
from tests.support import onnx_models
from tests.support.model_files import (
    IDENTITY,
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_model,
)
from tests.support.wire_servers import Ports, wire_server

IN, OUT = tensor_text("INPUT", dims="1"), tensor_text("OUTPUT", dims="1")

# Answers with the number of the execution; an input of 0 is held until the file `gate` exists.
GATED = """
def initialize(self, args):
    self.gate = json.loads(args["model_config"])["parameters"]["gate"]["string_value"]
    self.count = 0

def execute(self, requests):
    import os, time
    responses = []
    for request in requests:
        value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        while value[0, 0] == 0 and not os.path.exists(self.gate):
            time.sleep(0.002)
        self.count += 1
        output = np.full((len(value), 1), self.count, np.float32)
        responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", output)]))
    return responses
"""


@contextmanager
def gated_server(directory: Path, batching: str) -> Iterator[tuple[Ports, Path]]:
    """A server of one model that runs one request at a time, and what opens its gate."""
    gate = directory / "gate"
    extra = (
        f'parameters {{ key: "gate" value {{ string_value: "{gate}" }} }} dynamic_batching {{ {batching} }}'
    )
    write_model(
        directory / "models", "gated", python_config([IN], [OUT], max_batch_size=1, extra=extra), GATED
    )
    step = step_text("gated", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    write_model(directory / "models", "pipeline", ensemble_config([IN], [OUT], [step], max_batch_size=1))
    with wire_server(directory / "models") as ports:
        try:
            yield ports, gate
        finally:
            gate.touch()


Infer = Callable[..., float]


@contextmanager
def http_infer(ports: Ports) -> Iterator[Infer]:
    def infer(value: float, model: str = "gated", **options: Any) -> float:
        # This client is for one thread.
        with http_client.InferenceServerClient(f"127.0.0.1:{ports.http}") as client:
            return _infer(http_client, client, model, value, options)

    yield infer


@contextmanager
def grpc_infer(ports: Ports) -> Iterator[Infer]:
    with grpc_client.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        yield lambda value, model="gated", **options: _infer(grpc_client, client, model, value, options)


def _infer(module: Any, client: Any, model: str, value: float, options: dict[str, Any]) -> float:
    tensor = module.InferInput("INPUT", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[value]], np.float32))
    result = client.infer(model, [tensor], **options).as_numpy("OUTPUT")
    return float(result[0, 0])


def wait_for_pending(ports: Ports, count: int) -> None:
    """Wait until that many requests are queued: clients are threads, and come when they come."""
    scheduler = ports.server.model("gated").scheduler
    deadline = time.monotonic() + 10
    while scheduler.pending() != count or scheduler.in_flight != count + 1:
        assert time.monotonic() < deadline, (scheduler.pending(), scheduler.in_flight)
        time.sleep(0.002)


BOTH = pytest.mark.parametrize("protocol", [http_infer, grpc_infer])


@BOTH
@pytest.mark.parametrize("model", ["gated", "pipeline"])
def test_urgent_requests_overtake_others(tmp_path: Path, protocol: Any, model: str) -> None:
    levels = "priority_levels: 3 default_priority_level: 2"
    with (
        gated_server(tmp_path, levels) as (ports, gate),
        protocol(ports) as infer,
        ThreadPoolExecutor(8) as pool,
    ):
        futures: list[Future[float]] = [pool.submit(infer, 0, model)]
        wait_for_pending(ports, 0)
        for waiting, priority in enumerate((3, 0, 1, 9), 1):
            futures.append(pool.submit(infer, 1, model, priority=priority))
            wait_for_pending(ports, waiting)
        gate.touch()
        assert [future.result(10) for future in futures] == [1, 5, 3, 2, 4]


@BOTH
def test_a_request_s_own_timeout_is_kept_while_the_model_is_busy(tmp_path: Path, protocol: Any) -> None:
    policy = "default_queue_policy { default_timeout_microseconds: 60000000 allow_timeout_override: true }"
    with (
        gated_server(tmp_path, policy) as (ports, gate),
        protocol(ports) as infer,
        ThreadPoolExecutor(8) as pool,
    ):
        running = pool.submit(infer, 0)
        wait_for_pending(ports, 0)
        with pytest.raises(InferenceServerException, match="Request timeout expired") as refused:
            infer(1, timeout=20_000)
        assert refused.value.status() in ("503", "StatusCode.UNAVAILABLE")
        gate.touch()
        assert running.result(10) == 1
        assert ports.server.model("gated").scheduler.failures()["REJECTED"] == 1


@BOTH
@pytest.mark.parametrize("model", ["gated", "pipeline"])
def test_a_full_queue_refuses_at_once(tmp_path: Path, protocol: Any, model: str) -> None:
    policy = "default_queue_policy { max_queue_size: 1 }"
    with (
        gated_server(tmp_path, policy) as (ports, gate),
        protocol(ports) as infer,
        ThreadPoolExecutor(8) as pool,
    ):
        running = pool.submit(infer, 0)
        wait_for_pending(ports, 0)
        queued = pool.submit(infer, 1)
        wait_for_pending(ports, 1)
        with pytest.raises(InferenceServerException, match="Exceeds maximum queue size"):
            infer(1, model)
        gate.touch()
        assert (running.result(10), queued.result(10)) == (1, 2)
        assert sum(ports.server.model("gated").scheduler.failures().values()) == 0


def test_a_client_that_leaves_makes_room_in_the_queue(tmp_path: Path) -> None:
    with (
        gated_server(tmp_path, "") as (ports, gate),
        ThreadPoolExecutor(8) as pool,
        http_infer(ports) as infer,
        grpc_client.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client,
    ):
        running = pool.submit(infer, 0)
        wait_for_pending(ports, 0)
        tensor = grpc_client.InferInput("INPUT", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[1]], np.float32))
        call = client.async_infer("gated", [tensor], callback=lambda result, error: None)
        wait_for_pending(ports, 1)
        call.cancel()
        wait_for_pending(ports, 0)
        gate.touch()
        assert running.result(10) == 1


def test_a_model_s_own_strategy_decides_its_batches(tmp_path: Path) -> None:
    extra = "dynamic_batching { max_queue_delay_microseconds: 200000 preferred_batch_size: 8 }"
    config = python_config([tensor_text("INPUT")], [tensor_text("OUTPUT")], max_batch_size=8, extra=extra)
    directory = write_model(tmp_path, "pairs", config, IDENTITY)
    (directory / "batchstrategy.py").write_text(
        "def batch_initialize(batcher):\n    return []\n\n"
        "def batch_include_request(batch, request):\n"
        "    batch.append(request.id)\n    return len(batch) <= 2\n"
    )
    with wire_server(tmp_path) as ports, ThreadPoolExecutor(8) as pool, grpc_infer(ports) as infer:
        for future in [pool.submit(infer, 1, "pairs") for _ in range(8)]:
            future.result(10)
        (statistics,) = ports.server.statistics("pairs")
    assert statistics.inference_count == 8
    assert max(batch.batch_size for batch in statistics.batch_stats) == 2


def test_a_ragged_batch_is_divided_again(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["INPUT", "COUNT"], ["OUTPUT"])]
    flat = (onnx_models.FLOAT, ("elements",))
    content = onnx_models.onnx_model(nodes, {"INPUT": flat, "COUNT": flat}, {"OUTPUT": flat})
    directory = tmp_path / "ragged"
    onnx_models.write_model(directory, content)
    (directory / "config.pbtxt").write_text(f"""
        backend: "onnxruntime"
        max_batch_size: 4
        input [ {tensor_text("INPUT", extra="allow_ragged_batch: true")} ]
        output [ {tensor_text("OUTPUT")} ]
        batch_input [ {{ kind: BATCH_MAX_ELEMENT_COUNT_AS_SHAPE target_name: "COUNT"
                         data_type: TYPE_FP32 source_input: "INPUT" }} ]
        batch_output [ {{ target_name: "OUTPUT" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "INPUT" }} ]
        dynamic_batching {{ }}
    """)
    with wire_server(tmp_path) as ports, http_infer(ports) as infer:
        assert infer(3, "ragged") == 3


def test_requests_of_unlike_lengths_are_one_ragged_batch(tmp_path: Path) -> None:
    # The model adds to the first element of each request where that request ends.
    nodes = [
        helper.make_node("Sub", ["INPUT", "INPUT"], ["NONE"]),
        helper.make_node("Slice", ["BOUNDS", "ZERO", "MINUS_ONE"], ["STARTS"]),
        helper.make_node("Slice", ["BOUNDS", "ONE", "MOST"], ["WHOLE_ENDS"]),
        helper.make_node("Cast", ["WHOLE_ENDS"], ["ENDS"], to=onnx_models.FLOAT),
        helper.make_node("ScatterElements", ["NONE", "STARTS", "ENDS"], ["MARKS"]),
        helper.make_node("Add", ["INPUT", "MARKS"], ["OUTPUT"]),
    ]
    numbers = {"ZERO": 0, "ONE": 1, "MINUS_ONE": -1, "MOST": 1 << 40}
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in numbers.items()]
    flat = (onnx_models.FLOAT, ("elements",))
    content = onnx_models.onnx_model(
        nodes, {"INPUT": flat, "BOUNDS": (TensorProto.INT32, ("bounds",))}, {"OUTPUT": flat}, constants
    )
    directory = tmp_path / "ragged"
    onnx_models.write_model(directory, content)
    (directory / "config.pbtxt").write_text(f"""
        backend: "onnxruntime"
        max_batch_size: 4
        input [ {tensor_text("INPUT", extra="allow_ragged_batch: true")} ]
        output [ {tensor_text("OUTPUT")} ]
        batch_input [ {{ kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO target_name: "BOUNDS"
                         data_type: TYPE_INT32 source_input: "INPUT" }} ]
        batch_output [ {{ target_name: "OUTPUT" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "INPUT" }} ]
        dynamic_batching {{ preferred_batch_size: 3 max_queue_delay_microseconds: 5000000 }}
        instance_group {{ count: 1 kind: KIND_CPU }}
    """)

    def infer(length: int) -> list[float]:
        tensor = grpc_client.InferInput("INPUT", [1, length], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, length), np.float32))
        found: list[float] = client.infer("ragged", [tensor]).as_numpy("OUTPUT")[0].tolist()
        return found

    with (
        wire_server(tmp_path) as ports,
        ThreadPoolExecutor(3) as pool,
        grpc_client.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client,
    ):
        answers = list(pool.map(infer, (2, 3, 4)))
        (statistics,) = ports.server.statistics("ragged")
    assert [len(answer) for answer in answers] == [2, 3, 4]
    # Whichever order they came in, each ends where its length says after those before it.
    ends = sorted((answer[0], len(answer)) for answer in answers)
    assert [end for end, _ in ends] == list(accumulate(length for _, length in ends))
    assert all(not any(answer[1:]) for answer in answers)
    assert [batch.batch_size for batch in statistics.batch_stats] == [3]


# Answers with when it began and when it ended.
TIMED = """
def execute(self, requests):
    import time
    start = time.monotonic()
    time.sleep(0.02)
    times = np.array([start, time.monotonic()])
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", times)]) for _ in requests]
"""


def write_limited(repository: Path, name: str, resources: str) -> None:
    group = f"instance_group {{ kind: KIND_CPU count: 1 rate_limiter {{ resources {{ {resources} }} }} }}"
    output = tensor_text("OUTPUT", "FP64", "2")
    write_model(repository, name, python_config([tensor_text("INPUT")], [output], extra=group), TIMED)


def overlaps(ports: Ports, models: list[str]) -> int:
    """How many executions of these models began before another one had ended."""

    def times(model: str) -> list[float]:
        with http_client.InferenceServerClient(f"127.0.0.1:{ports.http}") as client:
            tensor = http_client.InferInput("INPUT", [1], "FP32")
            tensor.set_data_from_numpy(np.zeros(1, np.float32))
            return list(client.infer(model, [tensor]).as_numpy("OUTPUT"))

    with ThreadPoolExecutor(8) as pool:
        spans = sorted(pool.map(times, models))
    return sum(later[0] < earlier[1] for earlier, later in pairwise(spans))


def test_models_that_share_a_resource_take_turns(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_limited(tmp_path, name, 'name: "R" global: true count: 2')
    with wire_server(tmp_path, rate_limit=RateLimitMode.EXECUTION_COUNT) as ports:
        assert overlaps(ports, ["one", "two"] * 4) == 0


def test_enough_of_a_resource_lets_models_run_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_limited(tmp_path, name, 'name: "R" global: true count: 2')
    counts = (ResourceCount("R", 4),)
    options: dict[str, Any] = {"rate_limit": RateLimitMode.EXECUTION_COUNT, "rate_limit_resource": counts}
    with wire_server(tmp_path, **options) as ports:
        assert overlaps(ports, ["one", "two"] * 4) > 0


def test_a_model_that_could_never_run_is_not_loaded(tmp_path: Path) -> None:
    write_limited(tmp_path, "one", 'name: "R" count: 2')
    counts = (ResourceCount("R", 1),)
    options: dict[str, Any] = {"rate_limit": RateLimitMode.EXECUTION_COUNT, "rate_limit_resource": counts}
    with wire_server(tmp_path, exit_on_error=False, **options) as ports:
        (failure,) = ports.server.failures()
    assert 'Resource count for "R" is limited to 1 which will prevent scheduling' in failure.reason
