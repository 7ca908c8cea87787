"""The request that the running code answers, and who carries out its calls: `bls.request()`.

A context variable holds both, so that tasks and threads started with the context (`asyncio.to_thread`) inherit them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cantata.bls.named_tensors import Tensors
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START
from cantata.runtime.response import ParameterValue

if TYPE_CHECKING:
    from cantata.bls.requests import InferenceRequest
    from cantata.bls.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Sequence:
    """Which sequence a request belongs to, and whether it is the first or the last of it."""

    id: int | str
    start: bool = False
    end: bool = False

    @property
    def flags(self) -> int:
        """As pb_utils has them."""
        return SEQUENCE_START * self.start | SEQUENCE_END * self.end


class Inherited(NamedTuple):
    """What the calls that are made for a request take over from it."""

    id: str
    priority: int
    parameters: Mapping[str, ParameterValue]
    sequence: Sequence | None


class Request:
    """The request that is being answered. Its calls inherit all of it, and its cancellation and deadline."""

    __slots__ = ("_inherited", "_parameters", "_request")

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request
        self._parameters: dict[str, ParameterValue] | None = None
        self._inherited: Inherited | None = None

    @property
    def id(self) -> str:
        return self._request.request_id()

    @property
    def parameters(self) -> Mapping[str, ParameterValue]:
        """The parameters that the client sent."""
        if self._parameters is None:
            text = self._request.parameters()
            self._parameters = {} if text == "{}" else json.loads(text)
        return self._parameters

    @property
    def priority(self) -> int:
        """1 is the highest; 0 is the model's default."""
        return self._request.priority()

    @property
    def sequence(self) -> Sequence | None:
        correlation_id = self._request.correlation_id()
        if not correlation_id:
            return None
        flags = self._request.flags()
        return Sequence(correlation_id, bool(flags & SEQUENCE_START), bool(flags & SEQUENCE_END))

    @property
    def requested_outputs(self) -> list[str]:
        """The outputs that the client asked for."""
        return self._request.requested_output_names()

    def inherited(self) -> Inherited:
        """What calls carry on."""
        inherited = self._inherited
        if inherited is None:
            inherited = self._inherited = Inherited(self.id, self.priority, self.parameters, self.sequence)
        return inherited

    @property
    def trace_headers(self) -> Mapping[str, str]:
        """What tells other services that their work is part of this request's trace; empty where it is not traced."""
        context = self._request.trace().context
        return {} if context is None else json.loads(context)

    @property
    def seconds_left(self) -> float | None:
        """How long somebody waits for the answer, by the client's deadline or the request's timeout.

        None without a limit. 0 or less when it comes too late.
        """
        received = self._request._received
        ends_ns = 0 if received is None else received.ends_ns
        return (ends_ns - monotonic_ns()) / 1e9 if ends_ns else None

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more. Async models are cancelled then anyway."""
        return self._request.is_cancelled()


# Neither is frozen: both are made on the request path, where that would cost more than all else about them.
@dataclass(slots=True, eq=False)
class Call:
    """One call of a model, with everything that it inherited or was told."""

    model: str
    inputs: list[Tensor]
    version: int = -1
    outputs: tuple[str, ...] = ()
    id: str = ""
    priority: int = 0
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    sequence: Sequence | None = None

    def to(self, model: str) -> Call:
        """The same call of another model, in whichever version is ready."""
        return replace(self, model=model, version=-1)


class Caller(Protocol):
    """Who carries out calls: the server, or the fakes of a test."""

    async def call(self, call: Call) -> Tensors:
        """The answer; raises CallError."""

    def stream(self, call: Call) -> AsyncIterator[Tensors]:
        """The answers of a model that gives any number of them; raises CallError. Dropping it cancels the call."""


@dataclass(slots=True, eq=False)
class Scope:
    """What a context variable says of the running code."""

    request: Request
    caller: Caller


current_scope: Final[ContextVar[Scope | None]] = ContextVar("cantata_bls_scope", default=None)


def scope() -> Scope:
    """The scope of the running code; raises RuntimeError where no request is being answered."""
    found = current_scope.get()
    if found is None:
        raise RuntimeError(
            "no request is being answered here: calls belong into a model's `execute`, and in tests into "
            "`cantata.bls.testing.run`"
        )
    return found


def request() -> Request:
    """The request that is being answered; raises RuntimeError where there is none."""
    return scope().request
