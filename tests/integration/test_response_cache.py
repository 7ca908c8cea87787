"""The response cache as clients see it: the stock clients, ensembles, calls between models, reloads and Redis."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from cantata import InferenceError, Server
from cantata.runtime.observe.metrics_options import LatencyOptions
from cantata.runtime.repository.control import ModelControlMode
from tests.support.model_files import (
    SPLIT,
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_identity,
    write_model,
)
from tests.support.onnx_models import identity_model
from tests.support.onnx_models import write_model as write_onnx
from tests.support.served import Served, served
from tests.support.torch_models import AddSub, save_torchscript
from tests.support.wire_servers import wire_server

CACHED = "response_cache { enable: true }"
LOCAL = {"local": {"size": str(1 << 20)}}
INPUT, OUTPUT = tensor_text("INPUT"), tensor_text("OUTPUT")

# Adds to INPUT how often it has run before: an answer that is the same again comes from the cache.
COUNT = """
def initialize(self, args):
    self.runs = 0

def execute(self, requests):
    answers = []
    for request in requests:
        value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        if value.size and value.ravel()[0] < 0:
            answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
        else:
            outputs = [pb_utils.Tensor(name, value + np.float32(self.runs)) for name in ("OUTPUT", "COPY")]
            answers.append(pb_utils.InferenceResponse(outputs, parameters={"run": self.runs}))
        self.runs += 1
    return answers
"""
CALL = """
def execute(self, requests):
    answers = []
    for request in requests:
        call = pb_utils.InferenceRequest(
            model_name="count", requested_output_names=["OUTPUT"], inputs=request.inputs()
        )
        answers.append(pb_utils.InferenceResponse([call.exec().output_tensors()[0]]))
    return answers
"""


def write_count(
    repository: Path, name: str = "count", extra: str = CACHED, *, max_batch_size: int = 4
) -> None:
    outputs = [OUTPUT, tensor_text("COPY")]
    config = python_config([INPUT], outputs, max_batch_size=max_batch_size, extra=extra)
    write_model(repository, name, config, COUNT)


def write_pipeline(
    repository: Path, name: str, model: str, extra: str = "", *, max_batch_size: int = 4
) -> None:
    steps = [step_text(model, {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})]
    config = ensemble_config([INPUT], [OUTPUT], steps, max_batch_size=max_batch_size)
    write_model(repository, name, f"{config}\n{extra}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("cached")
    write_count(repository)
    write_count(repository, "uncached", extra="")
    write_pipeline(repository, "over_cached", "count")
    write_pipeline(repository, "whole", "uncached", CACHED)
    config = python_config([INPUT], [OUTPUT], max_batch_size=4)
    write_model(repository, "calls", config, CALL)
    write_onnx(repository / "onnx", identity_model(dims=(None, 1)))
    (repository / "onnx" / "config.pbtxt").write_text(f"max_batch_size: 4 dynamic_batching {{ }} {CACHED}")
    (repository / "torch" / "1").mkdir(parents=True)
    save_torchscript(AddSub(), repository / "torch" / "1" / "model.pt")
    tensors = "".join(
        f'{kind} {{ name: "{kind.upper()}__{n}" data_type: TYPE_FP32 dims: [ -1 ] }}\n'
        for kind in ("input", "output")
        for n in (0, 1)
    )
    (repository / "torch" / "config.pbtxt").write_text(
        f'backend: "pytorch" max_batch_size: 4 {tensors} {CACHED}'
    )
    with served(repository, cache_config=LOCAL, allow_client_shm=True) as running:
        yield running


_values = iter(np.arange(1000.0, 1e6, 10.0))


def fresh() -> float:
    """A value that no test has used."""
    return float(next(_values))


def ask(
    client: Any, model: str, value: float, name: str = "INPUT", outputs: tuple[str, ...] = (), **options: Any
) -> Any:
    """One request with a stock client: its result."""
    module = triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc
    tensor = module.InferInput(name, [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[value]], np.float32))
    wanted = [module.InferRequestedOutput(output) for output in outputs] or None
    return client.infer(model, [tensor], outputs=wanted, **options)


def figures(running: Served, model: str) -> tuple[int, int, int, int, int]:
    """Successes, hits, misses, computed requests and executions so far."""
    [statistics] = running.server.statistics(model)
    stats = statistics.inference_stats
    return (
        stats.success.count,
        stats.cache_hit.count,
        stats.cache_miss.count,
        stats.compute_infer.count,
        statistics.execution_count,
    )


def change(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(new - old for old, new in zip(before, after, strict=True))


def test_an_equal_request_gets_the_same_answer_over_both_protocols(running: Served) -> None:
    value, before = fresh(), figures(running, "count")
    first = ask(running.grpc, "count", value, request_id="a")
    second = ask(running.grpc, "count", value, request_id="b")
    third = ask(running.http, "count", value, request_id="c")
    answers = {result.as_numpy("OUTPUT").item() for result in (first, second, third)}
    assert len(answers) == 1
    assert [first.get_response().id, second.get_response().id, third.get_response()["id"]] == ["a", "b", "c"]
    assert first.get_response().parameters["run"] == second.get_response().parameters["run"]
    assert third.get_response()["model_version"] == "1"
    assert change(before, figures(running, "count")) == (3, 2, 1, 1, 1)


def test_what_differs_runs(running: Served) -> None:
    value, before = fresh(), figures(running, "count")
    for options in (
        {},
        {"outputs": ("OUTPUT",)},
        {"outputs": ("COPY",)},
        {"parameters": {"k": "v"}},
        {"parameters": {"k": "w"}},
    ):
        for _ in range(2):
            result = ask(running.grpc, "count", value, **options)
            if "outputs" in options:
                assert [output.name for output in result.get_response().outputs] == list(options["outputs"])
    assert change(before, figures(running, "count")) == (10, 5, 5, 5, 5)


def test_errors_are_not_kept(running: Served) -> None:
    before = figures(running, "count")
    for _ in range(2):
        with pytest.raises(InferenceServerException, match="negative"):
            ask(running.grpc, "count", -1.0)
    assert change(before, figures(running, "count")) == (0, 0, 0, 0, 2)


def test_a_model_without_the_setting_always_runs(running: Served) -> None:
    value, before = fresh(), figures(running, "uncached")
    answers = [ask(running.http, "uncached", value).as_numpy("OUTPUT").item() for _ in range(2)]
    assert answers[0] != answers[1]
    assert change(before, figures(running, "uncached")) == (2, 0, 0, 2, 2)


def test_an_ensemble_is_answered_as_a_whole(running: Served) -> None:
    value, before, steps = fresh(), figures(running, "whole"), figures(running, "uncached")
    answers = {ask(running.grpc, "whole", value).as_numpy("OUTPUT").item() for _ in range(3)}
    assert len(answers) == 1
    assert change(before, figures(running, "whole")) == (3, 2, 1, 1, 1)
    assert change(steps, figures(running, "uncached")) == (1, 0, 0, 1, 1)


@pytest.mark.parametrize("model", ["over_cached", "calls"])
def test_steps_and_calls_are_answered_from_the_cache(running: Served, model: str) -> None:
    value, before, cached = fresh(), figures(running, model), figures(running, "count")
    answers = {ask(running.http, model, value).as_numpy("OUTPUT").item() for _ in range(3)}
    assert len(answers) == 1
    assert change(before, figures(running, model)) == (3, 0, 0, 3, 3)
    assert change(cached, figures(running, "count")) == (3, 2, 1, 1, 1)


def test_models_of_libraries_are_cached_whatever_their_parameters(running: Served) -> None:
    value = fresh()
    before = figures(running, "onnx")
    for trace in ("a", "b"):
        result = ask(running.grpc, "onnx", value, "IN", parameters={"trace": trace})
        assert result.as_numpy("OUT").item() == value
    assert change(before, figures(running, "onnx")) == (2, 1, 1, 1, 1)
    tensors = []
    for n in (0, 1):
        tensors.append(triton_grpc.InferInput(f"INPUT__{n}", [1, 1], "FP32"))
        tensors[-1].set_data_from_numpy(np.array([[value + n]], np.float32))
    sums = [running.grpc.infer("torch", tensors).as_numpy("OUTPUT__0").item() for _ in range(2)]
    # The order of a request's inputs does not matter.
    sums.append(running.grpc.infer("torch", tensors[::-1]).as_numpy("OUTPUT__0").item())
    assert sums == [2 * value + 1] * 3
    assert figures(running, "torch")[1:] == (2, 1, 1, 1)


def test_shared_memory_of_clients_is_read_anew_and_written_each_time(running: Served) -> None:
    key = f"/cantata_cache_{os.getpid()}"
    region = shm.create_shared_memory_region("cache", key, 8, create_only=True)
    before = figures(running, "onnx")
    try:
        running.grpc.register_system_shared_memory("cache", key, 8)
        tensor = triton_grpc.InferInput("IN", [1, 1], "FP32")
        tensor.set_shared_memory("cache", 4)
        output = triton_grpc.InferRequestedOutput("OUT")
        output.set_shared_memory("cache", 4, offset=4)
        found = []
        first, second = fresh(), fresh()
        for value in (first, second, first):
            shm.set_shared_memory_region(region, [np.array([value, 0.0], np.float32)])
            running.grpc.infer("onnx", [tensor], outputs=[output])
            found.append(shm.get_contents_as_numpy(region, np.float32, [1], offset=4).item())
        running.grpc.unregister_system_shared_memory("cache")
    finally:
        shm.destroy_shared_memory_region(region)
    assert found == [first, second, first]
    # What is in a client's memory is the same to the model as what is in the message.
    assert ask(running.grpc, "onnx", second, "IN").as_numpy("OUT").item() == second
    assert change(before, figures(running, "onnx")) == (4, 2, 2, 2, 2)
    assert running.server.shared_memory.status() == []


def test_a_streams_answer_from_the_cache_is_final(running: Served) -> None:
    value = fresh()
    results: list[Any] = []
    done = threading.Event()

    def keep(result: Any, error: Any) -> None:
        results.append(error or result)
        if len(results) == 2:
            done.set()

    running.grpc.start_stream(keep)
    tensor = triton_grpc.InferInput("INPUT", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[value]], np.float32))
    for _ in range(2):
        running.grpc.async_stream_infer("count", [tensor], enable_empty_final_response=True)
    assert done.wait(30)
    running.grpc.stop_stream()
    assert len({result.as_numpy("OUTPUT").item() for result in results}) == 1
    assert all(result.get_response().parameters["triton_final_response"].bool_param for result in results)


def test_a_request_with_a_timeline_shares_the_answer_and_not_the_timeline(running: Served) -> None:
    value, before = fresh(), figures(running, "onnx")
    timed = ask(running.grpc, "onnx", value, "IN", parameters={"cantata_timeline": True})
    plain = ask(running.grpc, "onnx", value, "IN")
    again = ask(running.grpc, "onnx", value, "IN", parameters={"cantata_timeline": True})
    told = [set(result.get_response().parameters) for result in (timed, plain, again)]
    assert told == [{"cantata_timeline"}, set(), {"cantata_timeline"}]
    assert change(before, figures(running, "onnx")) == (3, 2, 1, 1, 1)


def test_the_metrics_tell_of_the_cache(tmp_path: Path) -> None:
    write_count(tmp_path)
    write_count(tmp_path, "uncached", extra="")
    latencies = LatencyOptions(histograms=True, summaries=True)
    with wire_server(tmp_path, cache_config=LOCAL, latencies=latencies) as ports:
        client = triton_http.InferenceServerClient(f"127.0.0.1:{ports.http}")
        for _ in range(3):
            ask(client, "count", 1.0)
        [statistics] = client.get_inference_statistics("count")["model_stats"]
        client.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{ports.metrics}/metrics") as answer:
            text = answer.read().decode()
    values = {
        name: float(value)
        for line in text.splitlines()
        if not line.startswith("#")
        for name, value in [line.rsplit(" ", 1)]
    }
    labels = '{model="count",version="1"}'
    stats = statistics["inference_stats"]
    assert values[f"nv_cache_num_hits_per_model{labels}"] == stats["cache_hit"]["count"] == 2
    assert values[f"nv_cache_num_misses_per_model{labels}"] == stats["cache_miss"]["count"] == 1
    assert values[f"nv_cache_hit_duration_per_model{labels}"] == stats["cache_hit"]["ns"] // 1000
    assert values[f"nv_cache_miss_duration_per_model{labels}"] == stats["cache_miss"]["ns"] // 1000
    assert values[f"nv_inference_request_success{labels}"] == 3
    assert values[f"nv_inference_count{labels}"] == values[f"nv_inference_exec_count{labels}"] == 1
    assert values["nv_cache_num_entries"] == 1
    assert 0 < values["nv_cache_util"] < 1
    assert values["nv_cache_num_evictions"] == 0
    assert not [name for name in values if "nv_cache" in name and "uncached" in name]
    assert values[f"nv_cache_hit_summary_per_model_count{labels}"] == 2
    assert values[f"nv_cache_miss_summary_per_model_count{labels}"] == 1
    assert values[f"nv_inference_queue_summary_us_count{labels}"] == 3
    assert values[f"nv_inference_compute_infer_summary_us_count{labels}"] == 1
    assert values[f"nv_inference_first_response_histogram_ms_count{labels}"] == 3
    assert f"nv_inference_request_summary_us_count{labels}" not in values


def write_slow(repository: Path, gate: Path) -> None:
    """A cached identity model that answers once there is a file `gate`, and tells in another when it is cancelled."""
    execute = f"""
    def execute(self, requests):
        gate = pathlib.Path({str(gate)!r})
        while not gate.exists():
            if requests[0].is_cancelled():
                gate.with_name("cancelled").touch()
            time.sleep(0.005)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", r.inputs()[0].as_numpy())]) for r in requests]
    """
    config = python_config([INPUT], [OUTPUT], extra=CACHED)
    path = write_model(repository, "slow", config, execute) / "1" / "model.py"
    path.write_text("import pathlib\nimport time\n" + path.read_text())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_requests(server: Any, count: int) -> None:
    wait_until(lambda: server.model("slow").scheduler.in_flight == count)


def test_a_client_that_leaves_takes_no_equal_request_with_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    write_slow(tmp_path / "models", gate)
    with wire_server(tmp_path / "models", cache_config=LOCAL) as ports:
        body = json.dumps({"INPUT": 4.0})
        leaving, staying = (http.client.HTTPConnection("127.0.0.1", ports.http, timeout=60) for _ in range(2))
        leaving.request("POST", "/v2/models/slow/generate", body)
        wait_for_requests(ports.server, 1)
        staying.request("POST", "/v2/models/slow/generate", body)
        wait_for_requests(ports.server, 2)
        leaving.close()
        wait_until((tmp_path / "cancelled").exists)
        gate.touch()
        answer = json.loads(staying.getresponse().read())
        staying.close()
        [statistics] = ports.server.statistics("slow")
    assert (answer["OUTPUT"], statistics.execution_count) == (4.0, 1)


def test_equal_requests_at_the_same_time_run_once(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    write_slow(tmp_path / "models", gate)
    with Server(tmp_path / "models", cache_config=LOCAL) as server, ThreadPoolExecutor(8) as executor:
        inputs = {"INPUT": np.ones(1, np.float32)}
        calls = [executor.submit(server.infer, "slow", inputs) for _ in range(8)]
        wait_for_requests(server.core, 8)
        gate.touch()
        assert [call.result()["OUTPUT"].item() for call in calls] == [1.0] * 8
        [statistics] = server.core.statistics("slow")
    assert (statistics.execution_count, statistics.inference_stats.cache_hit.count) == (1, 7)


def test_a_reload_never_answers_with_what_was_before(tmp_path: Path) -> None:
    write_count(tmp_path)
    options: dict[str, Any] = {"model_control_mode": ModelControlMode.EXPLICIT, "load_model": ("*",)}
    with served(tmp_path, cache_config=LOCAL, **options) as running:
        assert ask(running.grpc, "count", 1.0).as_numpy("OUTPUT").item() == 1.0
        directory = tmp_path / "count" / "1"
        (directory / "model.py").write_text(
            (directory / "model.py").read_text().replace("self.runs = 0", "self.runs = 100")
        )
        running.grpc.load_model("count")
        assert ask(running.grpc, "count", 1.0).as_numpy("OUTPUT").item() == 101.0
        running.grpc.unload_model("count")
        wait_until(lambda: not running.server.cache_figures().entries)
        running.grpc.load_model("count")
        assert ask(running.grpc, "count", 1.0).as_numpy("OUTPUT").item() == 101.0
        assert figures(running, "count") == (1, 0, 1, 1, 1)


def test_each_version_has_answers_of_its_own(tmp_path: Path) -> None:
    write_count(tmp_path, extra=CACHED + "version_policy { all { } }")
    write_model(tmp_path, "count", None, COUNT.replace("self.runs = 0", "self.runs = 100"), version=2)
    with Server(tmp_path, cache_config={"local": {"size": 1 << 20}}) as server:
        inputs = {"INPUT": np.zeros((1, 1), np.float32)}
        answers = [server.infer("count", inputs, version=v)["OUTPUT"].item() for v in (1, 2, -1, 1)]
    assert answers == [0.0, 100.0, 100.0, 0.0]


def test_an_ensemble_that_keeps_state_or_streams_is_not_cached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_count(tmp_path, "sequence", extra="sequence_batching { direct { } }", max_batch_size=0)
    write_pipeline(tmp_path, "stateful", "sequence", CACHED, max_batch_size=0)
    write_model(tmp_path, "split", python_config([INPUT], [OUTPUT], decoupled=True), SPLIT)
    write_pipeline(tmp_path, "streams", "split", CACHED, max_batch_size=0)
    with Server(tmp_path, cache_config=LOCAL) as server:
        inputs = {"INPUT": np.zeros(1, np.float32)}
        answers = [
            server.infer("stateful", inputs, sequence_id=1, sequence_start=True)["OUTPUT"].item()
            for _ in range(2)
        ]
        assert [len(list(server.stream("streams", inputs))) for _ in range(2)] == [1, 1]
        assert server.core.statistics("streams")[0].inference_stats.cache_miss.count == 0
    assert answers == [0.0, 1.0]
    assert "'stateful': its responses are not cached: a step's answers depend on" in caplog.text
    assert "'streams': its responses are not cached: a step answers any number of times" in caplog.text


@pytest.mark.parametrize(
    ("extra", "scheduler"),
    [
        ("model_transaction_policy { decoupled: true }", "'decoupled' transaction policy"),
        ("sequence_batching { }", "sequence batching scheduler"),
    ],
)
def test_models_that_cannot_be_cached_are_refused(tmp_path: Path, extra: str, scheduler: str) -> None:
    write_count(tmp_path, extra=CACHED + extra)
    text = f"Response Cache does not currently support model count with {scheduler}. Please disable"
    with pytest.raises(InferenceError, match=text):
        Server(tmp_path, cache_config=LOCAL).start()


def test_a_model_that_asks_for_a_cache_that_there_is_not_always_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_count(tmp_path)
    with Server(tmp_path) as server:
        inputs = {"INPUT": np.zeros((1, 1), np.float32)}
        assert [server.infer("count", inputs)["OUTPUT"].item() for _ in range(2)] == [0.0, 1.0]
    assert "model 'count' asks for a response cache, but the server has none" in caplog.text


def test_a_cache_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="unknown cache 'lokal' \\(did you mean 'local'\\?\\)"):
        Server(tmp_path, cache_config={"lokal": {}})


def test_warming_up_asks_no_cache(tmp_path: Path) -> None:
    warm = 'model_warmup { name: "w" batch_size: 1 count: 3 inputs { key: "INPUT" value { data_type: TYPE_FP32 %s } } }'
    write_count(tmp_path, extra=CACHED + warm % "dims: [ 1 ] zero_data: true")
    with Server(tmp_path, cache_config=LOCAL) as server:
        assert server.infer("count", {"INPUT": np.zeros((1, 1), np.float32)})["OUTPUT"].item() == 3.0
        [statistics] = server.core.statistics("count")
    stats = statistics.inference_stats
    assert (stats.success.count, stats.cache_hit.count, stats.cache_miss.count) == (4, 0, 1)


def test_a_long_ensemble_of_cached_steps(tmp_path: Path) -> None:
    write_identity(tmp_path, extra=CACHED)
    steps = [
        step_text(
            "identity", {"INPUT": f"t{n}" if n else "INPUT"}, {"OUTPUT": f"t{n + 1}" if n < 149 else "OUTPUT"}
        )
        for n in range(150)
    ]
    write_model(tmp_path, "long", ensemble_config([INPUT], [OUTPUT], steps))
    with Server(tmp_path, cache_config=LOCAL) as server:
        for _ in range(2):
            assert server.infer("long", {"INPUT": np.ones(1, np.float32)})["OUTPUT"].item() == 1.0
        assert server.core.statistics("identity")[0].inference_stats.cache_hit.count == 299


REDIS = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(REDIS is None, reason="there is no redis-server on this machine")


class RedisServer:
    """A redis-server at a socket file."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.config = {"redis": {"url": f"unix://{self._socket}"}}

    def start(self) -> None:
        assert REDIS is not None
        arguments = [
            REDIS,
            "--port",
            "0",
            "--unixsocket",
            str(self._socket),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, cwd=self._socket.parent)
        wait_until(self._socket.exists)

    def entry_count(self) -> int:
        import redis

        with redis.Redis(unix_socket_path=str(self._socket)) as client:
            return int(client.dbsize())  # type: ignore[arg-type]

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


def answer_of(server: Server, value: float) -> float:
    return float(server.infer("count", {"INPUT": np.full((1, 1), value, np.float32)})["OUTPUT"].item())


def wait_for_runs(server: Server, count: int) -> None:
    """Ask the same until it has run `count` times more: what is on its way to the cache is still an answer."""
    first = answer_of(server, 0.0)
    wait_until(lambda: answer_of(server, 0.0) >= first + count)


@needs_redis
def test_servers_share_what_redis_keeps(tmp_path: Path, redis_server: RedisServer) -> None:
    write_count(tmp_path / "models")
    with Server(tmp_path / "models", cache_config=redis_server.config) as first:
        assert [answer_of(first, 0.0), answer_of(first, 5.0), answer_of(first, 5.0)] == [0.0, 6.0, 6.0]
        # Answers are kept after they were given.
        wait_until(lambda: redis_server.entry_count() == 2)
        with Server(tmp_path / "models", cache_config=redis_server.config) as second:
            assert answer_of(second, 5.0) == 6.0
            [statistics] = second.core.statistics("count")
            assert (statistics.execution_count, statistics.inference_stats.cache_hit.count) == (0, 1)
    os.utime(tmp_path / "models" / "count" / "1" / "model.py", (1, 1))
    with Server(tmp_path / "models", cache_config=redis_server.config) as third:
        assert answer_of(third, 5.0) == 5.0


@needs_redis
def test_a_reload_never_answers_with_what_redis_has_from_before(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    write_count(tmp_path / "models")
    options: dict[str, Any] = {"model_control_mode": ModelControlMode.EXPLICIT, "load_model": ("*",)}
    with served(tmp_path / "models", cache_config=redis_server.config, **options) as running:
        ask(running.grpc, "count", 1.0)
        for _ in range(2):
            running.grpc.unload_model("count")
            running.grpc.load_model("count")
            ask(running.grpc, "count", 1.0)
            assert figures(running, "count") == (1, 0, 1, 1, 1)


@needs_redis
def test_requests_are_served_while_redis_is_away(
    tmp_path: Path, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    write_count(tmp_path / "models")
    with Server(tmp_path / "models", cache_config=redis_server.config) as server:
        assert [answer_of(server, 0.0), answer_of(server, 0.0)] == [0.0, 0.0]
        redis_server.stop()
        wait_for_runs(server, 3)
        assert caplog.text.count("requests are served without it") == 1
        redis_server.start()
        wait_until(lambda: answer_of(server, 0.0) == answer_of(server, 0.0))


def test_a_server_starts_without_redis_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_count(tmp_path / "models")
    config = {"redis": {"url": f"unix://{tmp_path}/nothing.sock"}}
    with Server(tmp_path / "models", cache_config=config) as server:
        wait_for_runs(server, 3)
    assert "requests are served without it" in caplog.text
