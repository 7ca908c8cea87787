"""Whose code is running: how functions that take no model (Logger, exec, get_model_dir) find the one that calls them.

A context variable says so inside hooks and in the tasks they start. Threads that a model starts have none: there
the caller's frames are searched for a module of a hosted model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from cantata.bls.abandoned import Reaper
from cantata.bls.errors import TritonModelException
from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.execution.execution import Execution
from cantata.runtime.request import InferenceRequest


class HostedModel:
    """A loaded model version, as far as its own code may know it. `package` is the name its modules are under."""

    __slots__ = (
        "calls_from_threads",
        "is_completing",
        "leaves_refusals",
        "metric_numbers",
        "name",
        "package",
        "reaper",
        "services",
        "serving_instances",
        "version",
        "version_directory",
    )

    def __init__(
        self,
        name: str,
        version: int,
        version_directory: Path,
        package: str,
        services: ServerServices,
        reaper: Reaper,
        *,
        leaves_refusals: bool = False,
    ) -> None:
        self.name = name
        self.version = version
        self.version_directory = version_directory
        self.package = package
        self.services = services
        self.reaper = reaper
        # Whether the server finds out by itself, when it gets a call, that the called model answers otherwise.
        self.leaves_refusals = leaves_refusals
        # How many instances are past `initialize` and before `finalize`: only then may the model call others.
        self.serving_instances = 0
        # Whether threads that it has started by itself call other models: `execute` may wait for those threads.
        self.calls_from_threads = False
        # Whether it was imported for its `auto_complete_config` alone.
        self.is_completing = False
        # Of the metrics that it holds.
        self.metric_numbers: set[int] = set()


class CallerNotes:
    """What an instance has shown of itself: whether its `execute` waits, for other models or slow readers.

    `requests_in_hand` are those of batches whose `execute` is a coroutine that has not returned; the thread of its loop
    alone counts them.
    """

    __slots__ = ("is_async", "makes_blocking_calls", "requests_in_hand")

    def __init__(self, *, is_async: bool, makes_blocking_calls: bool) -> None:
        self.is_async = is_async
        self.makes_blocking_calls = makes_blocking_calls
        self.requests_in_hand = 0


class Activity:
    """One run of a model's code: a hook, or `execute` with its batch.

    `allows_calls` says whether other models may be called now (reference, section 7.3). `notes` and `execution` are
    None outside `execute`.
    """

    __slots__ = ("_waiting", "allows_calls", "execution", "model", "notes", "requests")

    def __init__(
        self,
        model: HostedModel,
        allows_calls: bool = False,
        requests: Sequence[InferenceRequest] = (),
        notes: CallerNotes | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.model = model
        self.allows_calls = allows_calls
        self.requests = requests
        self.notes = notes
        self.execution = execution
        self._waiting: tuple[Execution, ...] | None = None

    def waiting(self) -> tuple[Execution, ...]:
        """The executions that cannot end before a call made now is answered: this one, and those that wait for it."""
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = self._find_waiting()
        return waiting

    def _find_waiting(self) -> tuple[Execution, ...]:
        requests = self.requests
        if len(requests) == 1:
            outer = requests[0].waiting
        else:
            outer = tuple({execution for request in requests for execution in request.waiting})
        # A coroutine leaves its instance free while it waits.
        if self.execution is None or (self.notes is not None and self.notes.is_async):
            return outer
        return (self.execution, *outer)


current_activity: Final[ContextVar[Activity | None]] = ContextVar("cantata_activity", default=None)

_models_by_package: Final[dict[str, HostedModel]] = {}


def host_model(model: HostedModel) -> None:
    """Let the modules of `model.package` be recognised."""
    _models_by_package[model.package] = model


def forget_model(model: HostedModel) -> None:
    """The reverse of `host_model`."""
    _models_by_package.pop(model.package, None)


@contextmanager
def running_hook_of(model: HostedModel) -> Iterator[None]:
    """Around what a model's code does outside `execute`: importing, initializing, finalizing."""
    token = current_activity.set(Activity(model))
    try:
        yield
    finally:
        current_activity.reset(token)


def find_activity() -> Activity | None:
    """What the calling code belongs to; None outside every model."""
    return current_activity.get() or _activity_of_frames()


def current_model() -> HostedModel:
    """The model that the calling code belongs to; raises TritonModelException outside every model."""
    activity = find_activity()
    if activity is None:
        raise TritonModelException(
            "This function can only be called by the code of a model that is being served."
        )
    return activity.model


def _activity_of_frames() -> Activity | None:
    if not _models_by_package:
        return None
    frame = sys._getframe(1)
    while True:
        module_name = frame.f_globals.get("__name__")
        if isinstance(module_name, str):
            model = _models_by_package.get(module_name.partition(".")[0])
            if model is not None:
                return Activity(model, allows_calls=model.serving_instances > 0)
        caller = frame.f_back
        if caller is None:
            break
        frame = caller
    return None
