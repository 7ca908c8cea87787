"""Calls, streams and fan-out as a pipeline's own tests see them: with fakes, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata import bls
from cantata.bls import testing

Code = bls.Code


def run_with(body: Callable[[], Any], models: Mapping[str, testing.Fake] = {}, **request: Any) -> Any:
    """What `body`, a coroutine function, gives as the code of a pipeline."""
    result = []

    @bls.model(inputs={"X": bls.FP32[-1]}, outputs={"Y": bls.FP32[-1]})
    async def pipeline(X: np.ndarray) -> dict[str, np.ndarray]:
        result.append(await body())
        return {"Y": X}

    asyncio.run(testing.run(pipeline, X=[1], models=models, **request))
    return result[0]


def failing(code: Code, times: int = 10**9) -> Callable[..., dict[str, Any]]:
    """A model that fails the first `times` it is called, and then tells how often it was."""
    calls = []

    def fail(**inputs: Any) -> dict[str, Any]:
        calls.append(inputs)
        if len(calls) <= times:
            raise bls.Error(code, "not now")
        return {"CALLS": [len(calls)]}

    return fail


def test_tensors_are_had_by_attribute_and_by_name() -> None:
    async def body() -> Any:
        answer = await bls.call("model", {"in.0": [1.0]}, B=[2])
        return answer.SUM.tolist(), answer["names.0"].tolist(), list(answer)

    fake = lambda **inputs: {"SUM": inputs["in.0"] + inputs["B"], "names.0": sorted(inputs)}  # noqa: E731
    assert run_with(body, {"model": fake}) == ([3.0], [b"B", b"in.0"], ["SUM", "names.0"])


@pytest.mark.parametrize(
    ("look", "error", "text"),
    [
        (lambda answer: answer.BOXS, AttributeError, "there is no tensor 'BOXS' (did you mean 'BOXES'?)"),
        (lambda answer: answer["zzz"], KeyError, "there is no tensor 'zzz'; there are: BOXES, SCORES"),
        (lambda answer: answer.only, LookupError, "there are 2 tensors: BOXES, SCORES"),
    ],
)
def test_a_tensor_that_is_not_there_is_said_to_be_missing(
    look: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    async def body() -> Any:
        return await bls.call("model")

    answer = run_with(body, {"model": {"BOXES": [1], "SCORES": [2]}})
    with pytest.raises(error) as raised:
        look(answer)
    assert raised.value.args[0] == text


def test_the_only_tensor_needs_no_name() -> None:
    async def body() -> Any:
        return (await bls.call("model", outputs=("B",))).only.tolist()

    assert run_with(body, {"model": {"A": [1], "B": [2]}}) == [2]


def test_arrays_that_a_model_is_given_are_read_only() -> None:
    async def body() -> Any:
        (await bls.call("model")).A[0] = 5

    with pytest.raises(ValueError, match="read-only"):
        run_with(body, {"model": {"A": [1]}})


def test_a_failing_model_raises_an_error_with_its_code_and_name() -> None:
    async def body() -> Any:
        with pytest.raises(bls.CallError) as raised:
            await bls.call("model")
        return raised.value.code, raised.value.model, str(raised.value)

    assert run_with(body, {"model": failing(Code.NOT_FOUND)}) == (
        Code.NOT_FOUND,
        "model",
        "in a call of model 'model': not now",
    )


def test_a_model_without_a_fake_is_not_found() -> None:
    async def body() -> Any:
        with pytest.raises(bls.CallError, match="the test has no fake of it; its fakes: detector") as raised:
            await bls.call("detectr")
        return raised.value.code

    assert run_with(body, {"detector": {}}) is Code.NOT_FOUND


def test_a_call_outside_every_request_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="no request is being answered here"):
        asyncio.run(bls.call("model"))
    with pytest.raises(RuntimeError, match="no request is being answered here"):
        bls.request()


def test_a_fake_may_be_another_pipeline_with_the_same_fakes() -> None:
    @bls.model(inputs={"X": bls.FP32[-1]}, outputs={"Y": bls.FP32[-1]})
    async def inner(X: np.ndarray) -> dict[str, Any]:
        return {"Y": (await bls.call("leaf", X=X)).Y + len(bls.request().id)}

    async def body() -> Any:
        return (await bls.call("inner", X=np.array([1], np.float32))).Y.tolist()

    assert run_with(body, {"inner": inner, "leaf": lambda X: {"Y": X * 2}}, id="four") == [6.0]


# What a call inherits


@bls.model(inputs={"X": bls.INT32[1]}, outputs={"SEEN": bls.BYTES[-1]})
async def looks(X: np.ndarray) -> dict[str, Any]:
    request = bls.request()
    return {"SEEN": [request.id, f"{request.priority}", f"{dict(request.parameters)}", f"{request.sequence}"]}


def seen(answer: bls.Tensors) -> list[str]:
    return [element.decode() for element in answer.SEEN]


X = np.array([0], np.int32)
OUTER: dict[str, Any] = {
    "id": "r1",
    "priority": 2,
    "parameters": {"a": 1, "b": True},
    "sequence": bls.Sequence("s", start=True),
}


def test_a_call_inherits_what_the_request_carries() -> None:
    async def body() -> Any:
        return seen(await bls.call("looks", X=X))

    sequence = "Sequence(id='s', start=True, end=False)"
    assert run_with(body, {"looks": looks}, **OUTER) == ["r1", "2", "{'a': 1, 'b': True}", sequence]


def test_a_call_may_say_otherwise() -> None:
    async def body() -> Any:
        return seen(await bls.call("looks", X=X, priority=1, parameters={"b": "c"}, sequence=None))

    assert run_with(body, {"looks": looks}, **OUTER) == ["r1", "1", "{'a': 1, 'b': 'c'}", "None"]


def test_tasks_inherit_the_request() -> None:
    async def body() -> Any:
        answers = await asyncio.gather(bls.call("looks", X=X), asyncio.to_thread(lambda: bls.request().id))
        return seen(answers[0])[0], answers[1]

    assert run_with(body, {"looks": looks}, **OUTER) == ("r1", "r1")


# Timeouts, retries, fallbacks


def test_a_call_that_takes_too_long_times_out() -> None:
    cancelled = []

    async def hangs() -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def body() -> Any:
        with pytest.raises(bls.CallTimeout, match=r"no answer within 0\.01 s") as raised:
            await bls.call("model", timeout=0.01)
        return raised.value.code

    assert run_with(body, {"model": hangs}) is Code.UNAVAILABLE
    assert cancelled == [True]


def retry(**options: Any) -> bls.Retry:
    return bls.Retry(delay=0, **options)


def test_a_call_is_retried_on_the_chosen_codes() -> None:
    async def body() -> Any:
        return (await bls.call("model", retry=retry(attempts=3))).CALLS[0]

    assert run_with(body, {"model": failing(Code.UNAVAILABLE, times=2)}) == 3


@pytest.mark.parametrize(
    ("code", "policy", "calls"),
    [
        (Code.UNAVAILABLE, retry(attempts=4), 4),
        (Code.INVALID_ARG, retry(attempts=4), 1),
        (Code.INTERNAL, retry(on={Code.INTERNAL}, attempts=2), 2),
    ],
)
def test_retries_end(code: Code, policy: bls.Retry, calls: int) -> None:
    count = []

    def model() -> Any:
        count.append(1)
        raise bls.Error(code, "no")

    async def body() -> Any:
        with pytest.raises(bls.CallError):
            await bls.call("model", retry=policy)

    run_with(body, {"model": model})
    assert len(count) == calls


@given(
    outcomes=st.lists(st.integers(0, 4), max_size=60),
    budget=st.floats(0, 1),
    attempts=st.integers(1, 4),
)
def test_retries_stay_within_their_budget(outcomes: list[int], budget: float, attempts: int) -> None:
    policy = bls.Retry(attempts=attempts, budget=budget)
    retries = 0
    for calls, failures in enumerate(outcomes, 1):
        policy.called()
        for attempt in range(1, failures + 1):
            if not policy.allows(attempt, Code.UNAVAILABLE):
                break
            retries += 1
            assert attempt < attempts
        assert retries <= 10 + budget * calls + 1e-6


def test_pauses_between_retries_grow() -> None:
    policy = bls.Retry(delay=0.1)
    for attempt, longest in [(1, 0.1), (2, 0.2), (3, 0.4)]:
        assert longest / 2 <= policy.pause(attempt) <= longest


@pytest.mark.parametrize(
    ("fallback", "answer"),
    [
        ("spare", ["spare", 7.0]),
        ({"NAME": ["constant"], "X": [7.0]}, ["constant", 7.0]),
        (lambda error: {"NAME": [error.model], "X": [1.0]}, ["model", 1.0]),
    ],
)
def test_a_fallback_answers_for_a_model_that_failed(fallback: Any, answer: list[Any]) -> None:
    async def body() -> Any:
        tensors = await bls.call("model", X=[7.0], fallback=fallback)
        return [tensors.NAME[0].decode(), tensors.X[0]]

    spare = lambda X: {"NAME": ["spare"], "X": X}  # noqa: E731
    assert run_with(body, {"model": failing(Code.UNAVAILABLE), "spare": spare}) == answer


def test_a_fallback_may_be_a_coroutine_that_calls() -> None:
    async def instead(error: bls.CallError) -> bls.Tensors:
        return await bls.call("spare")

    async def body() -> Any:
        return (await bls.call("model", fallback=instead)).only.tolist()

    assert run_with(body, {"model": failing(Code.INTERNAL), "spare": {"A": [1]}}) == [1]


# Streams


async def counts(N: np.ndarray) -> AsyncIterator[dict[str, Any]]:
    for index in range(int(N[0])):
        yield {"I": [index]}


def test_a_stream_is_iterated_as_it_comes() -> None:
    async def body() -> Any:
        return [answer.I[0] async for answer in bls.stream("counts", N=[3])]

    assert run_with(body, {"counts": counts}) == [0, 1, 2]


def test_a_model_that_answers_once_can_be_streamed_but_not_the_reverse() -> None:
    async def body() -> Any:
        with pytest.raises(bls.CallError, match=r"any number of times: use bls\.stream"):
            await bls.call("counts", N=[3])
        return [answer.A[0] async for answer in bls.stream("one")]

    assert run_with(body, {"counts": counts, "one": {"A": [1]}}) == [1]


def test_a_stream_that_stops_short_times_out() -> None:
    async def stalls() -> AsyncIterator[dict[str, Any]]:
        yield {"I": [0]}
        await asyncio.Event().wait()

    async def body() -> Any:
        answers = bls.stream("stalls", timeout=0.01)
        first = await anext(answers)
        with pytest.raises(bls.CallTimeout):
            await anext(answers)
        return first.I[0]

    assert run_with(body, {"stalls": stalls}) == 0


# Fan-out


@given(st.lists(st.integers(-1000, 1000), max_size=20), st.one_of(st.none(), st.integers(1, 5)))
def test_map_gives_the_results_in_order(items: list[int], limit: int | None) -> None:
    running: list[int] = []

    async def double(item: int) -> int:
        running.append(item)
        assert limit is None or len(running) <= limit
        await asyncio.sleep(0)
        running.remove(item)
        return item * 2

    assert asyncio.run(bls.map(double, items, limit=limit)) == [item * 2 for item in items]


def test_the_first_failure_ends_the_others_and_is_raised_itself() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def fails() -> None:
        await asyncio.sleep(0)
        raise bls.Error(Code.NOT_FOUND, "no page")

    with pytest.raises(bls.Error, match="no page"):
        asyncio.run(bls.gather(waits(), fails(), waits()))
    assert ended == [True, True]


def test_map_takes_items_apart_as_the_builtin_does() -> None:
    async def add(left: int, right: int) -> int:
        return left + right

    assert asyncio.run(bls.map(add, [1, 2], [10, 20])) == [11, 22]
    with pytest.raises(ValueError, match="zip"):
        asyncio.run(bls.map(add, [1, 2], [10]))
