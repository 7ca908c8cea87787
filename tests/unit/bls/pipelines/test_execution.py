"""Declared models in an instance: batches of several requests, answers apart, cancellation and unloading."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cantata.runtime.errors import StatusCode
from tests.support.fake_services import echo
from tests.support.python_models import CONFIG, DECOUPLED, PythonModelHost, request_with

HEAD = """
import asyncio
from cantata import bls

TENSORS = {"inputs": {"IN": bls.FP32[-1]}, "outputs": {"OUT": bls.FP32[-1]}}
WITH_ROWS = {"inputs": {"IN": bls.FP32[-1, -1]}, "outputs": {"OUT": bls.FP32[-1, -1]}}

"""
# Answers each row with how many rows it saw.
ROWS_SEEN = """
@bls.model(**TENSORS, max_batch_size=8)
{kind} rows_seen(IN):
    return {{"OUT": IN * 0 + len(IN)}}
"""
# Each request waits for the one after it; the last one ends them all but 9, which stays.
CHAIN = """
done = asyncio.Event()

@bls.model(**WITH_ROWS)
async def chain(IN):
    if IN[0, 0] == 1:
        done.set()
    await (asyncio.Event() if IN[0, 0] == 9 else done).wait()
    return {"OUT": IN + len(bls.request().id)}
"""


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonModelHost]:
    host = PythonModelHost(tmp_path_factory.mktemp("models"))
    yield host
    host.close()


@pytest.mark.parametrize("kind", ["def", "async def"])
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_rows_of_a_batch_are_one_call(shared_host: PythonModelHost, kind: str, sizes: list[int]) -> None:
    instance = shared_host.load(HEAD + ROWS_SEEN.format(kind=kind))
    pairs = [request_with([[0.0, 0.0]] * size) for size in sizes]
    shared_host.run(instance, [request for request, _ in pairs])
    expected = [[[float(sum(sizes))] * 2] * size for size in sizes]
    assert [client.values() for _, client in pairs] == [[rows] for rows in expected]
    shared_host.close_instance(instance)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ('{"OUT": IN[:1]}', StatusCode.INTERNAL, "output 'OUT' has 1 rows, the inputs have 2"),
        (
            '{"OUTT": IN}',
            StatusCode.INTERNAL,
            "model 'model': there is no output 'OUTT' (did you mean 'OUT'?)",
        ),
        ("1 / 0", StatusCode.INTERNAL, "ZeroDivisionError"),
        ("fail(bls.Error(bls.Code.NOT_FOUND, 'no such row'))", StatusCode.NOT_FOUND, "no such row"),
    ],
)
def test_a_batch_that_fails_fails_for_every_request(
    host: PythonModelHost, body: str, code: StatusCode, text: str
) -> None:
    fail = "def fail(error):\n    raise error\n\n"
    model = f"@bls.model(**TENSORS, max_batch_size=8)\ndef model(IN):\n    return {body}\n"
    instance = host.load(HEAD + fail + model)
    pairs = [request_with([[0.0]]) for _ in range(2)]
    host.run(instance, [request for request, _ in pairs])
    assert [client.error.code for _, client in pairs] == [code] * 2
    assert all(text in client.error.message for _, client in pairs)


def test_requests_of_a_batch_are_answered_apart(host: PythonModelHost) -> None:
    instance = host.load(HEAD + CHAIN)
    stays, _ = request_with([[9.0]])
    first, first_client = request_with([[0.0]], id="a")
    last, last_client = request_with([[1.0]], id="abc")
    host.run(instance, [stays, first, last])
    assert (first_client.values(), last_client.values()) == ([[[1.0]]], [[[4.0]]])
    stays.cancellation.cancel()


def test_a_cancelled_request_is_answered_as_such(host: PythonModelHost) -> None:
    instance = host.load(HEAD + CHAIN)
    request, client = request_with([[0.0]])
    host.run(instance, [request])
    request.cancellation.cancel()
    assert client.error.code is StatusCode.CANCELLED


def test_a_request_that_outlives_its_model_is_told_so(host: PythonModelHost) -> None:
    instance = host.load(HEAD + CHAIN)
    request, client = request_with([[0.0]])
    host.run(instance, [request])
    host.close_instance(instance)
    assert client.error.code is StatusCode.UNAVAILABLE
    assert client.error.message == "model 'model' was unloaded before it had answered"


def test_each_request_of_a_batch_has_its_calls_inherit_from_it(host: PythonModelHost) -> None:
    host.services.models["other"] = echo
    instance = host.load(
        HEAD + "@bls.model(**WITH_ROWS)\nasync def model(IN):\n"
        "    return {'OUT': (await bls.call('other', IN=IN)).IN}\n"
    )
    fields = [
        {"id": "a", "deadline_ns": 10**18, "priority": 1},
        {"id": "b", "correlation_id": "s", "flags": 1},
    ]
    pairs = [request_with([[0.0]], **each) for each in fields]
    host.run(instance, [request for request, _ in pairs])
    assert [client.values() for _, client in pairs] == [[[[0.0]]]] * 2
    calls = {call.id: call for call in host.services.submitted}
    assert (calls["a"].deadline_ns, calls["a"].priority) == (10**18, 1)
    assert (calls["b"].correlation_id, calls["b"].flags, calls["b"].deadline_ns) == ("s", 1, 0)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_model_that_yields_ends_with_the_error_that_it_raises(host: PythonModelHost, kind: str) -> None:
    model = (
        f"@bls.model(**WITH_ROWS)\n{kind} model(IN):\n    yield {{'OUT': IN}}\n"
        "    raise bls.Error(bls.Code.UNSUPPORTED, 'no more')\n"
    )
    instance = host.load(HEAD + model, DECOUPLED)
    client = host.infer(instance, [[1.0]])
    [answer, failure] = client.wait()
    assert answer.outputs["OUT"].array.tolist() == [[1.0]]
    assert failure.error is not None
    assert (failure.error.code, failure.error.message, client.finals) == (
        StatusCode.UNSUPPORTED,
        "no more",
        1,
    )


def test_the_configuration_is_completed_once_more_with_the_same_result(host: PythonModelHost) -> None:
    files = host.write(HEAD + ROWS_SEEN.format(kind="def"))
    completed = host.backend.complete_config(files, host.config(CONFIG))
    assert host.backend.complete_config(files, completed) == completed
