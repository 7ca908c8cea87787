"""What tritonclient's own example programs do, on models as they expect them; and these programs themselves.

The programs are not part of this project. With CANTATA_CLIENT_PROGRAMS naming a directory that holds them (the
examples of the client's repository), each is run as it is; what is not there is skipped.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
import tritonclient.utils.shared_memory as shared_memory
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor

from cantata.runtime.repository.control import ModelControlMode
from tests.support.client_models import write_client_models
from tests.support.wire_servers import Ports, wire_server

VALUES = [11, 7, 5, 3, 2, 0, 1]
LONG_S = 30
ALL_PORTS = {"http": 0, "grpc": 1}

Api = Any


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_client_models(path)
    return path


@pytest.fixture(scope="module")
def ports(repository: Path) -> Iterator[Ports]:
    with wire_server(repository, allow_client_shm=True) as ports:
        yield ports


def client_of(protocol: str, ports: Ports, **options: Any) -> Any:
    api = {"grpc": triton_grpc, "http": triton_http}[protocol]
    return api.InferenceServerClient(f"127.0.0.1:{ports[ALL_PORTS[protocol]]}", **options)


def pair(api: Api, datatype: str = "INT32") -> list[Any]:
    """0 to 15, and as many ones."""
    numbers, ones = np.arange(16), np.ones(16, int)
    inputs = []
    for name, values in (("INPUT0", numbers), ("INPUT1", ones)):
        tensor = api.InferInput(name, [1, 16], datatype)
        array = values.reshape(1, 16)
        if datatype == "BYTES":
            tensor.set_data_from_numpy(array.astype(bytes).astype(object))
        else:
            tensor.set_data_from_numpy(array.astype(datatype.lower()))
        inputs.append(tensor)
    return inputs


def sums_and_differences(result: Any) -> tuple[list[int], list[int]]:
    sums, differences = (result.as_numpy(name)[0].astype(int).tolist() for name in ("OUTPUT0", "OUTPUT1"))
    return sums, differences


EXPECTED_PAIR = (list(range(1, 17)), list(range(-1, 15)))


@pytest.mark.parametrize(
    ("model", "datatype"), [("simple", "INT32"), ("simple_int8", "INT8"), ("simple_string", "BYTES")]
)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_two_tensors_are_added_and_subtracted(ports: Ports, protocol: str, model: str, datatype: str) -> None:
    api = {"grpc": triton_grpc, "http": triton_http}[protocol]
    with client_of(protocol, ports) as client:
        assert sums_and_differences(client.infer(model, pair(api, datatype))) == EXPECTED_PAIR
        statistics = client.get_inference_statistics(model)
        models = statistics["model_stats"] if protocol == "http" else statistics.model_stats
        assert len(models) == 1


@pytest.mark.parametrize(
    ("request_coding", "response_coding"),
    [(None, None), ("gzip", None), (None, "deflate"), ("deflate", "gzip")],
)
@pytest.mark.parametrize("names_outputs", [True, False])
def test_binary_tensors_and_json_are_mixed(
    ports: Ports, request_coding: str | None, response_coding: str | None, names_outputs: bool
) -> None:
    inputs = pair(triton_http)
    inputs[0].set_data_from_numpy(np.arange(16, dtype=np.int32).reshape(1, 16), binary_data=False)
    outputs = [
        triton_http.InferRequestedOutput("OUTPUT0", binary_data=True),
        triton_http.InferRequestedOutput("OUTPUT1", binary_data=False),
    ]
    options: dict[str, Any] = {
        "outputs": outputs if names_outputs else None,
        "query_params": {"test_1": 1, "test_2": 2},
        "request_compression_algorithm": request_coding,
        "response_compression_algorithm": response_coding,
    }
    with client_of("http", ports) as client:
        assert sums_and_differences(client.infer("simple", inputs, **options)) == EXPECTED_PAIR
        with pytest.raises(InferenceServerException) as refused:
            client.infer("wrong_model_name", inputs, **options)
    assert refused.value.message().startswith("Request for unknown model")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_server_says_what_it_is(ports: Ports, protocol: str) -> None:
    with client_of(protocol, ports) as client:
        assert client.is_server_live(headers={"test": "1", "dummy": "2"})
        assert client.is_server_ready()
        assert client.is_model_ready("simple")
        metadata, model = client.get_server_metadata(), client.get_model_metadata("simple")
        names = (metadata["name"], model["name"]) if protocol == "http" else (metadata.name, model.name)
        assert names == ("triton", "simple")
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            client.get_model_metadata("wrong_model_name")


def test_a_channel_with_options_of_its_own_serves(ports: Ports) -> None:
    keep_alive = triton_grpc.KeepAliveOptions(
        keepalive_time_ms=2_000,
        keepalive_timeout_ms=1_000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )
    arguments = [("grpc.max_send_message_length", 2**20), ("grpc.lb_policy_name", "pick_first")]
    for options in ({"keepalive_options": keep_alive}, {"channel_args": arguments}):
        with client_of("grpc", ports, **options) as client:
            result = client.infer(
                "simple", pair(triton_grpc), headers={"test": "1"}, compression_algorithm="gzip"
            )
            assert sums_and_differences(result) == EXPECTED_PAIR


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_coroutines_are_served(ports: Ports, protocol: str) -> None:
    api = {"grpc": triton_grpc_aio, "http": triton_http_aio}[protocol]

    async def ask() -> Any:
        async with api.InferenceServerClient(f"127.0.0.1:{ports[ALL_PORTS[protocol]]}") as client:
            assert await client.is_server_live(headers={"test": "1", "dummy": "2"})
            assert await client.is_model_ready("simple")
            return await asyncio.gather(*(client.infer("simple", pair(api)) for _ in range(8)))

    assert [sums_and_differences(result) for result in asyncio.run(ask())] == [EXPECTED_PAIR] * 8


def contents(kind: str, values: list[Any]) -> Any:
    tensor = service_pb2.ModelInferRequest().InferInputTensor()
    tensor.datatype = {"int_contents": "INT32", "bytes_contents": "BYTES"}[kind]
    tensor.shape.extend([1, 16])
    getattr(tensor.contents, kind).extend(values)
    return tensor


@pytest.mark.parametrize(
    ("model", "kind", "datatype", "convert"),
    [
        ("simple", "int_contents", "INT32", int),
        ("simple_int8", "int_contents", "INT8", int),
        ("simple_string", "bytes_contents", "BYTES", lambda value: str(value).encode()),
    ],
)
def test_tensors_may_be_typed_in_the_message(
    ports: Ports, model: str, kind: str, datatype: str, convert: Callable[[int], Any]
) -> None:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, values in (("INPUT0", range(16)), ("INPUT1", [1] * 16)):
        tensor = contents(kind, [convert(value) for value in values])
        tensor.name, tensor.datatype = name, datatype
        request.inputs.append(tensor)
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    found = []
    for raw in response.raw_output_contents:
        read = (
            deserialize_bytes_tensor
            if datatype == "BYTES"
            else lambda raw: np.frombuffer(raw, datatype.lower())
        )
        found.append([int(value) for value in read(raw)])
    assert tuple(found) == EXPECTED_PAIR


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tensors_objects_are_used_again_with_shared_memory_and_without(ports: Ports, protocol: str) -> None:
    api = {"grpc": triton_grpc, "http": triton_http}[protocol]
    regions = {}
    with client_of(protocol, ports) as client:
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        inputs = pair(api)
        outputs = [api.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
        for tensor in (*inputs, *outputs):
            key = f"/{uuid.uuid4().hex}"
            regions[tensor.name()] = shared_memory.create_shared_memory_region(tensor.name(), key, 64)
            client.register_system_shared_memory(tensor.name(), key, 64)
        numbers, ones = np.arange(16, dtype=np.int32), np.ones(16, np.int32)
        shared_memory.set_shared_memory_region(regions["INPUT0"], [numbers])
        shared_memory.set_shared_memory_region(regions["INPUT1"], [ones])
        try:
            for is_shared in (True, False, True):
                for tensor, array in zip(inputs, (numbers, ones * 2), strict=True):
                    if is_shared:
                        tensor.set_shared_memory(tensor.name(), 64)
                    else:
                        tensor.set_data_from_numpy(array.reshape(1, 16))
                for output in outputs:
                    output.set_shared_memory(output.name(), 64) if is_shared else output.unset_shared_memory()
                result = client.infer("simple", inputs, outputs=outputs)
                sums = (
                    shared_memory.get_contents_as_numpy(regions["OUTPUT0"], np.int32, [1, 16])
                    if is_shared
                    else result.as_numpy("OUTPUT0")
                )
                assert sums.tolist() == [(numbers + ones * (1 if is_shared else 2)).tolist()]
        finally:
            client.unregister_system_shared_memory()
            for region in regions.values():
                shared_memory.destroy_shared_memory_region(region)


def sequence_request(api: Api, value: int) -> list[Any]:
    tensor = api.InferInput("INPUT", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[value]], np.int32))
    return [tensor]


def expected_sequence(model: str, first: int, sign: int, number: int | str) -> list[int]:
    """As the models' descriptions have it: see `client_models`."""
    values = [first, *(sign * value for value in VALUES)]
    if "string" in model:
        found = np.cumsum(values).tolist()
    else:
        found = [first + 1, *values[1:]]
    if "dyna" in model:
        found[-1] += int(number)
    return found


SEQUENCES = [
    pytest.param(
        [
            ("simple_sequence", 1000, 0, 1),
            ("simple_sequence", 1001, 100, -1),
            ("simple_sequence", "a-b", 20, -1),
        ],
        id="direct",
    ),
    pytest.param(
        [
            ("simple_dyna_sequence", 1000, 0, 1),
            ("simple_dyna_sequence", 1001, 100, -1),
            ("simple_string_dyna_sequence", "1002", 20, -1),
        ],
        id="oldest",
    ),
]

Sequences = list[tuple[str, int | str, int, int]]


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_sequences_interleave_in_a_stream(ports: Ports, sequences: Sequences) -> None:
    received: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    answers: dict[str, list[int]] = {str(number): [] for _, number, _, _ in sequences}
    with client_of("grpc", ports) as client:
        client.start_stream(lambda result, error: received.put((result, error)))
        for model, number, first, sign in sequences:
            values = [first, *(sign * value for value in VALUES)]
            for index, value in enumerate(values):
                client.async_stream_infer(
                    model,
                    sequence_request(triton_grpc, value),
                    outputs=[triton_grpc.InferRequestedOutput("OUTPUT")],
                    request_id=f"{number}_{index}",
                    sequence_id=number,
                    sequence_start=index == 0,
                    sequence_end=index == len(values) - 1,
                )
        for _ in range(len(sequences) * (len(VALUES) + 1)):
            result, error = received.get(timeout=LONG_S)
            assert error is None
            answers[result.get_response().id.split("_")[0]].append(int(result.as_numpy("OUTPUT").item()))
    assert answers == {
        str(number): expected_sequence(model, first, sign, number) for model, number, first, sign in sequences
    }


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_sequences_go_on_request_by_request_over_http(ports: Ports, sequences: Sequences) -> None:
    with client_of("http", ports) as client:
        for model, number, first, sign in sequences:
            values = [first, *(sign * value for value in VALUES)]
            answers = [
                client.infer(
                    model,
                    sequence_request(triton_http, value),
                    sequence_id=number,
                    sequence_start=index == 0,
                    sequence_end=index == len(values) - 1,
                ).as_numpy("OUTPUT")
                for index, value in enumerate(values)
            ]
            assert [int(answer.item()) for answer in answers] == expected_sequence(model, first, sign, number)


def test_a_decoupled_model_answers_as_often_as_it_was_told(ports: Ports) -> None:
    tensors = {
        "IN": np.arange(100, 104, dtype=np.int32),
        "DELAY": np.ones(4, np.uint32),
        "WAIT": np.ones(1, np.uint32),
    }
    inputs = []
    for name, array in tensors.items():
        inputs.append(triton_grpc.InferInput(name, list(array.shape), "INT32" if name == "IN" else "UINT32"))
        inputs[-1].set_data_from_numpy(array)
    received: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    with client_of("grpc", ports) as client:
        client.start_stream(lambda result, error: received.put((result, error)))
        client.async_stream_infer("repeat_int32", inputs, outputs=[triton_grpc.InferRequestedOutput("OUT")])
        answers = [received.get(timeout=LONG_S) for _ in range(4)]
    assert [error for _, error in answers] == [None] * 4
    assert [result.as_numpy("OUT").tolist() for result, _ in answers] == [[100], [101], [102], [103]]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_models_are_loaded_changed_and_unloaded(repository: Path, protocol: str) -> None:
    with (
        wire_server(repository, model_control_mode=ModelControlMode.EXPLICIT) as ports,
        client_of(protocol, ports) as client,
    ):
        # As Model Analyzer asks.
        models = client.get_model_repository_index()
        names = (
            [model["name"] for model in models]
            if protocol == "http"
            else [model.name for model in models.models]
        )
        assert len(names) == len(list(repository.iterdir()))
        assert [name for name in names if client.is_model_ready(name)] == []
        client.load_model("simple")
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("simple", config='"parameters": {"config": {{"max_batch_size": "16"}}}')
        client.load_model("simple", config='{"max_batch_size":"16"}')
        config = client.get_model_config("simple")
        assert (config["max_batch_size"] if protocol == "http" else config.config.max_batch_size) == 16
        client.unload_model("simple")
        assert not client.is_model_ready("simple")
        with pytest.raises(InferenceServerException, match="Invalid file path"):
            client.load_model("simple", config="{}", files={"file:" + "A" * 256: b"a"})
        assert client.is_server_live()
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("no_such_model")


# The name of each program, the protocol that it speaks and what to add to its command line.
PROGRAMS = [
    *(
        (f"simple_{protocol}_{name}.py", protocol, more)
        for protocol in ("http", "grpc")
        for name, more in (
            ("health_metadata", ()),
            ("infer_client", ()),
            ("string_infer_client", ()),
            ("async_infer_client", ()),
            ("sequence_sync_infer_client", ()),
            ("sequence_sync_infer_client", ("-d",)),
            ("shm_client", ()),
            ("shm_string_client", ()),
            ("model_control", ()),
            ("aio_health_metadata", ()),
            ("aio_infer_client", ()),
            ("aio_string_infer_client", ()),
            ("aio_sequence_sync_infer_client", ()),
            ("aio_sequence_sync_infer_client", ("-d",)),
            ("aio_shm_client", ()),
            ("aio_shm_string_client", ()),
            ("aio_model_control", ()),
        )
    ),
    *(
        (f"simple_grpc_{name}.py", "grpc", more)
        for name, more in (
            ("sequence_stream_infer_client", ()),
            ("sequence_stream_infer_client", ("-d",)),
            ("aio_sequence_stream_infer_client", ()),
            ("aio_sequence_stream_infer_client", ("-d",)),
            ("keepalive_client", ()),
            ("aio_keepalive_client", ()),
            ("custom_args_client", ()),
            ("aio_custom_args_client", ()),
            ("custom_repeat", ()),
        )
    ),
    *((f"grpc_explicit_{name}_content_client.py", "grpc", ()) for name in ("byte", "int", "int8")),
    ("simple_http_infer_client.py", "http", ("--request-compression-algorithm", "gzip")),
    ("simple_http_infer_client.py", "http", ("--response-compression-algorithm", "deflate")),
    ("simple_grpc_infer_client.py", "grpc", ("-C", "gzip")),
    ("reuse_infer_objects_client.py", "http", ("-i", "HTTP")),
    ("reuse_infer_objects_client.py", "grpc", ("-i", "gRPC")),
]


@pytest.fixture
def programs() -> Path:
    directory = os.environ.get("CANTATA_CLIENT_PROGRAMS", "")
    if not directory:
        pytest.skip("CANTATA_CLIENT_PROGRAMS names no directory with tritonclient's example programs")
    return Path(directory)


@pytest.mark.parametrize(
    ("name", "protocol", "more"), PROGRAMS, ids=[" ".join([name, *more]) for name, _, more in PROGRAMS]
)
def test_the_clients_own_programs_pass(
    programs: Path,
    request: pytest.FixtureRequest,
    repository: Path,
    tmp_path: Path,
    name: str,
    protocol: str,
    more: tuple[str, ...],
) -> None:
    program = programs / name
    if not program.exists():
        pytest.skip(f"there is no {name} in {programs}")
    if name.endswith("model_control.py"):
        with models_as_counted(program, repository, tmp_path) as ports:
            outcome = run_program(program, ports, protocol, more)
    else:
        outcome = run_program(program, request.getfixturevalue("ports"), protocol, more)
    assert outcome == (0, "")


def models_as_counted(program: Path, repository: Path, directory: Path) -> Any:
    """A server of as many models as a program about model control says that there are."""
    counted = re.search(r"repository_index\(\S*\)\S* != (\d+)", program.read_text())
    count = int(counted[1]) if counted else len(list(repository.iterdir()))
    for model in [path for path in sorted(repository.iterdir()) if path.name != "simple"][: count - 1]:
        shutil.copytree(model, directory / model.name)
    shutil.copytree(repository / "simple", directory / "simple")
    return wire_server(directory, model_control_mode=ModelControlMode.EXPLICIT)


def run_program(program: Path, ports: Ports, protocol: str, more: tuple[str, ...]) -> tuple[int, str]:
    """Its exit status, and, where that is not 0, what it said."""
    command = [sys.executable, str(program), "-u", f"127.0.0.1:{ports[ALL_PORTS[protocol]]}", *more]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return run.returncode, "" if run.returncode == 0 else run.stdout[-2_000:] + run.stderr[-2_000:]
