"""Which batches a process stays awake after: those that come alone, and as soon as the one before."""

from __future__ import annotations

from typing import Any

import pytest

from cantata.bls.worker import direct_batches, messages
from cantata.bls.worker.channel import Message
from cantata.bls.worker.direct_batches import DirectBatches
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.execution.execution import Execution
from tests.support.requests import make_request


class Life:
    end_error = None
    is_gone = False


class Channel:
    """A process that answers at once."""

    def tell(self, watch: object) -> None: ...

    def send(self, message: Message) -> None: ...

    def receive(self) -> Message:
        return (messages.DONE,)


class Batches:
    """Notes of each batch whether its process is to stay awake."""

    def __init__(self) -> None:
        self.stays_awake: list[bool] = []

    def begin(self, execution: Execution) -> list[int]:
        return list(range(len(execution.requests)))

    def message(self, keys: list[int], execution: Execution, *, stays_awake: bool) -> Message:
        self.stays_awake.append(stays_awake)
        return (messages.EXECUTE,)

    def settle(self, execution: Execution, keys: list[int], message: Message) -> None: ...
    def end(self, keys: list[int]) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.batches = Batches()
        self.busy: set[Any] = set()
        unused: Any = None
        parts: Any = (Life(), Channel(), self.batches)
        self._direct = DirectBatches(*parts, unused, unused, unused, None, self.busy)

    def run(self, requests: int = 1) -> bool:
        """Whether the process stays awake after a batch of so many requests."""
        batch = [make_request() for _ in range(requests)]
        spec: Any = None
        assert self._direct.execute(Execution(spec, batch, requests, monotonic_ns(), lambda _: None))
        return self.batches.stays_awake[-1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """One for which every batch is quick, and comes soon."""
    monkeypatch.setattr(direct_batches, "_INSTANT_NS", 10**12)
    monkeypatch.setattr(direct_batches, "_SOON_NS", 10**12)
    return Bench()


def test_a_process_stays_awake_after_a_batch_that_came_soon(bench: Bench) -> None:
    # Of the first nothing is known.
    assert [bench.run(), bench.run(), bench.run()] == [False, True, True]


def test_not_after_one_that_came_late(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    monkeypatch.setattr(direct_batches, "_SOON_NS", 0)
    assert not bench.run()


def test_not_after_one_that_is_slow(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_batches, "_INSTANT_NS", 0)
    bench.run()
    assert not bench.run()


def test_not_where_several_requests_are_on_the_way(bench: Bench) -> None:
    bench.run()
    assert not bench.run(requests=2)


def test_not_where_another_process_has_a_batch(bench: Bench) -> None:
    bench.run()
    bench.busy.add("another")
    assert not bench.run()
