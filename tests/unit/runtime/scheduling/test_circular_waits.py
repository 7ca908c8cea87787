"""Requests that a model waits for and only it could answer: refused, and only while that is so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling.batcher import Batch
from cantata.runtime.scheduling.circular_waits import CircularWaits
from tests.support.requests import make_request

FIRST, SECOND = object(), object()


def called_by(instance: object) -> tuple[InferenceRequest, Any]:
    """A request that an execution in `instance` waits for, and that execution."""
    request = make_request(1)
    execution: Any = SimpleNamespace(instance=instance)
    request.waiting = (execution,)
    return request, execution


def test_the_last_instance_may_not_wait_for_its_own_model() -> None:
    waits = CircularWaits("model")
    (request, _), (other, _) = called_by(FIRST), called_by(SECOND)
    assert waits.refusal(request, [FIRST, SECOND]) is None
    waits.note(request, [FIRST, SECOND])
    refusal = waits.refusal(other, [FIRST, SECOND])
    assert refusal is not None
    assert "keeps its own instances busy" in refusal.message
    waits.forget(Batch([request], 1, []))
    assert waits.refusal(other, [FIRST, SECOND]) is None


def test_what_was_never_queued_keeps_no_instance_busy() -> None:
    waits = CircularWaits("model")
    (refused, _), (other, _) = called_by(FIRST), called_by(SECOND)
    # Let in here, and refused by a full queue.
    assert waits.refusal(refused, [FIRST, SECOND]) is None
    assert waits.refusal(other, [FIRST, SECOND]) is None


def test_who_has_gone_on_meanwhile_waits_no_longer_once_the_request_has_left() -> None:
    waits = CircularWaits("model")
    (request, execution), (other, _) = called_by(FIRST), called_by(SECOND)
    waits.note(request, [FIRST, SECOND])
    # It did not wait for the answer.
    execution.instance = None
    waits.forget(Batch([], 0, [request]))
    assert waits.refusal(other, [FIRST, SECOND]) is None
    assert not waits.queued
