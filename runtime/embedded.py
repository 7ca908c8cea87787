"""The server inside another program: `infer` with arrays in and arrays out, and no ports.

Owns the conversion between what Python programs hold and tensors, and the three ways of waiting: blocking, awaiting
and iterating. Everything else is `runtime.server`'s.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cantata.grammars.problems import Problem
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.datatypes import NUMPY_DTYPES, DataType
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument, unsupported
from cantata.runtime.execution.calls import WaitingSender, call_and_wait
from cantata.runtime.execution.rate_limiter import RateLimitMode, parse_resource_count
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository.check import check_repositories
from cantata.runtime.repository.control import ModelControlMode, check_startup_models
from cantata.runtime.repository.override import CONFIG_PARAMETER, FILE_PARAMETER_PREFIX
from cantata.runtime.repository.registry import ModelIndexEntry
from cantata.runtime.request import (
    SEQUENCE_END,
    SEQUENCE_START,
    Cancellation,
    InferenceRequest,
    ResponseSender,
)
from cantata.runtime.response import InferenceResponse, ParameterValue
from cantata.runtime.server import Server
from cantata.runtime.tensor import Tensor, tensor_of_array


class Outputs(dict[str, npt.NDArray[Any]]):
    """What a model answered: arrays by the outputs' names, and `parameters`, what else it said."""

    __slots__ = ("parameters",)

    def __init__(self, response: InferenceResponse) -> None:
        super().__init__((name, tensor.array) for name, tensor in response.outputs.items())
        self.parameters: dict[str, ParameterValue] = response.parameters or {}


# How many responses `stream` holds for a reader that is behind, before the model is made to wait.
_STREAM_BUFFER = 64
_NUMPY_VALUES: Final = (np.ndarray, np.generic)


class EmbeddedServer:
    """A server for the program it runs in; exported as `cantata.Server`.

    Use it in a `with` block, or call `start` and `close`. All methods may be called from any thread.
    """

    def __init__(
        self,
        model_repository: str | Path | list[str | Path],
        *,
        exit_on_error: bool = True,
        disable_auto_complete_config: bool = False,
        strict_readiness: bool = True,
        model_control_mode: str = "none",
        load_model: Sequence[str] = (),
        repository_poll_secs: float = 15.0,
        model_config_name: str = "",
        model_load_thread_count: int = 4,
        model_namespacing: bool = False,
        rate_limit: str = "off",
        rate_limit_resource: Sequence[str] = (),
        max_queue_bytes: int = 0,
        exit_timeout_secs: float = 30.0,
        backend_config: Mapping[str, Mapping[str, str]] | None = None,
        cache_config: Mapping[str, Mapping[str, str | int]] | None = None,
    ) -> None:
        """The options are named and mean the same as the flags of `cantata serve`, texts included.

        `cache_config={"local": {"size": 1 << 28}}` keeps the responses of the models that ask for it. Raises ValueError
        for an option that cannot be.
        """
        paths = model_repository if isinstance(model_repository, list) else [model_repository]
        mode = ModelControlMode(model_control_mode)
        check_startup_models(mode, load_model)
        for name, value, least in (
            ("repository_poll_secs", repository_poll_secs, 0.001),
            ("model_load_thread_count", model_load_thread_count, 1),
            ("max_queue_bytes", max_queue_bytes, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}")
        self.core = Server(
            ServerOptions(
                model_repository=tuple(Path(path) for path in paths),
                exit_on_error=exit_on_error,
                disable_auto_complete_config=disable_auto_complete_config,
                strict_readiness=strict_readiness,
                model_control_mode=mode,
                load_model=tuple(load_model),
                repository_poll_secs=repository_poll_secs,
                model_config_name=model_config_name,
                model_load_thread_count=model_load_thread_count,
                model_namespacing=model_namespacing,
                rate_limit=RateLimitMode(rate_limit),
                rate_limit_resource=tuple(map(parse_resource_count, rate_limit_resource)),
                max_queue_bytes=max_queue_bytes,
                exit_timeout_secs=exit_timeout_secs,
                backend_config=backend_config or {},
                cache_config={
                    name: {setting: str(value) for setting, value in settings.items()}
                    for name, settings in (cache_config or {}).items()
                },
            )
        )

    def start(self) -> None:
        """Load the models. Raises InferenceError, naming each model that failed and why."""
        try:
            self.core.start()
        except InferenceError as error:
            reasons = [f"{failure.name}: {failure.reason}" for failure in self.core.failures()]
            raise InferenceError(error.code, "\n".join([error.message, *reasons])) from error

    def close(self) -> None:
        """Finish what was accepted, and unload the models."""
        self.core.close()

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> list[Problem]:
        """Every problem of the repositories' configurations, as `cantata check` finds them."""
        options = self.core.options
        return check_repositories(
            options.model_repository, options.model_config_name, namespacing=options.model_namespacing
        ).problems

    def load_model(
        self, model_name: str, *, config: str = "", files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, or load it again; with `model_control_mode="explicit"` only.

        `config`, as JSON, takes the place of its configuration for this load, and `files`, by their path in the model's
        directory, that of all its files. Raises InferenceError where it fails; what served before goes on then.
        """
        parameters: dict[str, str | bytes] = {CONFIG_PARAMETER: config} if config else {}
        for path, content in (files or {}).items():
            parameters[FILE_PARAMETER_PREFIX + path.removeprefix(FILE_PARAMETER_PREFIX)] = content
        self.core.load_model(model_name, parameters)

    def unload_model(self, model_name: str, *, unload_dependents: bool = False) -> None:
        """Stop serving a model; requests in flight finish. With `model_control_mode="explicit"` only.

        `unload_dependents` takes the models along that only its steps call, unless they were loaded by their names.
        """
        self.core.unload_model(model_name, unload_dependents)

    def is_ready(self, model_name: str = "", *, version: int = -1) -> bool:
        """Whether the server can serve or, where one is named, a model; raises InferenceError for an unknown one."""
        return self.core.is_model_ready(model_name, version) if model_name else self.core.is_ready()

    def repository_index(self, *, ready_only: bool = False) -> list[ModelIndexEntry]:
        """Every model and version there is, with its state and the reason for it."""
        return self.core.repository_index(ready_only)

    def statistics(self, model_name: str = "", *, version: int = -1) -> list[ModelStatistics]:
        """The figures of all models that are ready, of one, or of one version."""
        return self.core.statistics(model_name, version)

    def infer(
        self,
        model_name: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        outputs: tuple[str, ...] = (),
        version: int = -1,
        parameters: dict[str, ParameterValue] | None = None,
        id: str = "",
        sequence_id: int | str = 0,
        sequence_start: bool = False,
        sequence_end: bool = False,
        priority: int = 0,
        timeout_us: int = 0,
    ) -> Outputs:
        """Run a model and return its outputs by name; `outputs` asks for some of them only.

        A model with sequence batching is told by `sequence_id`, and by `sequence_start` and `sequence_end`, which
        sequence this is the next request of. `priority` and `timeout_us` are for the model's queue.

        Arrays passed in are shared with the models, not copied; arrays returned may be views of shared memory.
        Strings come back as `bytes`. What the model says besides, and the timeline of a request that asks for it, is in
        the outputs' `parameters`. Raises InferenceError with the server's code and text.
        """
        sender = WaitingSender()
        request = self._request(model_name, inputs, sender, outputs, version, parameters, id)
        _place(request, sequence_id, sequence_start, sequence_end)
        request.priority, request.timeout_us = priority, timeout_us
        self._refuse_decoupled(model_name, version)
        responses = call_and_wait(self.core, request, sender)
        return _single(responses)

    async def infer_async(
        self,
        model_name: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        outputs: tuple[str, ...] = (),
        version: int = -1,
        parameters: dict[str, ParameterValue] | None = None,
        id: str = "",
        sequence_id: int | str = 0,
        sequence_start: bool = False,
        sequence_end: bool = False,
        priority: int = 0,
        timeout_us: int = 0,
    ) -> Outputs:
        """As `infer`, awaited on the running event loop. Cancelling the task cancels the request."""
        sender = _AwaitingSender(asyncio.get_running_loop())
        request = self._request(model_name, inputs, sender, outputs, version, parameters, id)
        _place(request, sequence_id, sequence_start, sequence_end)
        request.priority, request.timeout_us = priority, timeout_us
        self._refuse_decoupled(model_name, version)
        self.core.submit(request)
        try:
            return _single(await sender.responses)
        except asyncio.CancelledError:
            request.cancellation.cancel()
            raise

    def stream(
        self,
        model_name: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        outputs: tuple[str, ...] = (),
        version: int = -1,
        parameters: dict[str, ParameterValue] | None = None,
        id: str = "",
        sequence_id: int | str = 0,
        sequence_start: bool = False,
        sequence_end: bool = False,
        priority: int = 0,
        timeout_us: int = 0,
    ) -> OutputStream:
        """Run a model that answers any number of times, and yield each answer as it comes.

        A reader that is slow slows the model down; one that stops reading (closes the iterator) cancels the request.
        """
        sender = _StreamSender()
        request = self._request(model_name, inputs, sender, outputs, version, parameters, id)
        _place(request, sequence_id, sequence_start, sequence_end)
        request.priority, request.timeout_us = priority, timeout_us
        sender.watch(request.cancellation)
        self.core.submit(request)
        return OutputStream(sender, request)

    def _refuse_decoupled(self, model_name: str, version: int) -> None:
        if self.core.model(model_name, version).is_decoupled:
            raise unsupported(f"model '{model_name}' answers any number of times: call it with `stream`")

    def _request(
        self,
        model_name: str,
        inputs: Mapping[str, npt.ArrayLike],
        sender: ResponseSender,
        outputs: tuple[str, ...],
        version: int,
        parameters: dict[str, ParameterValue] | None,
        id: str,
    ) -> InferenceRequest:
        spec = self.core.model(model_name, version).spec
        tensors = {name: _tensor(spec, name, value) for name, value in inputs.items()}
        request = InferenceRequest(model_name, tensors, sender, monotonic_ns())
        request.model_version = version
        request.id = id
        request.requested_outputs = tuple(outputs)
        request.parameters = parameters
        tracer = self.core.tracer
        if parameters is not None or tracer.is_on:
            tracer.begin(request, None)
        return request


def _place(request: InferenceRequest, sequence_id: int | str, starts: bool, ends: bool) -> None:
    """Say where in which sequence a request stands."""
    request.correlation_id = sequence_id
    request.flags = SEQUENCE_START * starts | SEQUENCE_END * ends


class _AwaitingSender:
    """The sender of a request whose caller awaits it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.responses: asyncio.Future[list[InferenceResponse]] = loop.create_future()
        self._loop = loop
        self._collected: list[InferenceResponse] = []

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self._collected.append(response)
        if final:
            # The loop may have been closed by a program that did not wait for its requests.
            if self._loop.is_closed():
                return
            self._loop.call_soon_threadsafe(self._resolve)

    def wait_until_ready(self) -> None:
        """The caller collects everything: it is always ready for more."""

    def _resolve(self) -> None:
        if not self.responses.done():
            self.responses.set_result(self._collected)


class _StreamSender:
    """The sender of a request whose responses are read one by one. `_changed` guards `_responses` and `_is_ended`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._responses: deque[InferenceResponse] = deque()
        self._is_ended = False
        # Not the request: it is not kept for its reader.
        self._cancellation: Cancellation | None = None

    def watch(self, cancellation: Cancellation) -> None:
        """Let a producer that waits for its reader go when the request is cancelled."""
        self._cancellation = cancellation
        cancellation.add_listener(self, self._wake)

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        with self._changed:
            if response is not None:
                self._responses.append(response)
            self._is_ended = final
            self._changed.notify_all()
        if final and self._cancellation is not None:
            self._cancellation.remove_listener(self)

    def wait_until_ready(self) -> None:
        cancellation = self._cancellation
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    len(self._responses) < _STREAM_BUFFER
                    or self._is_ended
                    or (cancellation is not None and cancellation.is_cancelled)
                )
            )

    def next_response(self) -> InferenceResponse | None:
        """The next response, waited for; None when there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._responses or self._is_ended)
            if not self._responses:
                return None
            response = self._responses.popleft()
            self._changed.notify_all()
            return response

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class OutputStream(Iterator[Outputs]):
    """The answers of one request. Closing or dropping it, even before the first, cancels the request."""

    def __init__(self, sender: _StreamSender, request: InferenceRequest) -> None:
        self._sender = sender
        # Only what it takes to cancel: a request that is over is not kept for its stream.
        self._cancellation = request.cancellation
        self._drop = weakref.finalize(self, _cancel_elsewhere, self._cancellation)
        # The program's end is not the reader's.
        self._drop.atexit = False

    def __next__(self) -> Outputs:
        response = self._sender.next_response() if self._drop.alive else None
        if response is None:
            self._drop.detach()
            raise StopIteration
        try:
            return _arrays(response)
        except InferenceError:
            self.close()
            raise

    def close(self) -> None:
        """Read no more."""
        if self._drop.detach() is not None:
            self._cancellation.cancel()

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def _cancel_elsewhere(cancellation: Cancellation) -> None:
    """Cancel on a thread that holds no lock: what is dropped may be dropped anywhere, by the collector of cycles."""
    with contextlib.suppress(RuntimeError):
        _thread.start_new_thread(cancellation.cancel, ())


def _tensor(spec: ModelSpec, name: str, value: npt.ArrayLike) -> Tensor:
    expected = spec.inputs.get(name)
    datatype = None if expected is None else expected.datatype
    try:
        if isinstance(value, _NUMPY_VALUES):
            return tensor_of_array(value, datatype if datatype is DataType.BF16 else None)
        if datatype is DataType.BYTES:
            return tensor_of_array(np.asarray(value, dtype=object))
        if datatype is None:
            return tensor_of_array(np.asarray(value))
        return Tensor(datatype, np.asarray(value, dtype=NUMPY_DTYPES[datatype]))
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid_argument(f"input '{name}' for model '{spec.model_name}': {error}") from error


def _single(responses: list[InferenceResponse]) -> Outputs:
    if len(responses) != 1:
        raise internal_error(f"expected a single response, got {len(responses)}")
    return _arrays(responses[0])


def _arrays(response: InferenceResponse) -> Outputs:
    if response.error is not None:
        raise response.error
    return Outputs(response)
