"""The batches that one process has: how each is sent, what its end brings, and what fails when the process ends.

Owns the numbers that messages call batches and requests by. Knows neither the process nor its channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from cantata.bls.worker import messages
from cantata.bls.worker.channel import Message
from cantata.bls.worker.exchange import Exchange
from cantata.bls.worker.wire import (
    Again,
    WireSequel,
    WireWait,
    decode_response,
    decode_tensors,
    encode_request,
)
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.execution import Execution
from cantata.runtime.request import InferenceRequest


class BrokenMessageError(Exception):
    """The process says what cannot be."""


class Batches:
    """The tables are touched by single operations only, so they need no lock."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        # Those that run in the background, by their number.
        self._in_background: dict[int, tuple[Execution, list[int]]] = {}
        # Those that keep the instance busy, by their number: a coroutine's do not.
        self._running: dict[int, Execution] = {}
        # The requests that `execute` waits for.
        self.executing: Sequence[int] = ()
        # Whether the process has come to the end of a batch.
        self.has_settled = False

    def begin(self, execution: Execution) -> list[int]:
        """The keys of a batch's requests; the first is the number of the batch, which now keeps the instance busy."""
        keys = self._add(execution)
        self.executing = keys
        self._running[keys[0]] = execution
        return keys

    def end(self, keys: list[int]) -> None:
        """The batch keeps the instance busy no longer."""
        self.executing = ()
        self._running.pop(keys[0], None)

    def begin_in_background(self, execution: Execution) -> list[int]:
        """As `begin`, for a batch that keeps nobody busy; `take_from_background` ends it."""
        keys = self._add(execution)
        self._in_background[keys[0]] = (execution, keys)
        return keys

    def in_background(self, batch: int) -> tuple[Execution, list[int]] | None:
        """A batch that was begun there, and its keys; None when it was taken."""
        return self._in_background.get(batch)

    def take_from_background(self, batch: int) -> tuple[Execution, list[int]] | None:
        """As `in_background`, once: the caller ends the batch."""
        return self._in_background.pop(batch, None)

    @property
    def has_any(self) -> bool:
        """Whether the model executes something."""
        return bool(self._in_background or self._running)

    def message(self, keys: list[int], execution: Execution, *, stays_awake: bool = False) -> Message:
        """What hands a batch to the process; raises ArenaFullError. `stays_awake`: see messages.py."""
        writer = self._exchange.writer
        requests = [
            encode_request(key, request, writer)
            for key, request in zip(keys, execution.requests, strict=True)
        ]
        return (messages.EXECUTE, keys[0], execution.start_ns, execution.batch_size, requests, stays_awake)

    def settle(self, execution: Execution, keys: list[int], message: Message) -> None:
        """Take the end of a batch; raises BrokenMessageError for what is none."""
        try:
            _, _, execution.input_end_ns, execution.output_start_ns, responses, sequels = message
            spec = execution.spec
            reader = self._exchange.reader
            for index, (key, response) in enumerate(zip(keys, responses, strict=True)):
                if response is not None:
                    self._exchange.take_back(key)
                    execution.responses[index] = decode_response(
                        response, spec.model_name, spec.model_version, execution.requests[index].id, reader
                    )
            for request, key, sequel in zip(
                execution.requests, keys, sequels or (), strict=sequels is not None
            ):
                self._take_sequel(execution, request, key, sequel)
            self.has_settled = True
        except (ValueError, TypeError, KeyError) as error:
            raise BrokenMessageError from error

    def forget(self, keys: list[int]) -> None:
        """Whoever began the batch answers its requests."""
        for key in keys:
            self._exchange.take_back(key)

    def fail(self, error: InferenceError) -> None:
        """The process has ended: fail what it had, but for the batch that `execute` waits for, and will fail."""
        for batch in list(self._in_background):
            found = self._in_background.pop(batch, None)
            if found is None:
                continue
            execution, keys = found
            self.forget(keys)
            execution.fail_unanswered(error)
            execution.finish()
        self._exchange.end(error, self.executing)

    def waiting(self, waits: list[WireWait]) -> tuple[Execution, ...]:
        """The executions that wait for a call: batches of this process, and those that wait for its requests."""
        found: dict[Execution, None] = {}
        for is_batch, number in waits:
            if is_batch:
                execution = self._running.get(number)
                if execution is not None:
                    found[execution] = None
            elif (request := self._exchange.sent.get(number)) is not None:
                found.update(dict.fromkeys(request.waiting))
        return tuple(found)

    def _add(self, execution: Execution) -> list[int]:
        add = self._exchange.add
        # A request that comes again to its response sender is known by its key.
        return [
            request.carried if isinstance(request.carried, int) else add(request)
            for request in execution.requests
        ]

    def _take_sequel(
        self, execution: Execution, request: InferenceRequest, key: int, sequel: WireSequel
    ) -> None:
        number, states = sequel
        again = Again(number)
        request.carried = key if again is Again.CARRIED else None
        if again is not Again.NO:
            execution.reschedule(request)
            if again is Again.YES:
                self._exchange.take_back(key)
        if states is not None and request.states is not None:
            request.states.update(decode_tensors(states, self._exchange.reader))
