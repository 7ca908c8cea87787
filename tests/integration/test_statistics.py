"""What the statistics and the metrics say of every kind of request, whoever is asked: one row of figures for each."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from cantata.runtime.observe.snapshots import ModelStatistics
from tests.support.model_files import write_model
from tests.support.wire_servers import Ports, wire_server

TENSORS = """
input { name: "IN" data_type: TYPE_INT32 dims: 1 }
output { name: "OUT" data_type: TYPE_INT32 dims: 1 }
"""
# Negative numbers are errors; 99 waits until the gate is open.
ECHO = """
def execute(self, requests):
    import statistics_gate
    responses = []
    for request in requests:
        value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        if value.max() == 99:
            statistics_gate.entered.set()
            assert statistics_gate.opened.wait(30)
        if value.min() < 0:
            responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
        else:
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
    return responses
"""
# As many responses as the input says; after those of a negative one, an error.
REPEAT = """
def execute(self, requests):
    for request in requests:
        value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        sender = request.get_response_sender()
        for _ in range(abs(int(value.ravel()[0]))):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
        if value.min() < 0:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
PAIRS = "dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 60000000 }"
HASTY = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 1000 } }"
SHORT = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"


def python(extra: str = "", max_batch_size: int = 0) -> str:
    return f'backend: "python"\nmax_batch_size: {max_batch_size}\n{TENSORS}\n{extra}'


def ensemble(first: str, second: str) -> str:
    return f"""
platform: "ensemble"
{TENSORS}
ensemble_scheduling {{
  step {{ model_name: "{first}" model_version: -1
    input_map {{ key: "IN" value: "IN" }} output_map {{ key: "OUT" value: "middle" }} }}
  step {{ model_name: "{second}" model_version: -1
    input_map {{ key: "IN" value: "middle" }} output_map {{ key: "OUT" value: "OUT" }} }}
}}
"""


def write_repository(repository: Path) -> None:
    for name in ("plain", "broken", "idle", "first", "second", "third"):
        write_model(repository, name, python(), ECHO)
    write_model(repository, "batched", python(PAIRS, 2), ECHO)
    write_model(repository, "wide", python(max_batch_size=4), ECHO)
    write_model(repository, "hasty", python(HASTY, 1), ECHO)
    write_model(repository, "left", python("dynamic_batching { }", 1), ECHO)
    write_model(repository, "short", python(SHORT, 1), ECHO)
    write_model(repository, "sequence", python("sequence_batching { }", 2), ECHO)
    decoupled = "model_transaction_policy { decoupled: true }"
    for name in ("repeat", "cut_off", "silent"):
        write_model(repository, name, python(decoupled), REPEAT)
    write_model(repository, "pipeline", ensemble("first", "second"))
    write_model(repository, "failing_pipeline", ensemble("first", "third"))


class Client:
    """The stock gRPC client of one server, and what its ports say of it."""

    def __init__(self, ports: Ports, gate: ModuleType) -> None:
        self.gate = gate
        self._ports = ports
        self._grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}")

    def close(self) -> None:
        self._grpc.close()

    def send(self, model: str, *values: int, batches: bool = False, **options: Any) -> Sent:
        """Send a request; a model that `batches` gets a row for each value."""
        array = np.array(values, np.int32)
        array = array.reshape(-1, 1) if batches else array
        tensor = triton_grpc.InferInput("IN", list(array.shape), "INT32")
        tensor.set_data_from_numpy(array)
        sent = Sent()
        sent.call = self._grpc.async_infer(model, [tensor], sent.take, **options)
        return sent

    def ask(self, model: str, *values: int, batches: bool = False, **options: Any) -> str:
        """The error that answers a request, "" where there is none."""
        return self.send(model, *values, batches=batches, **options).wait()

    def stream(self, model: str, value: int) -> int:
        """How many messages answer a streamed request."""
        answers: queue.Queue[Any] = queue.Queue()
        tensor = triton_grpc.InferInput("IN", [1], "INT32")
        tensor.set_data_from_numpy(np.array([value], np.int32))
        self._grpc.start_stream(lambda result, error: answers.put((result, error)))
        self._grpc.async_stream_infer(model, [tensor], enable_empty_final_response=True)
        count = 0
        is_final = False
        while not is_final:
            result, _ = answers.get(timeout=30)
            count += 1
            # An error of this client has no response: what ends its stream comes behind.
            is_final = (
                result is not None and result.get_response().parameters["triton_final_response"].bool_param
            )
        self._grpc.stop_stream()
        return count

    def hold(self, model: str, *, batches: bool) -> Sent:
        """Send a request that keeps the model busy until `release`."""
        self.gate.entered.clear()
        self.gate.opened.clear()
        sent = self.send(model, 99, batches=batches)
        assert self.gate.entered.wait(30)
        return sent

    def release(self, sent: Sent) -> None:
        self.gate.opened.set()
        assert sent.wait() == ""

    def statistics(self, model: str) -> ModelStatistics:
        (found,) = self._ports.server.statistics(model)
        return found

    def http_statistics(self, model: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._ports.http}/v2/models/{model}/stats"
        (found,) = httpx.get(url).json()["model_stats"]
        return dict(found)

    def grpc_statistics(self, model: str) -> Any:
        (found,) = self._grpc.get_inference_statistics(model).model_stats
        return found

    def metrics(self, model: str) -> dict[str, float]:
        """The samples of a model by name, with the reason behind those that have one."""
        text = httpx.get(f"http://127.0.0.1:{self._ports.metrics}/metrics").text
        return {
            ":".join(
                filter(None, (sample.name.removesuffix("_total"), sample.labels.get("reason")))
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("model") == model and "ensemble" not in sample.labels
        }


class Sent:
    """A request that has been sent."""

    def __init__(self) -> None:
        self.call: Any = None
        self._error: InferenceServerException | None = None
        self._is_answered = threading.Event()

    def take(self, result: Any, error: InferenceServerException | None) -> None:
        self._error = error
        self._is_answered.set()

    def wait(self) -> str:
        assert self._is_answered.wait(30)
        return "" if self._error is None else self._error.message()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    gate = ModuleType("statistics_gate")
    gate.entered, gate.opened = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    repository = tmp_path_factory.mktemp("models")
    write_repository(repository)
    with pytest.MonkeyPatch.context() as patched, wire_server(repository) as ports:
        patched.setitem(sys.modules, "statistics_gate", gate)
        made = Client(ports, gate)
        yield made
        made.close()


def plain(client: Client) -> None:
    assert [client.ask("plain", 1), client.ask("plain", 2)] == ["", ""]


def failing(client: Client) -> None:
    assert client.ask("broken", 1) == ""
    assert client.ask("broken", -1) == "negative"


def malformed(client: Client) -> None:
    assert "unexpected shape for input 'IN'" in client.ask("idle", 1, 2)


def batched(client: Client) -> None:
    pair = [client.send("batched", value, batches=True) for value in (1, 2)]
    assert [sent.wait() for sent in pair] == ["", ""]
    assert client.ask("batched", 3, 4, batches=True) == ""


def wide(client: Client) -> None:
    assert client.ask("wide", 1, 2, 3, batches=True) == ""
    assert client.ask("wide", 1, batches=True) == ""


def expired(client: Client) -> None:
    held = client.hold("hasty", batches=True)
    assert client.ask("hasty", 1, batches=True) == "Request timeout expired"
    client.release(held)


def cancelled(client: Client) -> None:
    held = client.hold("left", batches=True)
    waiting = client.send("left", 1, batches=True)
    wait_until(lambda: client.metrics("left")["nv_inference_pending_request_count"] == 1)
    waiting.call.cancel()
    wait_until(lambda: client.metrics("left")["nv_inference_request_failure:CANCELED"] == 1)
    client.release(held)


def refused(client: Client) -> None:
    held = client.hold("short", batches=True)
    waiting = client.send("short", 1, batches=True)
    wait_until(lambda: client.metrics("short")["nv_inference_pending_request_count"] == 1)
    assert "Exceeds maximum queue size" in client.ask("short", 2, batches=True)
    client.release(held)
    assert waiting.wait() == ""


def sequence(client: Client) -> None:
    for number in range(3):
        options = {"sequence_id": 5, "sequence_start": number == 0, "sequence_end": number == 2}
        assert client.ask("sequence", number, batches=True, **options) == ""
    assert "must specify the START flag" in client.ask("sequence", 1, batches=True, sequence_id=6)


def decoupled(client: Client) -> None:
    assert [client.stream("repeat", 2), client.stream("repeat", 1)] == [3, 2]


def silent(client: Client) -> None:
    assert client.stream("silent", 0) == 1


def cut_off(client: Client) -> None:
    assert client.stream("cut_off", -1) == 3


def pipeline(client: Client) -> None:
    assert client.ask("pipeline", 1) == ""


def failing_pipeline(client: Client) -> None:
    assert client.ask("failing_pipeline", -1).startswith("in ensemble 'failing_pipeline', ")


@dataclass(frozen=True)
class Expected:
    """The figures of one model; `responses` has the names of the figures that each place in a stream has counted."""

    success: int
    failures: dict[str, int] = field(default_factory=dict)
    inferences: int = 0
    executions: int = 0
    batches: dict[int, int] = field(default_factory=dict)
    responses: dict[str, dict[str, int]] = field(default_factory=dict)


OUTPUT = {"compute_infer": 1, "compute_output": 1, "success": 1}
TABLE: list[tuple[Callable[[Client], None], str, Expected]] = [
    (plain, "plain", Expected(2, {}, 2, 2, {1: 2})),
    (failing, "broken", Expected(1, {"BACKEND": 1}, 2, 2, {1: 2})),
    (malformed, "idle", Expected(0)),
    (batched, "batched", Expected(3, {}, 4, 2, {2: 2})),
    (wide, "wide", Expected(2, {}, 4, 2, {1: 1, 3: 1})),
    (expired, "hasty", Expected(1, {"REJECTED": 1}, 1, 1, {1: 1})),
    (cancelled, "left", Expected(1, {"CANCELED": 1}, 1, 1, {1: 1})),
    (refused, "short", Expected(2, {}, 2, 2, {1: 2})),
    (sequence, "sequence", Expected(3, {}, 3, 3, {1: 3})),
    (
        decoupled,
        "repeat",
        Expected(
            2,
            {},
            2,
            2,
            {1: 2},
            {
                "0": {"compute_infer": 2, "compute_output": 2, "success": 2},
                "1": {**OUTPUT, "empty_response": 1},
                "2": {"empty_response": 1},
            },
        ),
    ),
    (silent, "silent", Expected(1, {}, 1, 1, {1: 1}, {"0": {"empty_response": 1}})),
    (
        cut_off,
        "cut_off",
        Expected(
            1,
            {},
            1,
            1,
            {1: 1},
            {"0": OUTPUT, "1": {"compute_infer": 1, "fail": 1}, "2": {"empty_response": 1}},
        ),
    ),
    (pipeline, "pipeline", Expected(1, {}, 1, 1, {1: 1})),
    (failing_pipeline, "failing_pipeline", Expected(0, {"OTHER": 1})),
]


@pytest.mark.parametrize(("do", "model", "expected"), TABLE, ids=[do.__name__ for do, *_ in TABLE])
def test_each_kind_of_request_has_its_figures(
    client: Client, do: Callable[[Client], None], model: str, expected: Expected
) -> None:
    do(client)
    wait_until(lambda: client.metrics(model)["nv_inference_pending_request_count"] == 0)
    statistics = client.http_statistics(model)
    check_statistics(statistics, expected)
    check_durations(statistics)
    check_metrics(client.metrics(model), statistics, expected)
    assert client.grpc_statistics(model) == as_message(client, statistics)


def check_statistics(statistics: dict[str, Any], expected: Expected) -> None:
    """The counts."""
    stats = statistics["inference_stats"]
    failed = sum(expected.failures.values())
    assert list(statistics) == [
        "name",
        "version",
        "last_inference",
        "inference_count",
        "execution_count",
        "inference_stats",
        "response_stats",
        "batch_stats",
        "memory_usage",
    ]
    assert statistics["version"] == "1"
    assert (statistics["last_inference"] > 0) == (expected.executions > 0)
    assert (statistics["inference_count"], statistics["execution_count"]) == (
        expected.inferences,
        expected.executions,
    )
    assert {name: each["count"] for name, each in stats.items()} == {
        "success": expected.success,
        "fail": failed,
        **dict.fromkeys(("queue", "compute_input", "compute_infer", "compute_output"), expected.success),
        "cache_hit": 0,
        "cache_miss": 0,
    }
    parts = ("compute_input", "compute_infer", "compute_output")
    assert {
        batch["batch_size"]: {batch[part]["count"] for part in parts} for batch in statistics["batch_stats"]
    } == {size: {count} for size, count in expected.batches.items()}
    assert {
        place: {name: each["count"] for name, each in figures.items() if each["count"]}
        for place, figures in statistics["response_stats"].items()
    } == expected.responses


def check_durations(statistics: dict[str, Any]) -> None:
    """Times are there where something happened, and parts are no longer than the whole."""
    stats = statistics["inference_stats"]
    for each in (
        *stats.values(),
        *(one for row in statistics["response_stats"].values() for one in row.values()),
    ):
        assert (each["ns"] == 0) or each["count"] > 0
    for name in ("success", "fail"):
        assert (stats[name]["ns"] > 0) == (stats[name]["count"] > 0)
    parts = sum(stats[part]["ns"] for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert parts <= stats["success"]["ns"]
    for row in statistics["response_stats"].values():
        assert (
            row["success"]["ns"]
            == row["compute_infer"]["ns"] + row["compute_output"]["ns"] - row["fail"]["ns"]
        )


def check_metrics(metrics: dict[str, float], statistics: dict[str, Any], expected: Expected) -> None:
    """The metrics say the same, in whole microseconds."""
    stats = statistics["inference_stats"]
    prefix = "nv_inference_"
    failures = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0) | expected.failures
    assert metrics.pop("nv_model_load_duration_secs") >= 0
    assert metrics == {
        f"{prefix}request_success": expected.success,
        **{f"{prefix}request_failure:{reason}": count for reason, count in failures.items()},
        f"{prefix}count": expected.inferences,
        f"{prefix}exec_count": expected.executions,
        f"{prefix}pending_request_count": 0,
        f"{prefix}request_duration_us": stats["success"]["ns"] // 1000,
        f"{prefix}queue_duration_us": stats["queue"]["ns"] // 1000,
        f"{prefix}compute_input_duration_us": stats["compute_input"]["ns"] // 1000,
        f"{prefix}compute_infer_duration_us": stats["compute_infer"]["ns"] // 1000,
        f"{prefix}compute_output_duration_us": stats["compute_output"]["ns"] // 1000,
    }


def as_message(client: Client, statistics: dict[str, Any]) -> Any:
    """The same statistics as gRPC has them."""
    message = type(client.grpc_statistics(statistics["name"]))()
    document = dict(statistics)
    for place, figures in document.pop("response_stats").items():
        for name, each in figures.items():
            duration = getattr(message.response_stats[place], name)
            duration.count, duration.ns = each["count"], each["ns"]
    batches = document.pop("batch_stats")
    for name, each in document.pop("inference_stats").items():
        duration = getattr(message.inference_stats, name)
        duration.SetInParent()
        duration.count, duration.ns = each["count"], each["ns"]
    for batch in batches:
        added = message.batch_stats.add(batch_size=batch.pop("batch_size"))
        for name, each in batch.items():
            getattr(added, name).count, getattr(added, name).ns = each["count"], each["ns"]
    assert document.pop("memory_usage") == []
    for name, value in document.items():
        setattr(message, name, value)
    return message


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do; a bound that no machine needs."""
    for _ in range(3000):
        if is_so():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it has not come about")


def test_an_ensembles_compute_times_are_the_sums_of_its_steps(client: Client) -> None:
    """Read from the statistics of models that nothing else calls."""
    before = {name: client.statistics(name).inference_stats for name in ("first", "second", "pipeline")}
    assert client.ask("pipeline", 4) == ""
    after = {name: client.statistics(name).inference_stats for name in before}
    for part in ("compute_input", "compute_infer", "compute_output"):
        spent = {name: getattr(after[name], part).ns - getattr(before[name], part).ns for name in before}
        assert spent["pipeline"] == spent["first"] + spent["second"]


def test_each_request_of_a_batch_has_the_batchs_whole_times(client: Client) -> None:
    before = client.http_statistics("batched")["inference_stats"]["compute_infer"]["ns"]
    batches = client.http_statistics("batched")["batch_stats"]
    pair = [client.send("batched", value, batches=True) for value in (1, 2)]
    assert [sent.wait() for sent in pair] == ["", ""]
    after = client.http_statistics("batched")
    spent = after["inference_stats"]["compute_infer"]["ns"] - before
    known = sum(batch["compute_infer"]["ns"] for batch in batches)
    executed = sum(batch["compute_infer"]["ns"] for batch in after["batch_stats"]) - known
    assert spent == 2 * executed
