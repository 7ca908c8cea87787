"""One request on its way through an ensemble: carries out what its run decides, on whichever thread has the answer.

Owns the building of step requests and of the ensemble's responses, their order, and when each step's moments were.
Decides nothing about steps: that is `cantata.dag.run`'s. What all requests of an ensemble share is its scheduler's.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from cantata.dag.plan import BatchAdaptation, Plan
from cantata.dag.run import (
    EnsembleRun,
    Fail,
    Finish,
    Instruction,
    Respond,
    RunStep,
    RunStopped,
    SequenceOverride,
    StopReason,
)
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, StatusCode, internal_error, invalid_argument, unavailable
from cantata.runtime.observe.phases import UNKNOWN_PATH
from cantata.runtime.observe.statistics import ComputeTimes
from cantata.runtime.request import EXPIRED, SEQUENCE_END, SEQUENCE_START, InferenceRequest
from cantata.runtime.response import InferenceResponse, ParameterValue
from cantata.runtime.scheduling.step_limits import StepLimits
from cantata.runtime.tensor import Tensor

if TYPE_CHECKING:
    from cantata.runtime.scheduling.ensemble_scheduler import EnsembleScheduler

_log = logging.getLogger("cantata.scheduler")

_Run: TypeAlias = EnsembleRun[Tensor, InferenceError]
_Instruction: TypeAlias = Instruction[Tensor, InferenceError]
_Answer: TypeAlias = Respond[Tensor] | Finish | Fail[InferenceError]
# A step of one request that waits for a place, and the step whose answer made it ready.
WaitingStep: TypeAlias = "tuple[EnsembleFlight, RunStep[Tensor], StepSender | None]"
# With so many steps of one request their times are counted as they end: a stream may have no end.
_MOST_SPANS = 256
_WITHHELD = unavailable("the ensemble has failed already")
_SEQUENCE_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")


class _ThreadState(threading.local):
    # The steps that have got a place on this thread, and run one after the other; None while none runs. Each may be
    # refused at once and let in the next: one inside the other they would pile up on the stack.
    placed: deque[WaitingStep] | None = None


_thread = _ThreadState()


class StepSender:
    """Takes the responses of one step request back to its run, and keeps when what happened to it: a Span."""

    __slots__ = (
        "_flight",
        "_run_step",
        "batch_wait_ns",
        "blocked_ns",
        "ended_ns",
        "is_counted",
        "origin",
        "received_ns",
        "request",
        "started_ns",
        "step",
        "times",
    )

    batch_wait_ns: int
    started_ns: int
    times: ComputeTimes | None

    def __init__(
        self, flight: EnsembleFlight, run_step: RunStep[Tensor], origin: StepSender | None, received_ns: int
    ) -> None:
        self._flight = flight
        # It and its request, until that has ended: they would keep the tensors, and each other.
        self._run_step: RunStep[Tensor] | None = run_step
        self.request: InferenceRequest | None = None
        self.step = run_step.step.index
        self.origin = origin
        self.received_ns = received_ns
        self.blocked_ns = 0
        self.ended_ns = 0
        self.is_counted = False

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        request, run_step = self.request, self._run_step
        assert request is not None
        assert run_step is not None
        now_ns = monotonic_ns()
        if final:
            self.request = self._run_step = None
            self.started_ns = request.started_ns
            self.batch_wait_ns = request.batch_wait_ns
            self.times = request.times
            self.ended_ns = now_ns
        self._flight.step_answered(self, run_step, response, final, now_ns)

    def let_go(self) -> None:
        """Its request is refused, and will not be answered."""
        self.request = self._run_step = None

    def wait_until_ready(self) -> None:
        start_ns = monotonic_ns()
        self._flight.wait_until_ready()
        self.blocked_ns += monotonic_ns() - start_ns


class EnsembleFlight:
    """One request on its way through the ensemble. `_lock` guards the run, the times and the outbox.

    Answers leave in the order in which the run gave them: whoever finds nobody sending sends them all.
    """

    __slots__ = (
        "_count_at",
        "_infer_ns",
        "_input_ns",
        "_is_sending",
        "_last",
        "_lock",
        "_outbox",
        "_output_ns",
        "_plan",
        "_request",
        "_run",
        "_scheduler",
        "_spans",
    )

    def __init__(self, scheduler: EnsembleScheduler, request: InferenceRequest, plan: Plan) -> None:
        self._scheduler = scheduler
        self._request = request
        self._plan = plan
        self._run: _Run = EnsembleRun(plan)
        self._lock = threading.Lock()
        self._input_ns = 0
        self._infer_ns = 0
        self._output_ns = 0
        self._outbox: deque[_Answer] = deque()
        self._is_sending = False
        # The steps so far, until they are counted; and the one that ended last.
        self._spans: list[StepSender] = []
        self._count_at = _MOST_SPANS
        self._last: StepSender | None = None

    def start(self) -> None:
        """Run the steps that need nothing but the request's own tensors."""
        with self._lock:
            if self._request.cancellation.is_cancelled:
                self._run.cancel()
            steps = self._sort(self._run.start(self._request.inputs))
        self._carry_out(steps, None, self._request.queued_ns)

    def step_answered(
        self,
        sender: StepSender,
        run_step: RunStep[Tensor],
        response: InferenceResponse | None,
        final: bool,
        now_ns: int,
    ) -> None:
        """One response of one step; called on whichever thread has it."""
        with self._lock:
            if final:
                self._last = sender
                if sender.times is not None:
                    self._add_times(sender.times)
            if self._request.cancellation.is_cancelled:
                self._run.cancel()
            steps = self._sort(self._advance(run_step, response, final))
        if final and self._scheduler.limits is not None:
            self._release(self._scheduler.limits, run_step)
        self._carry_out(steps, sender, now_ns)

    def wait_until_ready(self) -> None:
        """Hold back a step that streams while this ensemble's reader, or the steps after it, are behind."""
        if self._scheduler.limits is not None:
            self._scheduler.limits.wait_for_room(self._request.cancellation)
        self._request.sender.wait_until_ready()

    def dispatch(
        self, run_step: RunStep[Tensor], origin: StepSender | None, now_ns: int
    ) -> list[RunStep[Tensor]]:
        """Send one step's request to its model. Returns the steps to run because it was refused: usually none.

        `origin` is the step whose answer made it ready.
        """
        error: InferenceError | None = None
        sender: StepSender | None = None
        if self._run.is_stopped:
            # The first error is kept: this one is never seen.
            error = _WITHHELD
        else:
            sender = StepSender(self, run_step, origin, now_ns)
            try:
                self._scheduler.step_models[run_step.step.index].accept(
                    self._step_request(run_step, sender, now_ns)
                )
            except InferenceError as refusal:
                error = self._located(run_step, refusal)
            except Exception as failure:
                _log.exception("a step of ensemble '%s' could not be run", self._scheduler.spec.model_name)
                error = self._located(run_step, internal_error(f"{type(failure).__name__}: {failure}"))
        if error is None:
            return []
        if sender is not None:
            sender.let_go()
        with self._lock:
            steps = self._sort(self._run.step_failed(run_step, error))
        if self._scheduler.limits is not None:
            self._release(self._scheduler.limits, run_step)
        return steps

    def _step_request(self, run_step: RunStep[Tensor], sender: StepSender, now_ns: int) -> InferenceRequest:
        request = self._request
        step = run_step.step
        correlation_id, flags = request.correlation_id, request.flags
        sequence = run_step.sequence
        if sequence is not None:
            correlation_id = sequence.correlation_id
            flags = (SEQUENCE_START if sequence.start else 0) | (SEQUENCE_END if sequence.end else 0)
        inputs = run_step.inputs
        for name, adaptation in step.adaptations:
            if name in inputs:
                inputs[name] = _adapted(inputs[name], adaptation)
        self._spans.append(sender)
        if len(self._spans) >= self._count_at:
            self._count_early()
        step_request = InferenceRequest(step.model_name, inputs, sender, now_ns, request.cancellation)
        sender.request = step_request
        step_request.model_version = step.model_version
        step_request.id = request.id
        step_request.requested_outputs = step.output_names
        step_request.correlation_id = correlation_id
        step_request.flags = flags
        step_request.priority = request.priority
        if request.timeout_us:
            step_request.timeout_us = request.timeout_left_us(now_ns)
        step_request.deadline_ns = request.deadline_ns
        step_request.parameters = request.parameters
        step_request.waiting = request.waiting
        if request.trace is not None:
            step_request.trace = request.trace.child(step=step.index)
        return step_request

    def _advance(
        self, run_step: RunStep[Tensor], response: InferenceResponse | None, final: bool
    ) -> list[_Instruction]:
        run = self._run
        if response is None:
            return run.step_responded(run_step, None, final)
        if response.error is not None:
            return run.step_failed(run_step, self._located(run_step, response.error), final)
        sequence = None
        if response.parameters:
            try:
                sequence = _sequence_override(response.parameters)
            except InferenceError as error:
                return run.step_failed(run_step, self._located(run_step, error), final)
        return run.step_responded(run_step, response.outputs, final, sequence)

    def _sort(self, instructions: list[_Instruction]) -> list[RunStep[Tensor]]:
        """Keep the answers, in their order, and return the steps to run; the caller holds the lock."""
        if len(instructions) == 1 and isinstance(instructions[0], RunStep):
            # The usual case: the next step of a chain.
            return instructions  # type: ignore[return-value]
        steps: list[RunStep[Tensor]] = []
        for instruction in instructions:
            if isinstance(instruction, RunStep):
                steps.append(instruction)
            else:
                self._outbox.append(instruction)
        return steps

    def _carry_out(self, steps: list[RunStep[Tensor]], origin: StepSender | None, now_ns: int) -> None:
        """Run steps that `origin`'s answer made ready, and those that their refusals lead to; then send the answers."""
        limits = self._scheduler.limits
        while steps:
            run_step = steps.pop(0)
            if limits is None or limits.acquire(run_step.step.index, (self, run_step, origin)):
                steps += self.dispatch(run_step, origin, now_ns)
            else:
                leave = functools.partial(self._withdraw, limits, (self, run_step, origin))
                self._request.cancellation.add_listener(run_step, leave)
        if self._outbox:
            self._send_answers()

    def _release(self, limits: StepLimits[WaitingStep], run_step: RunStep[Tensor]) -> None:
        """Let the next request of any run into the step that this one leaves."""
        following = limits.release(run_step.step.index)
        if following is None:
            return
        if _thread.placed is not None:
            _thread.placed.append(following)
            return
        placed = _thread.placed = deque((following,))
        try:
            while placed:
                flight, next_step, origin = placed.popleft()
                flight._request.cancellation.remove_listener(next_step)
                try:
                    flight._take_place(next_step, origin)
                except Exception:
                    # The others have their places already.
                    _log.exception("a request of ensemble '%s' failed", flight._scheduler.spec.model_name)
        finally:
            _thread.placed = None

    def _withdraw(self, limits: StepLimits[WaitingStep], waiting: WaitingStep) -> None:
        """A step that waits for a place need not run any more."""
        _, run_step, origin = waiting
        if not limits.withdraw(run_step.step.index, waiting):
            return
        error = self._located(run_step, InferenceError(StatusCode.CANCELLED, ""))
        with self._lock:
            self._run.cancel()
            steps = self._sort(self._run.step_failed(run_step, error))
        self._carry_out(steps, origin, monotonic_ns())

    def _take_place(self, run_step: RunStep[Tensor], origin: StepSender | None) -> None:
        """Run a step that has waited for a place."""
        now_ns = monotonic_ns()
        if origin is not None and origin.ended_ns and not origin.is_counted:
            # What made it ready was blocked until now.
            origin.ended_ns = now_ns
        self._carry_out(self.dispatch(run_step, origin, now_ns), origin, now_ns)

    def _count_early(self) -> None:
        """Count the steps that have ended: this request has had many."""
        with self._lock:
            ended = [span for span in self._spans if span.ended_ns]
            self._spans = [span for span in self._spans if not span.ended_ns]
            self._count_at = 2 * len(self._spans) + _MOST_SPANS
        for span in ended:
            span.is_counted = True
        self._scheduler.count_early(ended)

    def _send_answers(self) -> None:
        with self._lock:
            if self._is_sending or not self._outbox:
                return
            self._is_sending = True
            answer = self._outbox.popleft()
        while True:
            self._send(answer)
            with self._lock:
                if not self._outbox:
                    self._is_sending = False
                    return
                answer = self._outbox.popleft()

    def _send(self, answer: _Answer) -> None:
        request = self._request
        scheduler = self._scheduler
        if isinstance(answer, Fail):
            error = self._ending_error(answer.error)
            self._spans, self._last = [], None
            scheduler.count_failure(request, error)
            request.fail(error)
            scheduler.ended()
            return
        response = self._response(answer) if isinstance(answer, Respond) else None
        final = response is None or answer.final  # type: ignore[union-attr]
        if final:
            times = ComputeTimes(self._input_ns, self._infer_ns, self._output_ns, path=UNKNOWN_PATH)
            scheduler.count_success(request, times, self._spans, self._last)
            # They know this flight, and the collector of cycles need not.
            self._spans, self._last = [], None
        elif not request.response_count:
            scheduler.count_first_response(request)
        request.respond(response, final)
        if final:
            scheduler.ended()

    def _response(self, answer: Respond[Tensor]) -> InferenceResponse:
        outputs = answer.outputs
        for name, adaptation in self._plan.output_adaptations:
            if name in outputs:
                outputs[name] = _adapted(outputs[name], adaptation)
        spec = self._scheduler.spec
        parameters: dict[str, ParameterValue] | None = None
        if answer.sequence is not None:
            parameters = {
                "sequence_id": answer.sequence.correlation_id,
                "sequence_start": answer.sequence.start,
                "sequence_end": answer.sequence.end,
            }
        return InferenceResponse(spec.model_name, spec.model_version, self._request.id, outputs, parameters)

    def _ending_error(self, error: InferenceError | RunStopped) -> InferenceError:
        if isinstance(error, InferenceError):
            return error
        code, text = StatusCode.INVALID_ARG, error.message
        if error.reason is StopReason.CANCELLED:
            has_expired = self._request.cancellation.has_expired
            code, text = (StatusCode.UNAVAILABLE, EXPIRED) if has_expired else (StatusCode.CANCELLED, text)
        name = self._scheduler.spec.model_name
        return InferenceError(code, f"in ensemble '{name}', {self._request.described_id()}{text}")

    def _located(self, run_step: RunStep[Tensor], error: InferenceError) -> InferenceError:
        step = run_step.step
        name = self._scheduler.spec.model_name
        return error.within(f"in ensemble '{name}', step {step.index} ('{step.model_name}'): ")

    def _add_times(self, times: ComputeTimes) -> None:
        self._input_ns += times.input_ns
        self._infer_ns += times.infer_ns
        self._output_ns += times.output_ns


def _adapted(tensor: Tensor, adaptation: BatchAdaptation) -> Tensor:
    shape = adaptation.adapt(tensor.shape)
    return tensor if shape is None else tensor.reshaped(shape)


def _sequence_override(parameters: dict[str, ParameterValue]) -> SequenceOverride | None:
    """The sequence that a step's response names, or None; raises InferenceError for a wrong type."""
    if not any(name in parameters for name in _SEQUENCE_PARAMETERS):
        return None
    correlation_id = parameters.get("sequence_id", 0)
    if isinstance(correlation_id, bool) or not isinstance(correlation_id, int | str):
        raise invalid_argument(
            "expected parameter 'sequence_id' to be TRITONSERVER_PARAMETER_INT or TRITONSERVER_PARAMETER_STRING"
        )
    return SequenceOverride(
        correlation_id, _flag(parameters, "sequence_start"), _flag(parameters, "sequence_end")
    )


def _flag(parameters: dict[str, ParameterValue], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise invalid_argument(f"expected parameter '{name}' to be TRITONSERVER_PARAMETER_BOOL")
    return value
