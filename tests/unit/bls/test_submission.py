"""Calls that reach the server together: a refusal of one is its answer, and no other's; one alone runs at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from cantata.bls.submission import submit_waiting, submit_with_others
from cantata.runtime.errors import unavailable
from cantata.runtime.request import InferenceRequest
from tests.support.fake_services import FakeServices, echo
from tests.support.requests import RecordingSender, tensor


def refuse(request: InferenceRequest) -> None:
    raise unavailable("too busy")


def break_down(request: InferenceRequest) -> None:
    raise TypeError("no name")


@dataclass
class RunsNow(FakeServices):
    """A server whose models run on their callers' threads."""

    ran: list[InferenceRequest] = field(default_factory=list)

    def run_now(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        self.models[request.model_name](request)
        self.ran.append(request)
        return True


def call_together(services: FakeServices, *names: str) -> list[RecordingSender]:
    senders = [RecordingSender() for _ in names]

    async def call_all() -> None:
        for name, sender in zip(names, senders, strict=True):
            submit_with_others(services, InferenceRequest(name, {"IN": tensor(1)}, sender, 1))
        await asyncio.sleep(0)

    asyncio.run(call_all())
    return senders


def test_a_refusal_in_a_fan_out_says_what_one_of_a_single_call_says() -> None:
    services = FakeServices(models={"busy": refuse, "free": echo})
    refused, answered = call_together(services, "busy", "free")
    assert refused.error == "Model busy - Error when running inference: too busy"
    assert answered.responses[0] is not None
    assert answered.responses[0].error is None


@pytest.mark.parametrize(("count", "runs_now"), [(1, True), (2, False)])
def test_only_a_call_that_came_alone_runs_at_once(count: int, runs_now: bool) -> None:
    services = RunsNow(models={"free": echo})
    senders = call_together(services, *["free"] * count)
    assert all(sender.responses[0] is not None for sender in senders)
    assert (len(services.ran), len(services.submitted)) == ((count, 0) if runs_now else (0, count))


@pytest.mark.parametrize("services", [FakeServices, RunsNow])
@pytest.mark.parametrize("others", [(), ("free",)])
def test_a_call_that_breaks_something_keeps_no_other_from_its_answer(
    services: type[FakeServices], others: tuple[str, ...]
) -> None:
    broken, *answered = call_together(
        services(models={"broken": break_down, "free": echo}), "broken", *others
    )
    assert broken.error == "Model broken - Error when running inference: TypeError: no name"
    assert all(sender.responses[0] is not None for sender in answered)


def test_what_waits_for_the_end_of_the_turn_does_not_wait_for_a_thread_that_waits() -> None:
    services = FakeServices(models={"free": echo})

    async def call_and_wait() -> list[RecordingSender]:
        sender = RecordingSender()
        submit_with_others(services, InferenceRequest("free", {"IN": tensor(1)}, sender, 1))
        assert not services.submitted
        submit_waiting()
        assert len(services.submitted) == 1
        await asyncio.sleep(0)
        return [sender]

    [sender] = asyncio.run(call_and_wait())
    assert len(sender.responses) == len(services.submitted) == 1


def test_a_call_that_came_alone_is_refused_as_any_other() -> None:
    [refused] = call_together(RunsNow(models={"busy": refuse}), "busy")
    assert refused.error == "Model busy - Error when running inference: too busy"
