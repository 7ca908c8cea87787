"""The generate endpoints on real sockets: whole answers, streams, errors, and readers that are slow or leave."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import httpx
import numpy as np
import pytest

from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import internal_error
from cantata.runtime.frontends.http.generate import MAX_UNREAD
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor
from tests.support.fake_server import FakeModel, FakeServer, model_config, respond_with

if TYPE_CHECKING:
    from cantata.runtime.server import Server


def countdown(request: InferenceRequest) -> Iterator[InferenceResponse]:
    """As many responses as the input says; a parameter `fail_at` makes one of them an error."""
    count = int(request.inputs["COUNT"].array.reshape(-1)[0])
    for number in range(count):
        if (request.parameters or {}).get("fail_at") == number:
            raise internal_error("failed on purpose")
        yield respond_with(
            request,
            {"NUMBER": Tensor(DataType.INT32, np.array([number], dtype=np.int32))},
            request.parameters,
        )


class Endless:
    """A decoupled model that sends large responses until its request is cancelled."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended = threading.Event()

    def compute(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        text = np.empty(1, dtype=object)
        text[0] = b"x" * 100_000
        while not request.cancellation.is_cancelled:
            request.sender.wait_until_ready()
            self.sent += 1
            yield respond_with(request, {"NUMBER": Tensor(DataType.BYTES, text)})
        self.ended.set()


@pytest.fixture
def endless() -> Endless:
    return Endless()


@pytest.fixture
def client(endless: Endless) -> Iterator[httpx.Client]:
    inputs, outputs = {"COUNT": (DataType.INT32, (1,))}, {"NUMBER": (DataType.INT32, (1,))}
    server = FakeServer(
        FakeModel(model_config("single", inputs, outputs), countdown),
        FakeModel(model_config("stream", inputs, outputs, decoupled=True), countdown, is_quick=False),
        FakeModel(model_config("endless", inputs, outputs, decoupled=True), endless.compute, is_quick=False),
    )
    frontend = HttpServer(cast("Server", server), HttpOptions(address="127.0.0.1", port=0))
    frontend.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{frontend.port}/v2/models", timeout=20) as http:
        yield http
    frontend.close()
    server.close()


def events(text: str) -> list[dict[str, object]]:
    assert text.endswith("\n\n") or not text
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-1]]


def test_generate_answers_with_one_document(client: httpx.Client) -> None:
    for path in ("/single/generate", "/single/versions/1/generate", "/stream/generate"):
        answer = client.post(path, json={"COUNT": 1, "id": "x", "p": "q"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "model_name": path.split("/")[1],
            "model_version": "1",
            "id": "x",
            "p": "q",
            "NUMBER": 0,
        }


@pytest.mark.parametrize("count", [0, 2])
def test_generate_wants_one_response(client: httpx.Client, count: int) -> None:
    answer = client.post("/stream/generate", json={"COUNT": count})
    assert answer.json() == {
        "error": "generate expects model to produce exactly 1 response, "
        "use generate stream for model that generates various number of responses"
    }


def test_a_stream_has_an_event_for_each_response(client: httpx.Client) -> None:
    answer = client.post("/stream/generate_stream", json={"COUNT": 300})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert [event["NUMBER"] for event in events(answer.text)] == list(range(300))


def test_a_stream_of_no_responses_is_empty(client: httpx.Client) -> None:
    answer = client.post("/stream/generate_stream", json={"COUNT": 0})
    assert (answer.status_code, answer.text) == (200, "")


@pytest.mark.parametrize(("fail_at", "status"), [(0, 500), (2, 200)])
def test_the_status_tells_of_the_first_response_alone(
    client: httpx.Client, fail_at: int, status: int
) -> None:
    answer = client.post("/stream/generate_stream", json={"COUNT": 3, "parameters": {"fail_at": fail_at}})
    assert answer.status_code == status
    assert len(events(answer.text)) == fail_at + 1
    assert events(answer.text)[-1] == {"error": "failed on purpose"}


@pytest.mark.parametrize("path", ["/single/generate", "/single/generate_stream"])
def test_what_cannot_be_submitted_is_an_error_document(client: httpx.Client, path: str) -> None:
    for body, status, error in (
        (b"{", 400, "failed to parse the request JSON buffer"),
        (b'{"COUNT":[1,2]}', 400, "The schema can not convert input 'COUNT'"),
        (b"{}", 400, "expected 1 inputs but got 0 inputs for model 'single'"),
    ):
        answer = client.post(path, content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
        assert error in answer.json()["error"]
    packed = client.post(path, content=b"x", headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 400
    assert packed.json() == {"error": "Unsupported content-encoding, only 'identity' is supported."}
    assert client.post(path.replace("single", "nope"), json={}).status_code == 400
    assert client.get(path).status_code == 405


def test_a_client_that_leaves_a_stream_ends_it(client: httpx.Client, endless: Endless) -> None:
    with client.stream("POST", "/endless/generate_stream", json={"COUNT": 1}) as answer:
        next(answer.iter_bytes())
        assert not endless.ended.is_set()
    assert endless.ended.wait(20)


def test_a_model_waits_for_a_reader_that_is_far_behind(client: httpx.Client, endless: Endless) -> None:
    with client.stream("POST", "/endless/generate_stream", json={"COUNT": 1}) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        # What the sockets between them hold comes on top of what the server does.
        before = -1
        while endless.sent != before:
            before = endless.sent
            threading.Event().wait(0.2)
        assert MAX_UNREAD <= endless.sent < 4 * MAX_UNREAD
        for _ in range(20_000):
            next(chunks)
            if endless.sent > before:
                break
        assert endless.sent > before
