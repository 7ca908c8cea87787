"""Calls that need a secret in their metadata, and metadata that becomes parameters."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from cantata.runtime.frontends.restricted_api import RestrictedApi
from tests.support.fake_server import FakeServer, identity_model
from tests.support.grpc_servers import four, grpc_server, stock_client

RESTRICTED = (
    RestrictedApi(frozenset({"inference", "metadata"}), "Key", "secret"),
    RestrictedApi(frozenset({"shared-memory"}), "other", "another"),
)
EXPECTED = "This protocol is restricted, expecting header 'triton-grpc-protocol-Key'"
SECRET = {"triton-grpc-protocol-key": "secret"}


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(identity_model("m"))


@pytest.fixture
def guarded(server: FakeServer) -> Iterator[triton.InferenceServerClient]:
    with grpc_server(server, restricted_protocols=RESTRICTED) as front_end, stock_client(front_end) as client:
        yield client


def refusal(call: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as refused:
        call(*arguments, **named)
    return refused.value.status(), refused.value.message()


@pytest.mark.parametrize("headers", [None, {"triton-grpc-protocol-key": "wrong"}, {"key": "secret"}])
def test_a_restricted_call_needs_the_secret(
    guarded: triton.InferenceServerClient, headers: dict[str, str] | None
) -> None:
    expected = ("StatusCode.UNAVAILABLE", EXPECTED)
    assert refusal(guarded.infer, "m", four(), headers=headers) == expected
    assert refusal(guarded.get_server_metadata, headers=headers) == expected


def test_who_knows_the_secret_is_served(guarded: triton.InferenceServerClient) -> None:
    assert guarded.infer("m", four(), headers=SECRET).as_numpy("OUT").tolist() == [0, 1, 2, 3]
    assert guarded.get_server_metadata(headers=SECRET).name == "triton"


def test_groups_that_are_not_named_are_open(guarded: triton.InferenceServerClient) -> None:
    assert guarded.is_server_live()
    assert guarded.get_model_config("m").config.name == "m"


def test_each_group_has_its_own_secret(guarded: triton.InferenceServerClient) -> None:
    assert refusal(guarded.get_system_shared_memory_status, headers=SECRET)[1] == (
        "This protocol is restricted, expecting header 'triton-grpc-protocol-other'"
    )


def test_streams_are_restricted_as_a_whole(guarded: triton.InferenceServerClient) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    guarded.start_stream(lambda result, error: answers.put(error or result))
    # Where the refusal has come already, the client sends no more.
    with suppress(InferenceServerException):
        guarded.async_stream_infer("m", four())
    assert answers.get(timeout=20).message() == EXPECTED
    guarded.stop_stream()


def test_metadata_that_matches_becomes_parameters(server: FakeServer) -> None:
    with grpc_server(server, header_forward_pattern="^X-") as front_end, stock_client(front_end) as client:
        client.infer("m", four(), headers={"x-user": "me", "y-user": "you"}, parameters={"own": 1})
        assert server.submitted[-1].parameters == {"own": 1, "x-user": "me"}
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error or result), headers={"x-user": "me"})
        client.async_stream_infer("m", four())
        answers.get(timeout=20)
        client.stop_stream()
        assert server.submitted[-1].parameters == {"x-user": "me"}


def test_reserved_names_are_not_forwarded(server: FakeServer) -> None:
    with (
        grpc_server(server, header_forward_pattern="priority") as front_end,
        stock_client(front_end) as client,
    ):
        assert refusal(client.infer, "m", four(), headers={"priority": "1"}) == (
            "StatusCode.INVALID_ARGUMENT",
            "Header 'priority' is reserved for Triton usage and cannot be forwarded.",
        )
