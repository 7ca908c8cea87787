"""The driver of an ensemble's requests over step models that the test plays: each request is answered once."""

from __future__ import annotations

import gc
import weakref

from cantata.dag.plan import compile_plan
from cantata.runtime.errors import unavailable
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.phases import OWN_STEP
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.ensemble_scheduler import EnsembleScheduler
from cantata.runtime.scheduling.timer import Timer
from cantata.runtime.tensor import Tensor
from tests.support.ensembles import ensemble, models_of, step
from tests.support.requests import RecordingSender, tensor

# More than the interpreter lets calls pile up.
MANY = 2_000


class PlayedModel:
    """Keeps the requests of one step, or refuses them: the test says."""

    def __init__(self) -> None:
        self.requests: list[InferenceRequest] = []
        self.failure: Exception | None = None

    def accept(self, request: InferenceRequest) -> None:
        if self.failure is not None:
            raise self.failure
        self.requests.append(request)

    def answer(self) -> None:
        request = self.requests.pop(0)
        request.respond(InferenceResponse("m0", 1, request.id, {"B": request.inputs["A"]}), True)


class Bench:
    """An ensemble of one step that reads A and writes B, and answers with both; `limit` requests run at a time."""

    def __init__(self, limit: int = 0) -> None:
        steps = [step("m0", {"A": "A"}, {"B": "B"})]
        config = ensemble(("A",), ("A", "B"), steps, max_inflight_requests=limit)
        plan = compile_plan(config, models_of(config))
        self.model = PlayedModel()
        self.scheduler = EnsembleScheduler(ModelSpec(config, 1), plan, [self.model], Timer())

    def enqueue(self, *outputs: str, value: Tensor | None = None) -> RecordingSender:
        sender = RecordingSender()
        inputs = {"A": value or tensor(4)}
        request = InferenceRequest("pipeline", inputs, sender, 1, requested_outputs=outputs)
        request.batch_size = 1
        self.scheduler.enqueue(request)
        return sender


def test_any_number_of_waiting_requests_are_answered_when_their_model_refuses_them() -> None:
    bench = Bench(limit=1)
    first = bench.enqueue()
    waiting = [bench.enqueue() for _ in range(MANY)]
    bench.model.failure = unavailable("too busy")
    bench.model.answer()
    assert first.responses[0] is not None
    assert first.responses[0].error is None
    assert {sender.error for sender in waiting} == {"in ensemble 'pipeline', step 0 ('m0'): too busy"}
    assert bench.scheduler.in_flight == 0


def test_a_model_that_breaks_while_it_accepts_fails_that_request_alone() -> None:
    bench = Bench(limit=1)
    first, second = bench.enqueue(), bench.enqueue()
    bench.model.failure = MemoryError("no room")
    bench.model.answer()
    bench.model.failure = None
    assert (first.finals, second.error) == (
        1,
        "in ensemble 'pipeline', step 0 ('m0'): MemoryError: no room",
    )
    third = bench.enqueue()
    bench.model.answer()
    assert third.finals == 1


def test_a_refused_step_leaves_nothing_to_the_collector_of_cycles() -> None:
    bench = Bench()
    value = tensor(4)
    kept = weakref.ref(value.array)
    gc.disable()
    try:
        bench.model.failure = unavailable("too busy")
        assert bench.enqueue(value=value).finals == 1
        bench.model.failure = None
        del value
        assert kept() is None
    finally:
        gc.enable()


def test_an_input_that_is_asked_for_alone_is_answered_without_a_step() -> None:
    bench = Bench()
    sender = bench.enqueue("A")
    [response] = sender.responses
    assert response is not None
    assert list(response.outputs) == ["A"]
    assert (sender.finals, bench.model.requests, bench.scheduler.in_flight) == (1, [], 0)
    assert bench.scheduler.statistics("pipeline", "1").inference_stats.success.count == 1
    assert {figures.step: figures.count for figures in bench.scheduler.step_figures()} == {OWN_STEP: 1, 0: 0}
