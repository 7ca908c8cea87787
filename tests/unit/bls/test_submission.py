"""Calls that reach the server together: a refusal of one is its answer, and no other's."""

from __future__ import annotations

import asyncio

from cantata.bls.submission import submit_with_others
from cantata.runtime.errors import unavailable
from cantata.runtime.request import InferenceRequest
from tests.support.fake_services import FakeServices, echo
from tests.support.requests import RecordingSender, tensor


def refuse(request: InferenceRequest) -> None:
    raise unavailable("too busy")


def test_a_refusal_in_a_fan_out_says_what_one_of_a_single_call_says() -> None:
    services = FakeServices(models={"busy": refuse, "free": echo})
    senders = [RecordingSender(), RecordingSender()]

    async def call_both() -> None:
        for name, sender in zip(("busy", "free"), senders, strict=True):
            submit_with_others(services, InferenceRequest(name, {"IN": tensor(1)}, sender, 1))
        await asyncio.sleep(0)

    asyncio.run(call_both())
    refused, answered = senders
    assert refused.error == "Model busy - Error when running inference: too busy"
    assert answered.responses[0] is not None
    assert answered.responses[0].error is None
