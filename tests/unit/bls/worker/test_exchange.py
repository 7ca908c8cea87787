"""Requests in the other process: what is waited for before it may send more."""

from __future__ import annotations

from typing import Any, cast

from cantata.bls.worker import messages
from cantata.bls.worker.exchange import Exchange
from cantata.runtime.request import InferenceRequest
from tests.support.requests import RecordingSender, tensor

# More than the other side may send without credit.
MANY = 64


class Events:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def send_soon(self, message: tuple[Any, ...]) -> None:
        self.sent.append(message)


class Workers:
    """Keeps work for the test to run."""

    def __init__(self) -> None:
        self.work: list[Any] = []

    def hand_over(self, work: Any) -> None:
        self.work.append(work)


class SlowReader(RecordingSender):
    """Counts how often somebody waits for it."""

    waits = 0

    def wait_until_ready(self) -> None:
        self.waits += 1


def streamed(reader: SlowReader, *, is_ended: bool) -> Events:
    """An exchange's messages after many responses, when the work that these led to is done."""
    events, workers = Events(), Workers()
    exchange = Exchange(
        cast(Any, events), cast(Any, None), cast(Any, None), cast(Any, workers), wait_to_send=False
    )
    key = exchange.add(InferenceRequest("model", {"INPUT": tensor(1)}, reader, 1))
    for _ in range(MANY):
        exchange.handle((messages.RESPONSE, key, None, False))
    if is_ended:
        exchange.handle((messages.RESPONSE, key, None, True))
    for work in workers.work:
        work.run()
    assert events.sent == [(messages.CREDIT, key)] * len(workers.work)
    return events


def test_the_other_side_goes_on_when_the_reader_has_caught_up() -> None:
    reader = SlowReader()
    assert len(streamed(reader, is_ended=False).sent) == reader.waits > 0


def test_nobody_waits_for_the_reader_of_a_request_that_is_over() -> None:
    reader = SlowReader()
    assert streamed(reader, is_ended=True).sent
    assert reader.waits == 0
