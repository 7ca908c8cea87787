"""The HTTP front-end on real sockets: stock clients, hand-made requests, and clients that behave badly.

The models behind it are functions (tests.support.fake_server), so that every answer is known.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import invalid_argument
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.frontends.restricted_api import RestrictedApi
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor
from tests.support.fake_server import (
    FakeModel,
    FakeServer,
    identity,
    identity_model,
    model_config,
    respond_with,
)

if TYPE_CHECKING:
    from cantata.runtime.server import Server


class Gate:
    """A slow model that answers when the test says so."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def compute(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        self.entered.release()
        assert self.opened.wait(20)
        yield from identity(request)


def failing(_request: InferenceRequest) -> Iterator[InferenceResponse]:
    raise invalid_argument("this model never answers")


def twice(request: InferenceRequest) -> Iterator[InferenceResponse]:
    request.respond(respond_with(request, {"OUT": request.inputs["IN"]}), final=False)
    yield respond_with(request, {"OUT": request.inputs["IN"]})


def never(_request: InferenceRequest) -> Iterator[InferenceResponse]:
    return iter(())


def with_parameters(request: InferenceRequest) -> Iterator[InferenceResponse]:
    parameters = {key: value for key, value in (request.parameters or {}).items() if key != "drop"}
    yield respond_with(request, {"OUT": request.inputs["IN"]}, parameters)


INT32_PAIR = {"IN": (DataType.INT32, (2,))}
INT32_PAIR_OUT = {"OUT": (DataType.INT32, (2,))}


def pair_model(name: str, compute: Any, *, is_quick: bool = True, decoupled: bool = False) -> FakeModel:
    return FakeModel(
        model_config(name, INT32_PAIR, INT32_PAIR_OUT, decoupled=decoupled), compute, is_quick=is_quick
    )


class Running:
    """A server on a port of its own, with clients for it."""

    def __init__(self, server: FakeServer, options: HttpOptions, gate: Gate) -> None:
        self.server = server
        self.gate = gate
        self.frontend = HttpServer(cast("Server", server), options)
        self.frontend.start()
        self.port = cast(int, self.frontend.port)
        self.address = f"127.0.0.1:{self.port}"
        self.http = httpx.Client(
            base_url=f"http://{self.address}", headers={"accept-encoding": "identity"}, timeout=20
        )

    def infer(self, model: str, data: object = (1, 2), **members: object) -> httpx.Response:
        entry = {"name": "IN", "shape": [2], "datatype": "INT32", "data": data}
        return self.http.post(f"/v2/models/{model}/infer", json={"inputs": [entry], **members})

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def close(self) -> None:
        self.gate.opened.set()
        self.http.close()
        self.frontend.close()
        self.server.close()


@contextmanager
def running(**changes: Any) -> Iterator[Running]:
    gate = Gate()
    server = FakeServer(
        pair_model("pair", identity),
        pair_model("elsewhere", identity, is_quick=False),
        pair_model("gated", gate.compute, is_quick=False),
        pair_model("failing", failing),
        pair_model("twice", twice),
        pair_model("never", never),
        pair_model("with_parameters", with_parameters),
        pair_model("decoupled", identity, decoupled=True),
        FakeModel(model_config("versions", INT32_PAIR, INT32_PAIR_OUT), identity, version=1),
        FakeModel(model_config("versions", INT32_PAIR, INT32_PAIR_OUT), identity, version=3),
        identity_model("batched", max_batch_size=8),
        identity_model("raw", DataType.FP32, (4,)),
        *[identity_model(f"any_{datatype.name}", datatype, (-1, -1)) for datatype in DataType],
    )
    options: dict[str, Any] = {"address": "127.0.0.1", "port": 0, "metrics_port": 0, **changes}
    started = Running(server, HttpOptions(**options), gate)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running() as started:
        yield started


# Stock clients.


def arrays() -> dict[DataType, np.ndarray[Any, Any]]:
    numbers = np.array([[0, 1, 2], [3, 4, 100]])
    found = {
        datatype: numbers.astype(name)
        for datatype, name in [
            (DataType.UINT8, "u1"),
            (DataType.UINT16, "u2"),
            (DataType.UINT32, "u4"),
            (DataType.UINT64, "u8"),
            (DataType.INT8, "i1"),
            (DataType.INT16, "i2"),
            (DataType.INT32, "i4"),
            (DataType.INT64, "i8"),
            (DataType.FP16, "f2"),
            (DataType.FP32, "f4"),
            (DataType.FP64, "f8"),
        ]
    }
    found[DataType.BOOL] = numbers > 1
    found[DataType.BYTES] = np.array([[b"a", "é".encode()], [b"", b"x" * 300]], dtype=object)
    return found


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_the_stock_client_gets_every_datatype_back(
    shared: Running, binary_in: bool, binary_out: bool
) -> None:
    with triton.InferenceServerClient(shared.address) as client:
        for datatype, array in arrays().items():
            if datatype is DataType.FP16 and not (binary_in and binary_out):
                continue
            given = triton.InferInput("IN", list(array.shape), datatype.name)
            given.set_data_from_numpy(array, binary_data=binary_in)
            wanted = triton.InferRequestedOutput("OUT", binary_data=binary_out)
            result = client.infer(f"any_{datatype.name}", [given], outputs=[wanted], request_id="r1")
            got = result.as_numpy("OUT")
            if datatype is DataType.BYTES and not binary_out:
                got = np.vectorize(str.encode, otypes=[object])(got)
            np.testing.assert_array_equal(got, array)
            assert result.get_response()["id"] == "r1"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_the_stock_client_may_compress_both_ways(shared: Running, algorithm: str) -> None:
    array = np.zeros((100, 100), dtype=np.float32)
    given = triton.InferInput("IN", [100, 100], "FP32").set_data_from_numpy(array)
    with triton.InferenceServerClient(shared.address) as client:
        result = client.infer(
            "any_FP32",
            [given],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    np.testing.assert_array_equal(result.as_numpy("OUT"), array)


def test_the_stock_client_reads_what_the_server_says_of_itself(shared: Running) -> None:
    with triton.InferenceServerClient(shared.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("pair")
        assert not client.is_model_ready("nope")
        assert client.get_server_metadata()["name"] == "triton"
        assert client.get_model_metadata("batched") == {
            "name": "batched",
            "versions": ["1"],
            "platform": "python",
            "inputs": [{"name": "IN", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "OUT", "datatype": "FP32", "shape": [-1, 4]}],
        }
        assert client.get_model_config("batched")["max_batch_size"] == 8
        assert client.get_inference_statistics("pair")["model_stats"][0]["name"] == "pair"
        assert {"name": "never_loaded"} in client.get_model_repository_index()
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            client.load_model("pair")
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            client.unload_model("pair")


def test_the_stock_asyncio_client_may_send_many_requests_at_once(shared: Running) -> None:
    async def all_answers() -> list[list[float]]:
        async with triton_aio.InferenceServerClient(shared.address, conn_limit=20) as client:

            async def one(number: int) -> list[float]:
                given = triton_aio.InferInput("IN", [1, 4], "FP32")
                given.set_data_from_numpy(np.full((1, 4), number, dtype=np.float32))
                model = "batched" if number % 2 else "any_FP32"
                return cast("list[float]", (await client.infer(model, [given])).as_numpy("OUT").tolist())

            return await asyncio.gather(*map(one, range(60)))

    assert asyncio.run(all_answers()) == [[[float(number)] * 4] for number in range(60)]


# Answers, byte by byte.


def test_an_answer_has_tritons_keys_in_tritons_order(shared: Running) -> None:
    answer = shared.infer("with_parameters", id="a", parameters={"k": "v", "n": 1, "f": 0.5, "b": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.text == (
        '{"id":"a","model_name":"with_parameters","model_version":"1",'
        '"parameters":{"k":"v","n":1,"f":0.5,"b":true},'
        '"outputs":[{"name":"OUT","datatype":"INT32","shape":[2],"data":[1,2]}]}'
    )


def test_a_binary_answer_says_where_its_json_ends(shared: Running) -> None:
    answer = shared.infer("pair", outputs=[{"name": "OUT", "parameters": {"binary_data": True}}])
    length = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content[length:] == b"\x01\x00\x00\x00\x02\x00\x00\x00"
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}


def test_a_raw_request_gets_a_binary_answer(shared: Running) -> None:
    body = np.arange(4, dtype=np.float32).tobytes()
    answer = shared.http.post(
        "/v2/models/raw/infer", content=body, headers={"Inference-Header-Content-Length": "0"}
    )
    assert answer.status_code == 200
    assert answer.content.endswith(body)


def test_a_compressed_answer_tells_the_length_of_its_json_uncompressed(shared: Running) -> None:
    for encoding, unpack in (("gzip", gzip.decompress), ("deflate", zlib.decompress)):
        with shared.http.stream(
            "POST",
            "/v2/models/pair/infer",
            json={
                "inputs": [{"name": "IN", "shape": [2], "datatype": "INT32", "data": [1, 2]}],
                "parameters": {"binary_data_output": True},
            },
            headers={"accept-encoding": encoding},
        ) as answer:
            body = unpack(b"".join(answer.iter_raw()))
        assert answer.headers["content-encoding"] == encoding
        length = int(answer.headers["inference-header-content-length"])
        assert json.loads(body[:length])["model_name"] == "pair"
        assert len(body) == length + 8


def test_errors_are_never_compressed(shared: Running) -> None:
    answer = shared.http.post(
        "/v2/models/pair/infer",
        content=b"{",
        headers={"accept-encoding": "gzip", "content-type": "text/plain"},
    )
    assert answer.status_code == 400
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-type"] == "application/json"


def test_classes_take_the_place_of_an_output(shared: Running) -> None:
    outputs = [{"name": "OUT", "parameters": {"classification": 1}}]
    assert shared.infer("pair", [3, 7], outputs=outputs).json()["outputs"] == [
        {"name": "OUT", "datatype": "BYTES", "shape": [1], "data": ["7:1"]}
    ]


def test_an_empty_tensor_goes_in_and_out(shared: Running) -> None:
    entry = {"name": "IN", "shape": [0, 2], "datatype": "INT32", "data": []}
    outputs = [{"name": "OUT", "parameters": {"binary_data": True}}]
    answer = shared.http.post("/v2/models/any_INT32/infer", json={"inputs": [entry], "outputs": outputs})
    assert answer.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in answer.headers
    assert answer.json()["outputs"] == [
        {"name": "OUT", "datatype": "INT32", "shape": [0, 2], "parameters": {"binary_data_size": 0}}
    ]


@pytest.mark.parametrize("datatype", [DataType.FP16, DataType.BF16])
def test_half_precision_cannot_leave_as_json(shared: Running, datatype: DataType) -> None:
    entry = {
        "name": "IN",
        "shape": [1, 1],
        "datatype": datatype.name,
        "parameters": {"binary_data_size": 2},
    }
    document = json.dumps({"inputs": [entry]}).encode()
    answer = shared.http.post(
        f"/v2/models/any_{datatype.name}/infer",
        content=document + b"\x00\x00",
        headers={"Inference-Header-Content-Length": str(len(document))},
    )
    assert answer.status_code == 400
    assert answer.json() == {
        "error": f"sending {datatype.name} data via JSON is not supported. "
        "Please use the binary data format for output"
    }


@pytest.mark.parametrize(
    ("model", "status", "error"),
    [
        ("failing", 400, "this model never answers"),
        ("twice", 500, "expected a single response, got 2"),
        ("never", 500, "expected a single response, got 0"),
        ("decoupled", 501, "HTTP end point doesn't support models with decoupled transaction policy"),
        ("nope", 400, "Request for unknown model: 'nope' is not found"),
        ("versions/versions/2", 404, "Request for unknown model: 'versions' version 2 is not found"),
        (
            "pair/versions/99999999999999999999",
            400,
            "failed to get model version from specified version string '99999999999999999999' (details: stol), "
            "version should be an integral value > 0",
        ),
    ],
)
def test_a_request_that_fails_says_why(shared: Running, model: str, status: int, error: str) -> None:
    answer = shared.infer(model)
    assert (answer.status_code, answer.json()) == (status, {"error": error})


def test_a_decoupled_model_is_refused_before_its_body_is_read(shared: Running) -> None:
    assert shared.http.post("/v2/models/decoupled/infer", content=b"not json").status_code == 501


def test_a_version_may_be_asked_for(shared: Running) -> None:
    assert shared.infer("versions").json()["model_version"] == "3"
    assert shared.infer("versions/versions/1").json()["model_version"] == "1"


def test_a_models_name_may_be_quoted_in_the_address(shared: Running) -> None:
    assert shared.infer("p%61ir").json()["model_name"] == "pair"


def test_an_unknown_content_coding_is_refused_with_those_that_are_known(shared: Running) -> None:
    answer = shared.http.post("/v2/models/pair/infer", content=b"x", headers={"Content-Encoding": "br"})
    assert (answer.status_code, answer.json()) == (501, {"error": "Unsupported compression type"})
    assert answer.headers["accept-encoding"] == "gzip, deflate"


# The other endpoints.


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/v2/health/live", 200, ""),
        ("GET", "/v2/health/ready", 200, ""),
        ("GET", "/v2/health/live?x=1", 200, ""),
        ("GET", "/v2/models/pair/ready", 200, ""),
        ("GET", "/v2/models/versions/versions/1/ready", 200, ""),
        ("GET", "/v2/models/nope/ready", 400, "Request for unknown model: 'nope' is not found"),
        (
            "GET",
            "/v2/models/versions/versions/2/ready",
            404,
            "Request for unknown model: 'versions' version 2 is not found",
        ),
        ("GET", "/v2/models/nope", 400, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/config", 400, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/stats", 400, "requested model 'nope' is not available"),
        (
            "GET",
            "/v2/models/pair/versions/2/stats",
            400,
            "requested model version is not available for model 'pair'",
        ),
        ("GET", "/", 404, "Not Found"),
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/nothing", 404, "Not Found"),
        ("GET", "/v2/models/pair/", 404, "Not Found"),
        ("GET", "/v2/models/pair/versions/x", 404, "Not Found"),
        ("GET", "/v2/models/pair/versions/1/versions/1", 404, "Not Found"),
        ("POST", "/v2/models/pair/versions/x/infer", 404, "Not Found"),
        ("POST", "/v2/models/pair/infer/", 404, "Not Found"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("POST", "/v2/models/pair", 405, "Method Not Allowed"),
        ("POST", "/v2/models/stats", 405, "Method Not Allowed"),
        ("GET", "/v2/models/pair/infer", 405, "Method Not Allowed"),
        ("PUT", "/v2/models/pair/versions/1/infer", 405, "Method Not Allowed"),
        ("GET", "/v2/repository/index", 405, "Method Not Allowed"),
        ("DELETE", "/v2/health/live", 405, "Method Not Allowed"),
        (
            "POST",
            "/v2/repository/x/models/pair/load",
            501,
            "'repository_name' specification is not supported",
        ),
        (
            "POST",
            "/v2/repository/x/models/pair/unload",
            501,
            "'repository_name' specification is not supported",
        ),
    ],
)
def test_an_address_answers_as_tritons_does(
    shared: Running, method: str, path: str, status: int, body: str
) -> None:
    answer = shared.http.request(method, path)
    expected = json.dumps({"error": body}, separators=(",", ":")) if body else ""
    assert (answer.status_code, answer.text) == (status, expected)


def test_wrong_methods_are_refused_for_head_too(shared: Running) -> None:
    answer = shared.http.head("/v2/health/live")
    assert (answer.status_code, answer.text) == (405, "")


@pytest.mark.parametrize(
    ("body", "count", "error"),
    [
        (b"", 3, ""),
        (b"{}", 3, ""),
        (b'{"ready":false}', 3, ""),
        (b'{"ready":true}', 1, ""),
        (b'{"ready":1}', 0, "Invalid value for 'ready': expected a boolean"),
        (b"nonsense", 0, "failed to parse the request JSON buffer: "),
    ],
)
@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/some/index"])
def test_the_repository_index_may_be_of_ready_models_alone(
    shared: Running, path: str, body: bytes, count: int, error: str
) -> None:
    answer = shared.http.post(path, content=body)
    if error:
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(error)
        return
    states = {entry.get("state") for entry in answer.json()}
    assert len(states) == count
    assert "READY" in states


def test_models_are_loaded_and_unloaded_where_that_is_allowed() -> None:
    with running() as own:
        base = "/v2/repository/models/m"
        refusal = {"error": "explicit model load / unload is not allowed if polling is enabled"}
        for action in ("load", "unload"):
            answer = own.http.post(f"{base}/{action}")
            assert (answer.status_code, answer.json()) == (503, refusal)
        own.server.is_controlled = True
        bodies = [("load", b""), ("unload", b"{}"), ("unload", b'{"parameters":{"unload_dependents":true}}')]
        for action, body in bodies:
            answer = own.http.post(f"{base}/{action}", content=body)
            assert (answer.status_code, answer.text) == (200, "")
        assert own.server.controlled == [("load", "m"), ("unload", "m"), ("unload with dependents", "m")]
        for body, status in (
            (b"nonsense", 400),
            (b'{"parameters":[]}', 400),
            (b'{"parameters":{"other":1}}', 500),
            (b'{"parameters":{"config":{}}}', 400),
            (b'{"parameters":{"file:1/model.py":"not base64!"}}', 400),
        ):
            assert own.http.post(f"{base}/load", content=body).status_code == status
        assert len(own.server.controlled) == 3


def test_statistics_are_of_all_models_of_one_or_of_one_version(shared: Running) -> None:
    def found(path: str) -> list[tuple[str, str]]:
        return [(model["name"], model["version"]) for model in shared.http.get(path).json()["model_stats"]]

    assert ("pair", "1") in found("/v2/models/stats")
    assert found("/v2/models/versions/stats") == [("versions", "1"), ("versions", "3")]
    assert found("/v2/models/versions/versions/3/stats") == [("versions", "3")]


def test_health_follows_the_server() -> None:
    with running() as own:
        own.server.live = own.server.ready = False
        own.server.unavailable_versions.add(("pair", 1))
        assert [own.http.get(f"/v2/health/{kind}").status_code for kind in ("live", "ready")] == [400, 400]
        not_ready = own.http.get("/v2/models/pair/ready")
        assert (not_ready.status_code, not_ready.json()) == (400, {"error": "Model version not ready"})
        own.server.is_exiting = True
        for kind in ("live", "ready"):
            answer = own.http.get(f"/v2/health/{kind}")
            assert (answer.status_code, answer.json()) == (503, {"error": "Server exiting"})


def test_a_bug_of_ours_is_logged_and_answered_as_such(caplog: pytest.LogCaptureFixture) -> None:
    with running() as own:
        own.server.figures = cast(Any, None)
        own.server.statistics_by_model = cast(Any, None)
        answer = own.http.get("/v2/models/stats")
        assert (answer.status_code, answer.json()) == (500, {"error": "Internal Server Error"})
        metrics = httpx.get(f"http://127.0.0.1:{own.frontend.metrics_port}/metrics")
        assert metrics.status_code == 500
        own.server.submit = cast(Any, None)  # type: ignore[method-assign]
        assert own.infer("pair").json() == {"error": "Internal Server Error"}
    assert [record.name for record in caplog.records] == ["cantata.http"] * 3


def test_the_metrics_port_has_metrics_and_nothing_else(shared: Running) -> None:
    address = f"http://127.0.0.1:{shared.frontend.metrics_port}"
    for path in ("/metrics", "/metrics/"):
        answer = httpx.get(address + path)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert "# TYPE nv_inference_count counter" in answer.text
    nothing = httpx.get(address + "/v2")
    assert (nothing.status_code, nothing.text) == (200, "")


# Options.


def test_restricted_endpoints_need_their_header() -> None:
    apis = (RestrictedApi(frozenset({"inference", "statistics"}), "X-Key", "secret"),)
    with running(restricted_apis=apis) as own:
        refusal = (403, {"error": "This API is restricted, expecting header 'X-Key'"})
        for answer in (own.infer("pair"), own.http.get("/v2/models/stats")):
            assert (answer.status_code, answer.json()) == refusal
        assert own.http.get("/v2").status_code == 200
        own.http.headers["X-Key"] = "wrong"
        assert own.infer("pair").status_code == 403
        own.http.headers["x-key"] = "secret"
        assert own.infer("pair").status_code == 200
        assert own.http.get("/v2/models/stats").status_code == 200


def test_headers_that_match_become_parameters() -> None:
    with running(header_forward_pattern="^x-.*|^prio") as own:
        own.http.headers["X-Team"] = "blue"
        assert own.infer("with_parameters").json()["parameters"] == {"X-Team": "blue"}
        own.http.headers["priority"] = "1"
        answer = own.infer("pair")
        assert answer.status_code == 400
        assert (
            answer.json()["error"]
            == "Header 'priority' is reserved for Triton usage and cannot be forwarded."
        )


def test_a_header_pattern_may_ask_for_the_case() -> None:
    with running(header_forward_pattern="(?-i)^X-") as own:
        own.http.headers.update({"X-Team": "blue", "x-other": "red"})
        assert own.infer("with_parameters").json()["parameters"] == {"X-Team": "blue"}


def test_what_is_over_the_size_limit_is_refused_and_the_connection_goes_on() -> None:
    with running(max_input_size=1000) as own:
        entry = {"name": "IN", "shape": [2], "datatype": "INT32", "data": [1, 2]}
        body = json.dumps({"inputs": [entry], "padding": "x" * 200_000}).encode()
        chunks = [body[start : start + 1000] for start in range(0, len(body), 1000)]
        for content in (body, iter(chunks)):
            answer = own.http.post("/v2/models/pair/infer", content=content)
            assert answer.status_code == 400
            assert answer.json()["error"] == (
                f"request JSON size of {len(body)} bytes exceeds the maximum allowed input size of 1000 bytes. "
                "Use --http-max-input-size to increase the limit."
            )
        packed = own.http.post(
            "/v2/models/pair/infer", content=gzip.compress(body), headers={"Content-Encoding": "gzip"}
        )
        assert packed.status_code == 400
        assert "1000 bytes" in packed.json()["error"]
        assert own.infer("pair").status_code == 200


def test_large_binary_tensors_are_not_limited() -> None:
    with running(max_input_size=1000) as own, triton.InferenceServerClient(own.address) as client:
        array = np.random.default_rng(1).random((500, 1000), dtype=np.float32)
        given = triton.InferInput("IN", [500, 1000], "FP32").set_data_from_numpy(array)
        np.testing.assert_array_equal(client.infer("any_FP32", [given]).as_numpy("OUT"), array)


# Threads, connections, endings.


def test_quick_models_run_on_the_front_ends_thread_and_others_elsewhere() -> None:
    with running() as own:
        assert own.infer("pair").status_code == 200
        assert own.server.submitted_on[-1] == "cantata-http"
        assert own.infer("elsewhere").json()["outputs"][0]["data"] == [1, 2]


def test_a_slow_model_does_not_hold_up_its_neighbours() -> None:
    with running() as own, own.socket() as slow:
        slow.sendall(infer_bytes("gated"))
        assert own.gate.entered.acquire(timeout=20)
        assert own.infer("pair").status_code == 200
        assert own.http.get("/v2/health/live").status_code == 200
        own.gate.opened.set()
        assert slow.recv(1000).startswith(b"HTTP/1.1 200 OK")


def infer_bytes(model: str, headers: bytes = b"") -> bytes:
    entry = {"name": "IN", "shape": [2], "datatype": "INT32", "data": [1, 2]}
    body = json.dumps({"inputs": [entry]}).encode()
    head = b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: h\r\n%sContent-Length: %d\r\n\r\n"
    return head % (model.encode(), headers, len(body)) + body


def test_a_client_that_disconnects_cancels_its_request() -> None:
    with running() as own:
        with own.socket() as client:
            client.sendall(infer_bytes("gated"))
            assert own.gate.entered.acquire(timeout=20)
        (request,) = own.server.submitted
        cancelled = threading.Event()
        request.cancellation.add_listener(cancelled, cancelled.set)
        assert cancelled.wait(20)
        own.gate.opened.set()
        assert own.infer("pair").status_code == 200


def test_requests_sent_ahead_on_one_connection_are_answered_in_order() -> None:
    with running() as own, own.socket() as client:
        client.sendall(
            infer_bytes("gated") + infer_bytes("pair") + infer_bytes("failing", b"Connection: close\r\n")
        )
        own.gate.opened.set()
        answers = b"".join(iter(lambda: client.recv(65536), b""))
    assert [answers.index(name) for name in (b'"gated"', b'"pair"', b"never answers")] == sorted(
        answers.index(name) for name in (b'"gated"', b'"pair"', b"never answers")
    )
    assert answers.count(b"HTTP/1.1 ") == 3


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"POST /v2/models/pair/infer HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_bytes_that_are_not_http_are_refused_and_harm_nobody(shared: Running, data: bytes) -> None:
    with shared.socket() as client:
        client.sendall(data)
        assert client.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert shared.infer("pair").status_code == 200


def test_a_body_that_never_comes_whole_is_dropped_with_its_connection(shared: Running) -> None:
    count = len(shared.server.submitted)
    with shared.socket() as client:
        client.sendall(infer_bytes("pair")[:-5])
    assert shared.infer("pair").status_code == 200
    assert len(shared.server.submitted) == count + 1


def test_stopping_finishes_what_is_in_flight_and_refuses_what_is_new() -> None:
    with running() as own, own.socket() as busy, own.socket() as idle:
        busy.sendall(infer_bytes("gated"))
        assert own.gate.entered.acquire(timeout=20)
        own.frontend.stop_accepting()
        refused = own.infer("pair")
        assert (refused.status_code, refused.json()) == (503, {"error": "Server not ready"})
        assert own.http.get("/v2/health/live").status_code == 200
        closing = threading.Thread(target=own.frontend.close, args=(20,))
        closing.start()
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            own.socket()
        own.gate.opened.set()
        answer = b"".join(iter(lambda: busy.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        closing.join(20)
        assert not closing.is_alive()


def test_closing_cuts_off_what_takes_too_long() -> None:
    with running() as own, own.socket() as busy:
        busy.sendall(infer_bytes("gated"))
        assert own.gate.entered.acquire(timeout=20)
        own.frontend.close(0.01)
        with suppress(ConnectionResetError):
            assert busy.recv(1) == b""
        (request,) = own.server.submitted
        assert request.cancellation.is_cancelled
        own.gate.opened.set()


def test_a_port_in_use_is_told_with_its_address() -> None:
    with running() as own:
        second = HttpServer(cast("Server", own.server), HttpOptions(address="127.0.0.1", port=own.port))
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{own.port}"):
            second.start()
        second.close()


def test_a_header_pattern_that_is_none_is_told_at_the_start() -> None:
    broken = HttpServer(
        cast("Server", FakeServer()), HttpOptions(address="127.0.0.1", port=0, header_forward_pattern="(")
    )
    with pytest.raises(re.error):
        broken.start()
    broken.close()


def test_either_port_may_be_switched_off() -> None:
    with running(metrics_port=None) as own:
        assert own.frontend.metrics_port is None
        assert own.infer("pair").status_code == 200
    metrics_alone = HttpServer(
        cast("Server", FakeServer()), HttpOptions(address="127.0.0.1", port=None, metrics_port=0)
    )
    metrics_alone.start()
    try:
        assert metrics_alone.port is None
        assert httpx.get(f"http://127.0.0.1:{metrics_alone.metrics_port}/metrics").status_code == 200
    finally:
        metrics_alone.close()


def test_an_answer_is_complete_before_the_model_may_use_its_memory_again() -> None:
    buffer = np.zeros(1 << 20, dtype=np.uint8)

    def reuse(request: InferenceRequest) -> Iterator[InferenceResponse]:
        buffer[:] = request.inputs["IN"].array.reshape(-1)[0]
        yield respond_with(request, {"OUT": Tensor(DataType.UINT8, buffer.reshape(1, -1))})
        buffer[:] = 0

    config = model_config("reuse", {"IN": (DataType.UINT8, (-1, -1))}, {"OUT": (DataType.UINT8, (-1, -1))})
    server = FakeServer(FakeModel(config, reuse, is_quick=False))
    frontend = HttpServer(cast("Server", server), HttpOptions(address="127.0.0.1", port=0))
    frontend.start()
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{frontend.port}") as client:
            given = triton.InferInput("IN", [1, 1], "UINT8")
            given.set_data_from_numpy(np.full((1, 1), 7, dtype=np.uint8))
            assert client.infer("reuse", [given]).as_numpy("OUT").min() == 7
    finally:
        frontend.close()
        server.close()
