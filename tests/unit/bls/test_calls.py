"""BLS: a model that calls others, waiting or awaiting."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import StatusCode, internal_error
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.tensor import Tensor
from tests.support.fake_services import echo
from tests.support.python_models import Client, PythonModelHost, request_with

# `{call}` makes `reply` from `inner`; its text, parameters or tensors are the model's answer.
PRELUDE = """
import asyncio
import numpy as np
import triton_python_backend_utils as pb_utils

def inner_of(request, **fields):
    values = pb_utils.get_input_tensor_by_name(request, "IN")
    fields = {"model_name": "callee", "inputs": [pb_utils.Tensor("OUT", values.as_numpy())], **fields}
    return pb_utils.InferenceRequest(**fields)

def passed_on(reply):
    if reply.has_error():
        return pb_utils.InferenceResponse(error=reply.error())
    return pb_utils.InferenceResponse(reply.output_tensors())

class TritonPythonModel:
"""

BLOCKING = """
    def execute(self, requests):
        return [passed_on(inner_of(request{fields}).exec()) for request in requests]
"""
AWAITING = """
    async def execute(self, requests):
        replies = await asyncio.gather(*[inner_of(request{fields}).async_exec() for request in requests])
        return [passed_on(reply) for reply in replies]
"""
RUNNING = """
    def execute(self, requests):
        async def call_all():
            return await asyncio.gather(*[inner_of(request{fields}).async_exec() for request in requests])
        return [passed_on(reply) for reply in asyncio.run(call_all())]
"""
WAYS = pytest.mark.parametrize(
    "way", [BLOCKING, AWAITING, RUNNING], ids=["exec", "async_exec", "asyncio.run"]
)


def infer(host: PythonModelHost, way: str, fields: str = "", **of_request: object) -> Client:
    return host.infer(host.load(PRELUDE + way.format(fields=fields)), **of_request)


def from_thread(request: InferenceRequest) -> None:
    threading.Thread(target=echo, args=[request]).start()


@WAYS
@pytest.mark.parametrize("answer", [echo, from_thread])
def test_a_call_gives_the_other_models_tensors_without_a_copy(
    host: PythonModelHost, way: str, answer: object
) -> None:
    host.services.models["callee"] = answer  # type: ignore[assignment]
    instance = host.load(PRELUDE + way.format(fields=""))
    batch = [request_with([[value]]) for value in (1.0, 2.0, 3.0)]
    host.run(instance, [request for request, _ in batch])
    for value, (_, client) in zip((1.0, 2.0, 3.0), batch, strict=True):
        assert client.values() == [[[value]]]
        passed = [tensor.array for call in host.services.submitted for tensor in call.inputs.values()]
        assert any(np.shares_memory(client.response.outputs["OUT"].array, array) for array in passed)


@WAYS
def test_a_call_carries_its_fields(host: PythonModelHost, way: str) -> None:
    host.services.models["callee"] = echo
    fields = (
        ", request_id='7', correlation_id='room', flags=1, timeout=9, priority=2, model_version=3, "
        "requested_output_names=['OUT'], parameters={'k': 1}"
    )
    infer(host, way, fields).wait()
    [call] = host.services.submitted
    assert (call.id, call.correlation_id, call.flags, call.timeout_us, call.priority, call.model_version) == (
        "7",
        "room",
        1,
        9,
        2,
        3,
    )
    assert (call.requested_outputs, call.parameters) == (("OUT",), {"k": 1})


@WAYS
def test_a_model_that_is_not_there_is_an_error_response(host: PythonModelHost, way: str) -> None:
    error = infer(host, way).error
    assert (error.code, error.message) == (
        StatusCode.NOT_FOUND,
        "Failed for execute the inference request. Model 'callee' is not ready.",
    )


@WAYS
def test_a_decoupled_model_needs_to_be_called_as_one(host: PythonModelHost, way: str) -> None:
    host.services.models["callee"] = echo
    host.services.decoupled.add("callee")
    assert infer(host, way).error.message == (
        "Model callee is using the decoupled. The current BLS request call doesn't support models using the "
        "decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for "
        "decoupled models."
    )


def refuse(request: InferenceRequest) -> None:
    raise internal_error("unexpected inference input")


def fail(request: InferenceRequest) -> None:
    request.fail(internal_error("it broke"))


@WAYS
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuse, "Model callee - Error when running inference: unexpected inference input"),
        (fail, "it broke"),
    ],
)
def test_whatever_is_wrong_with_a_call_is_a_response(
    host: PythonModelHost, way: str, answer: object, message: str
) -> None:
    host.services.models["callee"] = answer  # type: ignore[assignment]
    assert infer(host, way).error.message == message


@WAYS
def test_an_input_given_twice_is_an_error_response(host: PythonModelHost, way: str) -> None:
    host.services.models["callee"] = echo
    fields = ", inputs=[pb_utils.Tensor('A', np.ones(1)), pb_utils.Tensor('A', np.ones(1))]"
    assert infer(host, way, fields).error.message == (
        "Model callee - Error when running inference: input 'A' already exists in request"
    )


@WAYS
def test_a_call_inherits_cancellation_and_deadline(host: PythonModelHost, way: str) -> None:
    host.services.models["callee"] = echo
    outer: list[InferenceRequest] = []

    def cancel_outer(request: InferenceRequest) -> None:
        outer[0].cancellation.cancel()
        seen.append((request.cancellation.is_cancelled, request.deadline_ns))
        echo(request)

    seen: list[tuple[bool, int]] = []
    host.services.models["callee"] = cancel_outer
    instance = host.load(PRELUDE + way.format(fields=""))
    deadline_ns = monotonic_ns() + 10**12
    request, client = request_with(deadline_ns=deadline_ns)
    outer.append(request)
    host.run(instance, [request])
    client.wait()
    assert seen == [(True, deadline_ns)]


@WAYS
def test_calls_of_a_batch_are_cancelled_with_no_single_request(host: PythonModelHost, way: str) -> None:
    host.services.models["callee"] = echo
    instance = host.load(PRELUDE + way.format(fields=""))
    batch = [request_with() for _ in range(2)]
    batch[0][0].cancellation.cancel()
    host.run(instance, [request for request, _ in batch])
    for _, client in batch:
        client.wait()
    assert not any(call.cancellation.is_cancelled for call in host.services.submitted)


@WAYS
def test_the_trace_tells_which_request_of_a_batch_a_call_is_for(host: PythonModelHost, way: str) -> None:
    host.services.models["callee"] = echo
    instance = host.load(PRELUDE + way.format(fields=", trace=request.trace()"))
    batch = [request_with(deadline_ns=monotonic_ns() + number * 10**12) for number in (1, 2)]
    batch[0][0].cancellation.cancel()
    host.run(instance, [request for request, _ in batch])
    for _, client in batch:
        client.wait()
    calls = host.services.submitted
    assert [call.cancellation.is_cancelled for call in calls] == [True, False]
    assert [call.deadline_ns for call in calls] == [request.deadline_ns for request, _ in batch]


@WAYS
def test_a_batch_that_nobody_waits_for_makes_no_calls(host: PythonModelHost, way: str) -> None:
    host.services.models["callee"] = echo
    instance = host.load(PRELUDE + way.format(fields=""))
    batch = [request_with() for _ in range(2)]
    for request, _ in batch:
        request.cancellation.cancel()
    host.run(instance, [request for request, _ in batch])
    assert [client.error.code for _, client in batch] == [StatusCode.CANCELLED] * 2
    assert not host.services.submitted


@WAYS
@pytest.mark.parametrize(("given_us", "outer_us"), [(0, 10**9), (10**12, 10**9), (10**6, 10**9), (10**6, 0)])
def test_a_call_has_what_is_left_of_its_caller_s_timeout(
    host: PythonModelHost, way: str, given_us: int, outer_us: int
) -> None:
    host.services.models["callee"] = echo
    instance = host.load(PRELUDE + way.format(fields=f", timeout={given_us}"))
    request, client = request_with(timeout_us=outer_us)
    request.received_ns = monotonic_ns() - 10**9
    host.run(instance, [request])
    client.wait()
    [call] = host.services.submitted
    if given_us == 10**6:
        assert call.timeout_us == given_us
    else:
        assert 0 < call.timeout_us <= outer_us - 10**6
    if given_us:
        # The end of a time of its own is not its caller's end.
        call.cancellation.expire()
        assert not request.cancellation.is_cancelled


def test_an_instance_shows_that_it_waits_for_others(host: PythonModelHost) -> None:
    host.services.models["callee"] = echo
    waits = []
    for way in (BLOCKING, RUNNING, AWAITING):
        instance = host.load(PRELUDE + way.format(fields=""))
        assert not instance.makes_blocking_calls
        host.infer(instance).wait()
        waits.append(instance.makes_blocking_calls)
    assert waits == [True, True, False]


def test_awaited_calls_are_under_way_together_and_across_requests(host: PythonModelHost) -> None:
    host.services.models["callee"] = echo
    host.services.holding.add("callee")
    instance = host.load(
        PRELUDE
        + """
    async def execute(self, requests):
        [request] = requests
        replies = [inner_of(request).async_exec() for _ in range(3)]
        return [passed_on((await asyncio.gather(*replies))[2])]
"""
    )
    clients = [host.infer(instance, [[value]]) for value in (1.0, 2.0)]
    instance._loop.submit(_nothing()).result(10)  # type: ignore[union-attr]
    assert len(host.services.held) == 6
    host.services.release()
    assert [client.values() for client in clients] == [[[[1.0]]], [[[2.0]]]]


async def _nothing() -> None:
    """Done when everything that was scheduled before has had its turn."""


def test_a_timeout_of_the_models_own_cancels_its_call(host: PythonModelHost) -> None:
    host.services.models["callee"] = echo
    host.services.holding.add("callee")
    client = infer(
        host,
        """
    async def execute(self, requests):
        try:
            await asyncio.wait_for(inner_of(requests[0]).async_exec(), timeout=0.001)
        except TimeoutError:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError("too slow"))]
""",
    )
    assert client.error.message == "too slow"
    [call] = host.services.held
    assert call.cancellation.is_cancelled
    host.services.release()


def test_an_executor_may_make_the_call(host: PythonModelHost) -> None:
    host.services.models["callee"] = echo
    client = infer(
        host,
        """
    async def execute(self, requests):
        loop = asyncio.get_running_loop()
        return [passed_on(await loop.run_in_executor(None, inner_of(requests[0]).exec))]
""",
    )
    assert client.values() == [[[1.0, 2.0]]]


def test_a_thread_of_the_model_may_call_and_log(
    host: PythonModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.services.models["callee"] = echo
    client = infer(
        host,
        """
    def execute(self, requests):
        import threading
        replies = []
        def work():
            pb_utils.Logger.log_error("from a thread")
            replies.append(passed_on(inner_of(requests[0]).exec()))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return replies
""",
    )
    assert client.values() == [[[1.0, 2.0]]]
    assert [record.name for record in caplog.records] == ["cantata.model.model"]


@pytest.mark.parametrize("hook", ["initialize(self, args)", "finalize(self)"])
def test_calls_are_refused_outside_execute(
    host: PythonModelHost, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    host.services.models["callee"] = echo
    source = (
        PRELUDE
        + f"""
    def {hook}:
        try:
            pb_utils.InferenceRequest(model_name="callee").exec()
        except pb_utils.TritonModelException as refused:
            pb_utils.Logger.log_error(str(refused))
    def execute(self, requests):
        pass
"""
    )
    host.close_instance(host.load(source))
    assert "BLS is only supported during the 'execute' function." in caplog.text


def count_to(limit: int) -> object:
    def answer(request: InferenceRequest) -> None:
        for value in range(limit):
            if request.cancellation.is_cancelled:
                break
            request.sender.wait_until_ready()
            tensor = Tensor(request.inputs["OUT"].datatype, np.full((1, 1), value, np.float32))
            request.respond(InferenceResponse("callee", 1, request.id, {"OUT": tensor}), False)
        request.respond(None, True)

    return lambda request: threading.Thread(target=answer, args=[request]).start()


SUM = """
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full((1, 1), total, np.float32))])]
"""
ITERATING = {
    "exec": """
    def execute(self, requests):
        responses = inner_of(requests[0]).exec(decoupled=True)
        total = sum(r.output_tensors()[0].as_numpy().item() for r in responses)
"""
    + SUM,
    "again": """
    def execute(self, requests):
        responses = inner_of(requests[0]).exec(decoupled=True)
        first = [r for r in responses]
        total = sum(r.output_tensors()[0].as_numpy().item() for r in responses)
        assert len(first) == 300
"""
    + SUM,
    "async_exec": """
    async def execute(self, requests):
        total = 0.0
        async for r in await inner_of(requests[0]).async_exec(decoupled=True):
            total += r.output_tensors()[0].as_numpy().item()
"""
    + SUM,
    "async_exec, for": """
    async def execute(self, requests):
        total = 0.0
        for r in await inner_of(requests[0]).async_exec(decoupled=True):
            total += r.output_tensors()[0].as_numpy().item()
"""
    + SUM,
}


@pytest.mark.parametrize("way", ITERATING.values(), ids=ITERATING)
def test_a_decoupled_models_responses_are_iterated(host: PythonModelHost, way: str) -> None:
    host.services.models["callee"] = count_to(300)  # type: ignore[assignment]
    host.services.decoupled.add("callee")
    assert infer(host, way).values() == [[[sum(range(300))]]]


@pytest.mark.parametrize(
    "leave",
    ["responses.cancel()", "del responses"],
)
def test_an_iterator_that_is_left_early_ends_the_call(host: PythonModelHost, leave: str) -> None:
    host.services.models["callee"] = count_to(10**9)  # type: ignore[assignment]
    host.services.decoupled.add("callee")
    client = infer(
        host,
        f"""
    def execute(self, requests):
        responses = inner_of(requests[0]).exec(decoupled=True)
        total = next(responses).output_tensors()[0].as_numpy().item()
        {leave}
{SUM}
""",
    )
    assert client.values() == [[[0.0]]]
    [call] = host.services.submitted
    ended = threading.Event()
    call.cancellation.add_listener("test", ended.set)
    assert ended.wait(10)


def test_an_iterator_starts_with_the_error_of_a_call_that_is_refused(host: PythonModelHost) -> None:
    client = infer(
        host,
        """
    def execute(self, requests):
        [reply] = inner_of(requests[0]).exec(decoupled=True)
        return [passed_on(reply)]
""",
    )
    assert client.error.message == "Failed for execute the inference request. Model 'callee' is not ready."


def test_other_models_readiness_and_the_models_own_directory_can_be_asked_for(
    host: PythonModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.services.models["callee"] = echo
    client = infer(
        host,
        """
    def execute(self, requests):
        pb_utils.Logger.log_error(pb_utils.get_model_dir())
        total = [pb_utils.is_model_ready("callee"), pb_utils.is_model_ready("nobody")] == [True, False]
"""
        + SUM,
    )
    assert client.values() == [[[1.0]]]
    assert str(host.directory / "model" / "1") in caplog.text
