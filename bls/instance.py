"""One TritonPythonModel object at work: its hooks, its batches, and what becomes of its answers.

Owns the checks of what `execute` returns (reference, section 7.1) and the containment of whatever it raises. Knows
nothing of files, configurations or schedulers.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from cantata.bls.async_loop import AsyncLoop
from cantata.bls.current_model import Activity, CallerNotes, HostedModel, current_activity, running_hook_of
from cantata.bls.errors import TritonModelException
from cantata.bls.failures import describe_failure
from cantata.bls.logger import model_log
from cantata.bls.outputs import OutputTable
from cantata.bls.readiness import ReadinessHook
from cantata.bls.requests import (
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    InferenceRequest,
    received_request,
)
from cantata.bls.response_sender import (
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    OpenStreams,
    stream_of,
)
from cantata.bls.responses import InferenceResponse
from cantata.runtime.errors import internal_error, invalid_argument
from cantata.runtime.execution.execution import Execution
from cantata.runtime.model_spec import model_side_shape

# How long an unload waits for a model's `finalize`.
_FINALIZE_S: Final = 30.0
_NOT_ITERATIVE: Final = invalid_argument(
    "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to handle "
    "such a flag."
)


class _ExecuteViolation(Exception):
    """What `execute` returned breaks its contract; the text is for the client."""


class PythonInstance:
    """An instance whose `initialize` has run; a BackendInstance of the runtime.

    `makes_blocking_calls` is True once `execute` is known to wait for others: a thread that serves others may run it
    only while it holds nothing else back.
    """

    def __init__(
        self, model: HostedModel, name: str, model_object: Any, outputs: OutputTable, is_decoupled: bool
    ) -> None:
        self._model = model
        self._name = name
        self._object = model_object
        self._outputs = outputs
        self._is_decoupled = is_decoupled
        self._execute: Callable[[list[InferenceRequest]], Any] = model_object.execute
        is_async = inspect.iscoroutinefunction(self._execute)
        # In the thread that has the instance; a coroutine's are the loop's tasks.
        self._is_executing = False
        self._notes = CallerNotes(is_async=is_async, makes_blocking_calls=is_decoupled and not is_async)
        self._open_streams = OpenStreams(outputs, is_decoupled, model.reaper)
        self._loop = AsyncLoop(name) if is_async else None
        hook = getattr(model_object, "is_ready", None)
        self._readiness = (
            ReadinessHook(self._in_activity(hook), model.name, self._loop) if callable(hook) else None
        )

    @property
    def makes_blocking_calls(self) -> bool:
        return self._notes.makes_blocking_calls or (self._model.calls_from_threads and self._loop is None)

    @property
    def blocks_for_calls_only(self) -> bool:
        """Whether it never waits for readers: a decoupled model does, and they may be served by the waiting thread."""
        return not self._is_decoupled

    @property
    def is_async(self) -> bool:
        """Whether `execute` is a coroutine, which goes on in the background."""
        return self._loop is not None

    @property
    def is_executing(self) -> bool:
        """Whether `execute` runs."""
        return self._is_executing if self._loop is None else self._loop.has_tasks

    @property
    def has_readiness_hook(self) -> bool:
        """Whether the model has an `is_ready` of its own."""
        return self._readiness is not None

    def start(self) -> None:
        """Be ready to execute."""
        if self._loop is not None:
            self._loop.start()
        self._model.serving_instances += 1

    def execute(self, execution: Execution) -> bool:
        """Run a batch; see BackendInstance."""
        if self._loop is not None:
            self._loop.spawn(lambda: self._run_async(execution))
            return False
        requests = self._receive(execution)
        token = current_activity.set(self._activity(execution))
        # This may be an event loop's thread (a front-end's, another model's): the model must be free to run its own.
        outer_loop = asyncio._get_running_loop()
        if outer_loop is not None:
            asyncio._set_running_loop(None)
        self._is_executing = True
        try:
            returned = self._execute(requests)
        except BaseException as error:
            self._fail_for(execution, requests, error)
        else:
            self._settle(execution, requests, returned)
        finally:
            self._is_executing = False
            if outer_loop is not None:
                asyncio._set_running_loop(outer_loop)
            current_activity.reset(token)
        return True

    def is_ready(self) -> bool:
        """What the model's own `is_ready` says; True without one. May take seconds; raises InferenceError."""
        return self._readiness is None or self._readiness.ask()

    def close(self) -> None:
        """Finalize the model, and end the requests whose senders it still holds."""
        self._model.serving_instances -= 1
        if self._loop is not None:
            self._loop.close()
        finalize = getattr(self._object, "finalize", None)
        if callable(finalize):
            # In a thread that can be left behind: an unload must end, whatever the model does.
            thread = threading.Thread(
                target=self._finalize, args=(finalize,), name=f"cantata-finalize-{self._name}", daemon=True
            )
            thread.start()
            thread.join(_FINALIZE_S)
            if thread.is_alive():
                model_log(self._model.name).error(
                    "finalize of instance '%s' took longer than %g s, and was left to itself",
                    self._name,
                    _FINALIZE_S,
                )
        self._open_streams.close()

    def _finalize(self, finalize: Callable[[], Any]) -> None:
        try:
            self._in_activity(finalize)()
        except BaseException:
            model_log(self._model.name).exception("finalize of instance '%s' failed", self._name)

    async def _run_async(self, execution: Execution) -> None:
        current_activity.set(self._activity(execution))
        notes, count = self._notes, len(execution.requests)
        notes.requests_in_hand += count
        try:
            requests = self._receive(execution)
            try:
                returned = await self._execute(requests)
            except BaseException as error:
                self._fail_for(execution, requests, error)
            else:
                self._settle(execution, requests, returned)
            del requests
        except BaseException as error:
            # As the scheduler does for an `execute` that is no coroutine.
            model_log(self._model.name).exception("a batch of instance '%s' failed", self._name)
            execution.fail_unanswered(internal_error(f"{type(error).__name__}: {error}"))
        finally:
            notes.requests_in_hand -= count
        execution.finish()

    def _receive(self, execution: Execution) -> list[InferenceRequest]:
        if execution.spec.reshapes_inputs:
            _reshape_inputs(execution)
        open_streams = self._open_streams
        requests = [received_request(request, open_streams) for request in execution.requests]
        if self._is_decoupled:
            for request in requests:
                # Made now, so that a request dropped without an answer is noticed.
                request.get_response_sender()
        execution.inputs_ready()
        return requests

    def _activity(self, execution: Execution) -> Activity:
        return Activity(self._model, True, execution.requests, self._notes, execution)

    def _in_activity(self, hook: Callable[[], Any]) -> Callable[[], Any]:
        """`hook` to be called as this model's code, outside `execute`."""

        def call() -> Any:
            with running_hook_of(self._model):
                return hook()

        return call

    def _settle(self, execution: Execution, requests: list[InferenceRequest], returned: Any) -> None:
        """Take the answers that `execute` returned."""
        execution.outputs_ready()
        try:
            if self._is_decoupled:
                if returned is not None:
                    raise _ExecuteViolation(
                        f"Python model '{self._model.name}' is using the decoupled mode and the execute function "
                        "must return None."
                    )
                for index, request in enumerate(requests):
                    if request._release_flags == TRITONSERVER_REQUEST_RELEASE_RESCHEDULE:
                        self._reschedule(execution, index, request)
                return
            if not isinstance(returned, list) and not _all_have_senders(requests, returned):
                raise _ExecuteViolation(
                    f"Expected a list in the execute return, found type '{type(returned)}'."
                )
            if returned is not None:
                self._take(execution, requests, returned)
        except (_ExecuteViolation, TritonModelException) as violation:
            self._fail(execution, requests, str(violation))

    def _take(self, execution: Execution, requests: list[InferenceRequest], returned: Sequence[Any]) -> None:
        if len(returned) != len(requests):
            raise _ExecuteViolation(
                "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
                f"InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) size is:{len(returned)}"
            )
        for index, answer in enumerate(returned):
            request = requests[index]
            if request._release_flags == TRITONSERVER_REQUEST_RELEASE_RESCHEDULE:
                if answer is not None:
                    raise _ExecuteViolation(
                        "Expected a None object in the execute function return list for reschduled request, found "
                        f"type '{type(answer)}'."
                    )
                self._reschedule(execution, index, request)
                continue
            sender = request._sender
            if type(answer) is not InferenceResponse and not isinstance(answer, InferenceResponse):
                if answer is None and sender is not None and stream_of(sender).has_answered:
                    continue
                raise _ExecuteViolation(
                    "Expected an 'InferenceResponse' object in the execute function return list, found type "
                    f"'{type(answer)}'."
                )
            if sender is None:
                execution.responses[index] = self._outputs.response_of(execution.requests[index], answer)
            else:
                sender.send(answer, TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _reschedule(self, execution: Execution, index: int, request: InferenceRequest) -> None:
        """Have a request run again; its sender, if the model has asked for it, goes on with it."""
        received, sender = execution.requests[index], request._sender
        if self._outputs.may_reschedule:
            received.carried = sender
            execution.reschedule(received)
        elif sender is None:
            execution.responses[index] = self._outputs.error_response(received, _NOT_ITERATIVE)
        else:
            stream_of(sender).fail(_NOT_ITERATIVE)

    def _fail_for(self, execution: Execution, requests: list[InferenceRequest], error: BaseException) -> None:
        model_log(self._model.name).error("execute of instance '%s' failed", self._name, exc_info=error)
        self._fail(execution, requests, describe_failure(error))

    def _fail(self, execution: Execution, requests: list[InferenceRequest], text: str) -> None:
        """Fail every request of the batch that is not answered yet."""
        error = internal_error(f"Failed to process the request(s) for model '{self._name}', message: {text}")
        for index, request in enumerate(requests):
            sender = request._sender
            if sender is None:
                execution.responses[index] = self._outputs.error_response(execution.requests[index], error)
            else:
                stream_of(sender).fail(error)


def _reshape_inputs(execution: Execution) -> None:
    """Give the model its inputs in the shapes that the configuration's `reshape` says."""
    spec = execution.spec
    for request in execution.requests:
        request.inputs = {
            # Control inputs and states have no other shape.
            name: tensor.reshaped(model_side_shape(spec.inputs[name], tensor.shape, spec.batches))
            if name in spec.inputs
            else tensor
            for name, tensor in request.inputs.items()
        }


def _all_have_senders(requests: list[InferenceRequest], returned: Any) -> bool:
    """Whether None is a fair answer: every request has been, or will be, answered through its sender."""
    return returned is None and all(request._sender is not None for request in requests)
