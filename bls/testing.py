"""Pipelines under test, without a server: `await testing.run(ocr, IMAGE=image, models={"detector": fake})`.

Owns the fakes. Inputs, outputs and errors are checked and converted by the same code as in a server, and the
pipeline's own exceptions come out as they are. With `server`, an embedded one answers for the models without a fake.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from cantata.bls.abandoned import Reaper
from cantata.bls.answers import Answers
from cantata.bls.call_errors import CallError, Code, Error
from cantata.bls.current_model import Activity, HostedModel, current_activity
from cantata.bls.declaration import DeclaredModel, InstanceInfo, Model
from cantata.bls.loader import open_model_code
from cantata.bls.named_calls import constant_tensors
from cantata.bls.named_tensors import Array, Tensors, array_of
from cantata.bls.pipeline_hooks import HostedPipeline
from cantata.bls.requests import InferenceRequest
from cantata.bls.scope import Call, Caller, Request, Scope, Sequence, current_scope
from cantata.bls.server_caller import ANSWERS_OFTEN, ServerCaller, request_of
from cantata.grammars.problems import suggest
from cantata.runtime.embedded import EmbeddedServer
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.observe.custom_metrics import CustomMetrics
from cantata.runtime.request import InferenceRequest as RuntimeRequest
from cantata.runtime.response import ParameterValue
from cantata.runtime.server import Server

Declared: TypeAlias = DeclaredModel[..., Any] | type[Model] | Model
# Constant outputs, an error to raise, a function of the inputs that gives or yields outputs, or another pipeline.
Fake: TypeAlias = Mapping[str, npt.ArrayLike] | Exception | Callable[..., Any] | Declared

_NOTHING: Mapping[str, Any] = {}


async def run(
    model: Declared,
    inputs: Mapping[str, npt.ArrayLike] = _NOTHING,
    /,
    *,
    models: Mapping[str, Fake] = _NOTHING,
    server: EmbeddedServer | None = None,
    id: str = "",
    priority: int = 0,
    parameters: dict[str, ParameterValue] | None = None,
    sequence: Sequence | None = None,
    **named_inputs: npt.ArrayLike,
) -> Tensors:
    """What the model answers to one request with these inputs.

    The other arguments are the request's. A class is made into an object, and initialized with `instance_info()`.
    Raises what the model raises, and Error where it returns what it did not declare.
    """
    request = _request(id, priority, parameters, sequence)
    with _calling(models, server) as caller, _object(model) as pipeline:
        return await pipeline.answer({**inputs, **named_inputs}, Scope(Request(request), caller))


async def stream(
    model: Declared,
    inputs: Mapping[str, npt.ArrayLike] = _NOTHING,
    /,
    *,
    models: Mapping[str, Fake] = _NOTHING,
    server: EmbeddedServer | None = None,
    id: str = "",
    priority: int = 0,
    parameters: dict[str, ParameterValue] | None = None,
    sequence: Sequence | None = None,
    **named_inputs: npt.ArrayLike,
) -> AsyncIterator[Tensors]:
    """The answers of a model that yields them; see `run`."""
    request = _request(id, priority, parameters, sequence)
    with _calling(models, server) as caller, _object(model) as pipeline:
        async for answer in pipeline.answers({**inputs, **named_inputs}, Scope(Request(request), caller)):
            yield answer


def load(path: str | Path) -> DeclaredModel[..., Any] | type[Model]:
    """The model that a model.py declares, imported as a server imports it: its own modules are found beside it."""
    file = Path(path).absolute()
    code = open_model_code(file.parent.parent.name, file.parent.parent, file.parent, file.name)
    code.load(file.parent.parent.name)
    hosted = code.model_class
    if not isinstance(hosted, HostedPipeline):
        raise TypeError(f"{file} does not declare a model with cantata.bls")
    return hosted.declared


def instance_info(
    model: str = "model", *, directory: str | Path = ".", parameters: Mapping[str, str] = _NOTHING
) -> InstanceInfo:
    """What `initialize` is given, for a test that makes the model's object itself."""
    return InstanceInfo(
        model, 1, Path(directory), name=f"{model}_0", kind="CPU", device_id=0, parameters=parameters
    )


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """A model ready to answer."""

    declared: DeclaredModel[..., Any] | Model
    function: Callable[..., Any]

    async def answer(self, inputs: Mapping[str, npt.ArrayLike], scope: Scope) -> Tensors:
        declaration = self.declared.declaration
        if declaration.is_decoupled:
            raise TypeError(f"the model {declaration.name} yields its answers: use testing.stream")
        arrays = self._arrays(inputs)
        token = current_scope.set(scope)
        try:
            returned = self.function(**arrays)
            if inspect.isawaitable(returned):
                returned = await returned
        finally:
            current_scope.reset(token)
        return self._tensors(returned)

    async def answers(self, inputs: Mapping[str, npt.ArrayLike], scope: Scope) -> AsyncIterator[Tensors]:
        declaration = self.declared.declaration
        if not declaration.is_decoupled:
            yield await self.answer(inputs, scope)
            return
        yielded = self.function(**self._arrays(inputs))
        while True:
            # Only while the model runs: this generator shares the context of whoever reads it.
            token = current_scope.set(scope)
            try:
                returned = await anext(yielded) if declaration.is_async else next(yielded)
            except (StopAsyncIteration, StopIteration):
                return
            finally:
                current_scope.reset(token)
            yield self._tensors(returned)

    def _arrays(self, inputs: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        declaration = self.declared.declaration
        leading = (-1,) if declaration.max_batch_size else ()
        arrays = {}
        for name, given in inputs.items():
            if name not in declaration.inputs:
                hint = suggest(name, declaration.inputs)
                raise TypeError(
                    f"the model {declaration.name} has no input '{name}'" + (f" ({hint})" if hint else "")
                )
            try:
                array = declaration.inputs[name].value_of(given, leading).array[...]
            except TypeError as error:
                raise TypeError(f"input '{name}' of the model {declaration.name}: {error}") from None
            array.flags.writeable = False
            arrays[name] = array
        missing = declaration.inputs.keys() - arrays.keys() - declaration.optional_inputs
        if missing:
            raise TypeError(f"the model {declaration.name} is not given its inputs {sorted(missing)}")
        return arrays

    def _tensors(self, returned: Any) -> Tensors:
        declaration = self.declared.declaration
        values = Answers(declaration, declaration.name).values_of(returned)
        return Tensors({name: value.array for name, value in values.items()})


class _FakeCaller:
    """Calls the fakes; a model without one is `others`'. See Caller."""

    def __init__(self, models: Mapping[str, Fake], others: Caller | None) -> None:
        self._models = models
        self._others = others

    async def call(self, call: Call) -> Tensors:
        fake = self._fake(call)
        if isinstance(fake, _Elsewhere):
            return await fake.caller.call(call)
        answers = [answer async for answer in self._answers(call, fake)]
        if len(answers) != 1:
            raise CallError(Code.UNSUPPORTED, ANSWERS_OFTEN, call.model)
        return answers[0]

    def stream(self, call: Call) -> AsyncIterator[Tensors]:
        fake = self._fake(call)
        return fake.caller.stream(call) if isinstance(fake, _Elsewhere) else self._answers(call, fake)

    def _fake(self, call: Call) -> Fake | _Elsewhere:
        fake = self._models.get(call.model)
        if fake is not None:
            return fake
        if self._others is not None:
            return _Elsewhere(self._others)
        known = ", ".join(self._models) or "none"
        raise CallError(Code.NOT_FOUND, f"the test has no fake of it; its fakes: {known}", call.model)

    async def _answers(self, call: Call, fake: Fake) -> AsyncIterator[Tensors]:
        try:
            async for answer in self._unchecked(call, fake):
                if call.outputs:
                    answer = Tensors({name: answer[name] for name in call.outputs})
                yield answer
        except CallError as error:
            raise CallError(error.code, error.text, call.model) from error
        except Error as error:
            raise CallError(error.code, error.text, call.model) from error

    async def _unchecked(self, call: Call, fake: Fake) -> AsyncIterator[Tensors]:
        arrays = {tensor.name(): array_of(tensor) for tensor in call.inputs}
        if isinstance(fake, DeclaredModel | Model) or (isinstance(fake, type) and issubclass(fake, Model)):
            with _object(fake) as pipeline:
                async for answer in pipeline.answers(arrays, Scope(Request(request_of(call)), self)):
                    yield answer
            return
        if isinstance(fake, Exception):
            raise fake
        returned: Any = fake(**arrays) if callable(fake) else fake
        if inspect.isawaitable(returned):
            returned = await returned
        if isinstance(returned, AsyncIterator):
            async for outputs in returned:
                yield constant_tensors(outputs)
        elif isinstance(returned, Iterator):
            for outputs in returned:
                yield constant_tensors(outputs)
        else:
            yield constant_tensors(returned)


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """In place of a fake: the call is for another caller."""

    caller: Caller


@dataclass(frozen=True, slots=True)
class _Services:
    """What an embedded server does for the models it hosts, done for a test. See ServerServices."""

    server: Server

    @property
    def workers(self) -> WorkerPool:
        return self.server.workers

    def submit(self, request: RuntimeRequest) -> None:
        self.server.submit(request)

    def run_now(self, request: RuntimeRequest, *, only_if_quick: bool = False) -> bool:
        return self.server.run_now(request, only_if_quick=only_if_quick)

    def is_decoupled(self, model_name: str, model_version: int) -> bool:
        return self.server.model(model_name, model_version).is_decoupled

    def batches_here(self, model_name: str, model_version: int) -> bool:
        return self.server.model(model_name, model_version).batches_here

    def is_model_ready(self, model_name: str, model_version: int) -> bool:
        return self.server.is_model_ready(model_name, model_version)

    def load_model(self, model_name: str, parameters: Mapping[str, str | bytes]) -> None:
        self.server.load_model(model_name, parameters)

    def unload_model(self, model_name: str, unload_dependents: bool) -> None:
        self.server.unload_model(model_name, unload_dependents)

    @property
    def custom_metrics(self) -> CustomMetrics:
        return self.server.custom_metrics


@contextmanager
def _calling(models: Mapping[str, Fake], server: EmbeddedServer | None) -> Iterator[Caller]:
    if server is None:
        yield _FakeCaller(models, None)
        return
    reaper = Reaper()
    reaper.start()
    hosted = HostedModel("test", 1, Path(), "", _Services(server.core), reaper)
    try:
        yield _FakeCaller(models, _WithActivity(Activity(hosted, allows_calls=True)))
    finally:
        reaper.close()


@dataclass(frozen=True, slots=True)
class _WithActivity:
    """Calls a server as if a model of its own did."""

    activity: Activity

    async def call(self, call: Call) -> Tensors:
        with self._active():
            return await ServerCaller().call(call)

    def stream(self, call: Call) -> AsyncIterator[Tensors]:
        with self._active():
            return ServerCaller().stream(call)

    @contextmanager
    def _active(self) -> Iterator[None]:
        token = current_activity.set(self.activity)
        try:
            yield
        finally:
            current_activity.reset(token)


@contextmanager
def _object(model: Declared) -> Iterator[_Pipeline]:
    """The model's object; one made here is initialized and finalized."""
    if isinstance(model, DeclaredModel):
        yield _Pipeline(model, model.function)
    elif isinstance(model, Model):
        yield _Pipeline(model, model.execute)
    else:
        made = model()
        file = getattr(sys.modules.get(model.__module__), "__file__", None)
        made.initialize(instance_info(model.__name__, directory=Path(file).parent if file else "."))
        try:
            yield _Pipeline(made, made.execute)
        finally:
            made.finalize()


def _request(
    id: str, priority: int, parameters: dict[str, ParameterValue] | None, sequence: Sequence | None
) -> InferenceRequest:
    return request_of(
        replace(
            Call("model", []), id=id, priority=priority, parameters=parameters or _NOTHING, sequence=sequence
        )
    )
