"""The HTTP endpoints of shared memory with bodies that the stock client would not send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from tests.support.fake_server import FakeServer

if TYPE_CHECKING:
    from cantata.runtime.server import Server


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    server = FakeServer()
    front_end = HttpServer(cast("Server", server), HttpOptions(address="127.0.0.1", port=0))
    front_end.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{front_end.port}") as made:
        yield made
    front_end.close()
    server.close()


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("region/r/register", b"{}", 400, "Shared memory register request has no 'key' field"),
        ("region/r/register", b'{"key":"k"}', 400, "Shared memory register request has no 'byte_size' field"),
        (
            "region/r/register",
            b'{"key":1,"byte_size":1}',
            400,
            "Unable to parse 'key': attempt to access JSON non-string as string",
        ),
        (
            "region/r/register",
            b'{"key":"k","byte_size":-1}',
            400,
            "Unable to parse 'byte_size': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        (
            "register",
            b'{"key":"k","byte_size":1}',
            400,
            "'region name' is necessary to register system shared memory region",
        ),
        (
            "region/r/register",
            b'{"key":"nokey","byte_size":1}',
            500,
            "Unable to open shared memory region: 'nokey'",
        ),
        ("region/r/register", b"[]", 400, "failed to parse the request JSON buffer: it is no object"),
    ],
)
def test_a_region_needs_a_name_a_key_and_a_size(
    client: httpx.Client, path: str, body: bytes, status: int, message: str
) -> None:
    answer = client.post(f"/v2/systemsharedmemory/{path}", content=body)
    assert (answer.status_code, answer.json()) == (status, {"error": message})


def test_shared_memory_has_its_methods(client: httpx.Client) -> None:
    assert client.post("/v2/systemsharedmemory/status").status_code == 405
    assert client.get("/v2/systemsharedmemory/unregister").status_code == 405
    assert client.get("/v2/systemsharedmemory/status/").status_code == 404
