"""Clients that leave, deadlines and timeouts: how they reach queues, running models, later steps and calls.

Nothing here measures time: a gate is closed until everything that should have ended has ended.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

from cantata import Server
from cantata.runtime.execution.rate_limiter import RateLimitMode
from tests.support.model_files import ensemble_config, python_config, step_text, tensor_text, write_model
from tests.support.wire_servers import Ports, wire_server

PROCESS = 'parameters { key: "EXECUTION_ISOLATION" value { string_value: "process" } }'
IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")
# Longer than anything takes here: what ends before has been told to.
LONG_S = 20.0

# Answers when its gate is open, or when nobody waits any more: then it leaves a note. A negative INPUT passes.
HOLD = """
def initialize(self, args):
    import pathlib
    self.gate = pathlib.Path(json.loads(args["model_config"])["parameters"]["GATE"]["string_value"])

def execute(self, requests):
    import time
    responses = []
    for request in requests:
        values = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        (self.gate / f"began-{values.reshape(-1)[0]:g}").touch()
        while values.reshape(-1)[0] >= 0 and not (self.gate / "open").exists():
            if request.is_cancelled():
                (self.gate / f"left-{values.reshape(-1)[0]:g}").touch()
                break
            time.sleep(0.005)
        if (self.gate / f"left-{values.reshape(-1)[0]:g}").exists():
            gone = pb_utils.TritonError("nobody waits", pb_utils.TritonError.CANCELLED)
            responses.append(pb_utils.InferenceResponse(error=gone))
        else:
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", values)]))
    return responses
"""
TICK = """
def execute(self, requests):
    return [
        pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUTPUT", pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy() + 1)])
        for request in requests]
"""
# What it is told of the time that is left, in seconds.
TELL = """
from cantata import bls

@bls.model(inputs={"INPUT": bls.FP32[-1]}, outputs={"OUTPUT": bls.FP32[-1]})
async def tell(INPUT):
    left = bls.request().seconds_left
    return {"OUTPUT": np.array([-1 if left is None else left], np.float32)}
"""
EXEC = """
def execute(self, requests):
    responses = []
    for request in requests:
        answer = pb_utils.InferenceRequest(
            model_name=TARGET, inputs=[pb_utils.get_input_tensor_by_name(request, "INPUT")],
            requested_output_names=["OUTPUT"], trace=request.trace()).exec()
        responses.append(pb_utils.InferenceResponse(answer.output_tensors(), answer.error()))
    return responses
"""
ASYNC_EXEC = """
async def execute(self, requests):
    calls = [pb_utils.InferenceRequest(
        model_name=TARGET, inputs=[pb_utils.get_input_tensor_by_name(request, "INPUT")],
        requested_output_names=["OUTPUT"]).async_exec() for request in requests]
    return [pb_utils.InferenceResponse(answer.output_tensors(), answer.error())
            for answer in await asyncio.gather(*calls)]
"""
AWAIT = """
import numpy as np
from cantata import bls

@bls.model(inputs={"INPUT": bls.FP32[-1]}, outputs={"OUTPUT": bls.FP32[-1]})
async def pipeline(INPUT):
    return {"OUTPUT": (await bls.call(TARGET, INPUT=INPUT)).OUTPUT}
"""
WAYS = {"exec": EXEC, "async_exec": ASYNC_EXEC, "await": AWAIT}
SEQUENCE = "sequence_batching { %s control_input [ %s ] }"
START = (
    '{ name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },'
    '{ name: "READY" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } ] }'
)
# Where a request may wait for a model that is busy.
QUEUES = {
    "hold": "",
    "hold_batching": "dynamic_batching { max_queue_delay_microseconds: 1000 }",
    "hold_priority": "dynamic_batching { priority_levels: 2 default_priority_level: 1 }",
    "hold_direct": SEQUENCE % ("direct { }", START),
    "hold_oldest": SEQUENCE % ("oldest { max_candidate_sequences: 4 }", START),
    "hold_backlog": SEQUENCE % ("oldest { max_candidate_sequences: 1 }", START),
}
LIMITED = 'instance_group [ { rate_limiter { resources [ { name: "R" count: 1 } ] } } ]'


def write_hold(repository: Path, name: str, gate: Path, extra: str = "", max_batch_size: int = 0) -> None:
    place = f'parameters {{ key: "GATE" value {{ string_value: "{gate}" }} }}'
    config = python_config([IN], [OUT], max_batch_size=max_batch_size, extra=f"{extra}\n{place}")
    write_model(repository, name, config, HOLD)


def write_caller(repository: Path, name: str, way: str, target: str, extra: str = "") -> None:
    code = WAYS[way].replace("TARGET", repr(target))
    if way == "await":
        write_model(repository, name, f'backend: "python"\n{extra}', code=code)
    else:
        write_model(repository, name, python_config([IN], [OUT], extra=extra), code)


def write_chain(repository: Path, name: str, models: list[str], extra: str = "") -> None:
    names = ["INPUT", *(f"T{number}" for number in range(1, len(models))), "OUTPUT"]
    steps = [
        step_text(model, {"INPUT": source}, {"OUTPUT": target})
        for model, source, target in zip(models, names[:-1], names[1:], strict=True)
    ]
    write_model(repository, name, ensemble_config([IN], [OUT], steps, extra=extra))


# Everything that a request may go through until it is held.
PATHS = [
    "hold",
    "hold_process",
    "chain",
    "nested",
    *(f"{way}_thread" for way in WAYS),
    *(f"{way}_process" for way in WAYS),
]


class Held:
    """A server whose models wait at a gate; every test has numbers of its own for its requests."""

    def __init__(self, ports: Ports, gate: Path) -> None:
        self.ports = ports
        self.gate = gate
        self.grpc_address = f"127.0.0.1:{ports.grpc}"
        self._number = 0

    def number(self) -> int:
        """What a new request is known by."""
        self._number += 1
        return self._number

    def executions(self, model: str) -> int:
        return self.ports.server.statistics(model)[0].execution_count

    def pending(self, model: str) -> int:
        return self.ports.server.model(model).scheduler.pending()

    def in_flight(self, model: str) -> int:
        return self.ports.server.model(model).scheduler.in_flight

    def began(self, number: int) -> None:
        wait_until((self.gate / f"began-{number}").exists)

    def left(self, number: int) -> None:
        """The model has noticed that nobody waits for that request."""
        wait_until((self.gate / f"left-{number}").exists)

    def open(self) -> None:
        (self.gate / "open").touch()

    def close(self) -> None:
        (self.gate / "open").unlink(missing_ok=True)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come to it")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    gate = tmp_path_factory.mktemp("gate")
    repository = tmp_path_factory.mktemp("models")
    for name, extra in QUEUES.items():
        write_hold(repository, name, gate, extra, max_batch_size=1 if extra else 0)
    write_hold(repository, "hold_process", gate, PROCESS)
    write_model(repository, "tick", python_config([IN], [OUT]), TICK)
    write_model(repository, "tell", None, code="import numpy as np\n" + TELL)
    for way in WAYS:
        write_caller(repository, f"{way}_thread", way, "hold")
        write_caller(repository, f"{way}_process", way, "hold", PROCESS)
        write_caller(repository, f"{way}_tell", way, "tell")
    write_caller(repository, "await_tell_process", "await", "tell", PROCESS)
    write_chain(repository, "chain", ["hold", "tick"])
    write_chain(repository, "nested", ["tick", "chain"])
    write_chain(repository, "limited_chain", ["hold", "tick"], "max_inflight_requests: 1")
    write_chain(repository, "tick_tell", ["tick", "tell"])
    write_chain(repository, "thirty", ["hold", *["tick"] * 29])
    with wire_server(repository) as ports:
        yield Held(ports, gate)


@pytest.fixture
def held(served: Held) -> Iterator[Held]:
    """The gate is closed when a test begins, and nothing is left when it has ended."""
    served.close()
    yield served
    served.open()
    for version in served.ports.server.loaded_versions():
        assert version.scheduler.wait_until_idle(30), version.name


def inputs_of(triton: Any, number: float, shape: tuple[int, ...] = (1,)) -> list[Any]:
    tensor = triton.InferInput("INPUT", list(shape), "FP32")
    tensor.set_data_from_numpy(np.full(shape, number, np.float32))
    return [tensor]


class Leaving:
    """A request that is on its way, and how its client leaves; waits until the client has been told of the end."""

    def __init__(self, leave: Callable[[], None], end: Callable[[], None]) -> None:
        self.leave = leave
        self.end = end


def grpc_unary(held: Held, model: str, number: int, **options: Any) -> Leaving:
    client = triton_grpc.InferenceServerClient(held.grpc_address)
    answers: queue.Queue[Any] = queue.Queue()
    call = client.async_infer(
        model,
        inputs_of(triton_grpc, number, options.pop("shape", (1,))),
        lambda result, error: answers.put(error or result),
        **options,
    )

    def end() -> None:
        answers.get(timeout=LONG_S)
        client.close()

    return Leaving(call.cancel, end)


def grpc_stream(held: Held, model: str, number: int) -> Leaving:
    client = triton_grpc.InferenceServerClient(held.grpc_address)
    client.start_stream(lambda result, error: None)
    client.async_stream_infer(model, inputs_of(triton_grpc, number))
    return Leaving(functools.partial(client.stop_stream, cancel_requests=True), client.close)


def grpc_aio(held: Held, model: str, number: int) -> Leaving:
    async def infer() -> None:
        async with triton_grpc_aio.InferenceServerClient(held.grpc_address) as client:
            await client.infer(model, inputs_of(triton_grpc_aio, number))

    return cancelled_task(infer())


def grpc_aio_stream(held: Held, model: str, number: int) -> Leaving:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": inputs_of(triton_grpc_aio, number)}
        await asyncio.Event().wait()

    async def infer() -> None:
        async with triton_grpc_aio.InferenceServerClient(held.grpc_address) as client:
            answers = client.stream_infer(requests())
            try:
                await anext(aiter(answers))
            finally:
                answers.cancel()

    return cancelled_task(infer())


def http_aio(held: Held, model: str, number: int) -> Leaving:
    async def infer() -> None:
        async with triton_http_aio.InferenceServerClient(f"127.0.0.1:{held.ports.http}") as client:
            await client.infer(model, inputs_of(triton_http_aio, number))

    return cancelled_task(infer())


def cancelled_task(infer: Coroutine[Any, Any, None]) -> Leaving:
    """A task on a loop of its own, which leaves by being cancelled."""
    loop = asyncio.new_event_loop()
    thread = ThreadPoolExecutor(1)
    thread.submit(loop.run_forever)
    call = asyncio.run_coroutine_threadsafe(infer, loop)
    ended = threading.Event()
    call.add_done_callback(lambda _: ended.set())

    def end() -> None:
        ended.wait(LONG_S)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(LONG_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.shutdown()
        loop.close()

    return Leaving(lambda: call.cancel() and None, end)


def http(held: Held, model: str, number: int) -> Leaving:
    body = json.dumps(
        {"inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [1], "data": [number]}]}
    ).encode()
    connection = socket.create_connection(("127.0.0.1", held.ports.http))
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return Leaving(connection.close, lambda: None)


CLIENTS = [grpc_unary, grpc_stream, grpc_aio, grpc_aio_stream, http, http_aio]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_what_a_client_has_queued_goes_with_it(held: Held, client: Callable[..., Leaving]) -> None:
    before = held.executions("hold")
    first, second = held.number(), held.number()
    busy = grpc_unary(held, "hold", first)
    held.began(first)
    leaving = client(held, "hold", second)
    wait_until(lambda: held.pending("hold") == 1)
    leaving.leave()
    wait_until(lambda: held.pending("hold") == 0)
    held.open()
    busy.end()
    leaving.end()
    assert held.executions("hold") == before + 1


@pytest.mark.parametrize("model", [path for path in PATHS if path not in ("hold", "hold_process")])
def test_steps_and_calls_that_are_queued_go_with_the_client(held: Held, model: str) -> None:
    before = held.executions("hold")
    first, second = held.number(), held.number()
    busy = grpc_unary(held, "hold", first)
    held.began(first)
    leaving = grpc_unary(held, model, second)
    wait_until(lambda: held.pending("hold") == 1)
    leaving.leave()
    wait_until(lambda: held.pending("hold") == 0 and held.in_flight(model) == 0)
    leaving.end()
    held.open()
    busy.end()
    assert held.executions("hold") == before + 1


@pytest.mark.parametrize("model", ["hold", "chain"])
def test_what_is_queued_past_its_deadline_leaves_at_once(held: Held, model: str) -> None:
    before = held.executions("hold")
    first, second = held.number(), held.number()
    busy = grpc_unary(held, "hold", first)
    held.began(first)
    late = grpc_unary(held, model, second, client_timeout=0.3)
    late.end()
    wait_until(lambda: held.pending("hold") == 0)
    held.open()
    busy.end()
    assert held.executions("hold") == before + 1


def test_a_step_that_is_queued_past_the_timeout_leaves_at_once(held: Held) -> None:
    before = held.executions("hold")
    first, second = held.number(), held.number()
    busy = grpc_unary(held, "hold", first)
    held.began(first)
    with (
        triton_grpc.InferenceServerClient(held.grpc_address) as client,
        pytest.raises(InferenceServerException, match="Request timeout expired"),
    ):
        client.infer("chain", inputs_of(triton_grpc, second), timeout=200_000)
    held.open()
    busy.end()
    assert held.executions("hold") == before + 1


@pytest.mark.parametrize("model", QUEUES)
def test_queued_work_leaves_every_queue_at_once(held: Held, model: str) -> None:
    before = held.executions(model)
    first, second = held.number(), held.number()
    shape = (1, 1) if QUEUES[model] else (1,)
    place: dict[str, Any] = {"shape": shape}
    if "sequence" in QUEUES[model]:
        place |= {"sequence_start": True}
    busy = grpc_unary(held, model, first, **place, sequence_id=first * ("sequence" in QUEUES[model]))
    held.began(first)
    leaving = grpc_unary(held, model, second, **place, sequence_id=second * ("sequence" in QUEUES[model]))
    wait_until(lambda: held.in_flight(model) == 2)
    leaving.leave()
    # The first is held still: nothing has come to the second's turn.
    wait_until(lambda: held.in_flight(model) == 1)
    leaving.end()
    held.open()
    busy.end()
    assert held.executions(model) == before + 1


def test_what_waits_for_resources_leaves_at_once(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    for name in ("one", "two"):
        write_hold(tmp_path / "models", name, gate, LIMITED)
    with wire_server(tmp_path / "models", rate_limit=RateLimitMode.EXECUTION_COUNT) as ports:
        held = Held(ports, gate)
        busy = grpc_unary(held, "one", 1)
        held.began(1)
        leaving = grpc_unary(held, "two", 2)
        wait_until(lambda: held.in_flight("two") == 1)
        leaving.leave()
        wait_until(lambda: held.in_flight("two") == 0)
        leaving.end()
        held.open()
        busy.end()
        assert held.executions("two") == 0


def test_a_step_that_waits_for_a_place_leaves_at_once(held: Held) -> None:
    first, second = held.number(), held.number()
    busy = grpc_unary(held, "limited_chain", first)
    held.began(first)
    leaving = grpc_unary(held, "limited_chain", second)
    wait_until(lambda: held.in_flight("limited_chain") == 2)
    assert held.in_flight("hold") == 1
    leaving.leave()
    wait_until(lambda: held.in_flight("limited_chain") == 1)
    leaving.end()
    held.open()
    busy.end()


@pytest.mark.parametrize("model", PATHS)
def test_a_client_that_leaves_is_noticed_by_the_model_that_runs(held: Held, model: str) -> None:
    number = held.number()
    leaving = grpc_unary(held, model, number - 1 if model == "nested" else number)
    held.began(number)
    leaving.leave()
    held.left(number)
    leaving.end()
    assert held.ports.server.model(model).scheduler.wait_until_idle(30)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_whichever_client_leaves_its_running_model_notices(
    held: Held, client: Callable[..., Leaving]
) -> None:
    number = held.number()
    leaving = client(held, "chain", number)
    held.began(number)
    leaving.leave()
    held.left(number)
    leaving.end()


@pytest.mark.parametrize("model", PATHS)
def test_a_deadline_that_passes_is_noticed_by_the_model_that_runs(held: Held, model: str) -> None:
    before = held.executions("tick")
    number = held.number()
    leaving = grpc_unary(held, model, number - 1 if model == "nested" else number, client_timeout=0.5)
    held.left(number)
    leaving.end()
    assert held.ports.server.model(model).scheduler.wait_until_idle(30)
    assert held.executions("tick") == before + (model == "nested")


@pytest.mark.parametrize(
    ("triton", "model"),
    [
        pytest.param(triton_http, "chain", id="http"),
        *(pytest.param(triton_grpc, path, id=path) for path in PATHS),
    ],
)
def test_a_timeout_is_noticed_by_the_model_that_runs_and_ends_the_pipeline(
    held: Held, triton: Any, model: str
) -> None:
    before = held.executions("tick")
    number = held.number()
    address = held.grpc_address if triton is triton_grpc else f"127.0.0.1:{held.ports.http}"
    with triton.InferenceServerClient(address) as client:
        inputs = inputs_of(triton, number - 1 if model == "nested" else number)
        with pytest.raises(InferenceServerException, match="Request timeout expired"):
            client.infer(model, inputs, timeout=300_000)
    # The gate is closed: only the timeout has ended it.
    held.left(number)
    assert held.executions("tick") == before + (model == "nested")


def test_the_deadline_of_a_stream_is_that_of_its_requests(held: Held) -> None:
    number = held.number()
    with triton_grpc.InferenceServerClient(held.grpc_address) as client:
        client.start_stream(lambda result, error: None, stream_timeout=0.5)
        client.async_stream_infer("chain", inputs_of(triton_grpc, number))
        held.left(number)


def test_a_timeout_of_one_request_leaves_the_others_of_its_stream_alone(held: Held) -> None:
    first, second = held.number(), held.number()
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(held.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer("chain", inputs_of(triton_grpc, first), timeout=300_000)
        held.left(first)
        client.async_stream_infer("chain", inputs_of(triton_grpc, second))
        held.began(second)
        held.open()
        assert "Request timeout expired" in str(answers.get(timeout=LONG_S))
        assert answers.get(timeout=LONG_S).as_numpy("OUTPUT").tolist() == [second + 1]
        client.stop_stream()


def test_a_model_s_own_queue_keeps_to_its_policy(held: Held) -> None:
    """Without a policy that says so, a timeout is no limit to how long a request waits, as in Triton."""
    first, second = held.number(), held.number()
    busy = grpc_unary(held, "hold", first)
    held.began(first)
    with triton_grpc.InferenceServerClient(held.grpc_address) as client, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.infer, "hold", inputs_of(triton_grpc, second), timeout=1)
        wait_until(lambda: held.pending("hold") == 1)
        held.open()
        assert waiting.result(LONG_S).as_numpy("OUTPUT").tolist() == [second]
    busy.end()


@pytest.mark.parametrize("model", ["tick_tell", *(f"{way}_tell" for way in WAYS), "await_tell_process"])
@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_what_is_left_of_the_time_is_told_to_steps_and_calls(held: Held, model: str, limit: str) -> None:
    options: dict[str, Any] = {"timeout": 50_000_000} if limit == "timeout" else {"client_timeout": 50.0}
    with triton_grpc.InferenceServerClient(held.grpc_address) as client:
        left = client.infer(model, inputs_of(triton_grpc, 1), **options).as_numpy("OUTPUT")[0]
        # gRPC rounds the time that it tells the server up.
        assert 0 < left < 51
        unlimited = client.infer(model, inputs_of(triton_grpc, 1)).as_numpy("OUTPUT")[0]
        assert unlimited == -1


def test_clients_that_drop_out_of_a_long_pipeline_cost_a_step_each_at_most(held: Held) -> None:
    steps, clients = 30, 8
    before = held.executions("hold") + held.executions("tick")
    numbers = [held.number() for _ in range(clients)]
    requests = [grpc_unary(held, "thirty", number) for number in numbers]
    wait_until(lambda: held.in_flight("thirty") == clients and held.pending("hold") == clients - 1)
    for request in requests[::2]:
        request.leave()
    wait_until(lambda: held.in_flight("thirty") <= clients // 2 + 1)
    held.open()
    for request in requests:
        request.end()
    assert held.ports.server.model("thirty").scheduler.wait_until_idle(30)
    ran = held.executions("hold") + held.executions("tick") - before
    assert steps * clients // 2 <= ran <= (steps + 1) * clients // 2


class TestEmbedded:
    """The same without a wire."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Server]:
        gate = tmp_path / "gate"
        gate.mkdir()
        write_hold(tmp_path / "models", "hold", gate)
        with Server(tmp_path / "models") as server:
            yield server

    @pytest.mark.parametrize("how", ["closed", "left", "dropped"])
    def test_a_stream_that_nobody_reads_is_cancelled(self, server: Server, tmp_path: Path, how: str) -> None:
        stream = server.stream("hold", {"INPUT": [7.0]})
        wait_until((tmp_path / "gate" / "began-7").exists)
        if how == "closed":
            stream.close()
            assert list(stream) == []
        elif how == "left":
            with stream:
                pass
        del stream
        gc.collect()
        wait_until((tmp_path / "gate" / "left-7").exists)

    def test_a_task_that_is_cancelled_cancels_its_request(self, server: Server, tmp_path: Path) -> None:
        async def infer_and_leave() -> None:
            task = asyncio.ensure_future(server.infer_async("hold", {"INPUT": [7.0]}))
            while not (tmp_path / "gate" / "began-7").exists():
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(infer_and_leave())
        wait_until((tmp_path / "gate" / "left-7").exists)
