"""An ensemble compiled to tables of integers, once, when it is loaded; and its prunings to what a request
asks for.

Owns slots, streams, consumer counts and where a batch dimension is added or taken away. Expects a
configuration that `cantata.dag.checks` found no fault with. Knows nothing of requests, tensors' contents or
execution.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cantata.grammars.model_config import EnsembleStep, ModelConfig

# (name, slot, places in the stream of the steps that read it, whether it is a requested output). A plain
# tuple: it is unpacked once for every tensor of every request.
Delivery = tuple[str, int, tuple[int, ...], bool]

# How many different sets of requested outputs one ensemble keeps a pruned plan for.
MAX_PRUNED_PLANS: Final = 64


class BatchChange(enum.Enum):
    """What happens to the leading dimension between a model that batches and one that does not."""

    ADD = enum.auto()
    STRIP = enum.auto()


@dataclass(frozen=True, slots=True)
class BatchAdaptation:
    """The rule for one tensor whose producer batches while its reader does not, or the reverse.

    `dims` are the reader's, without a batch dimension; -1 fits any size.
    """

    change: BatchChange
    dims: tuple[int, ...]

    def adapt(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape the reader is to see; None when the tensor passes as it is."""
        fits = len(shape) == len(self.dims) and all(
            size in (-1, actual) for size, actual in zip(self.dims, shape, strict=True)
        )
        if self.change is BatchChange.ADD:
            return (1, *shape) if fits else None
        return shape[1:] if not fits and shape and shape[0] == 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class PlanStep:
    """One step as the run needs it. `index` is its place in the configuration, whatever was pruned.

    `inputs` are (model input, slot in `stream`); `outputs` go to slots of `output_stream`, which differs from
    `stream` exactly when the model is decoupled. `output_names` are what to request of the model.
    """

    index: int
    model_name: str
    model_version: int
    is_decoupled: bool
    stream: int
    output_stream: int
    inputs: tuple[tuple[str, int], ...]
    adaptations: tuple[tuple[str, BatchAdaptation], ...]
    outputs: tuple[Delivery, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """The tensors that get their values together, and the steps that read them.

    Stream 0 holds what comes from the request; each decoupled step begins another, with one iteration for
    each of its responses. All inputs of a step are of one stream. `waiting` counts the inputs of each step,
    `uses` how often each slot is read (being a requested output is one read), `output_count` its requested
    outputs.
    """

    tensors: tuple[str, ...]
    steps: tuple[PlanStep, ...]
    waiting: tuple[int, ...]
    uses: tuple[int, ...]
    output_count: int


class Plan:
    """The frozen tables of one ensemble, for one set of requested outputs. Shared by all its runs, on any
    thread.

    `inputs` are the ensemble inputs that some step (or output) needs. `outputs` are (name, slot) in
    `output_stream`; `output_adaptations` says which of them change shape on the way out. The ensemble
    `is_decoupled` when its outputs hang on a decoupled step.
    """

    __slots__ = (
        "_pruned",
        "_wiring",
        "inputs",
        "is_decoupled",
        "max_inflight_requests",
        "name",
        "output_adaptations",
        "output_names",
        "output_stream",
        "outputs",
        "steps",
        "streams",
    )

    def __init__(self, wiring: _Wiring, requested: Sequence[str]) -> None:
        tables = _Tables(wiring, requested)
        self.name = wiring.name
        self.max_inflight_requests = wiring.max_inflight_requests
        self.streams = tables.streams()
        self.steps = tuple(
            sorted((step for stream in self.streams for step in stream.steps), key=lambda step: step.index)
        )
        self.inputs = tables.deliveries((name, name) for name in wiring.input_names if name in tables.uses)
        self.output_names = tuple(requested)
        self.output_stream = wiring.stream_of[requested[0]] if requested else 0
        self.outputs = tuple((name, tables.slots[name]) for name in requested)
        self.output_adaptations = tuple(
            (name, wiring.output_adaptations[name]) for name in requested if name in wiring.output_adaptations
        )
        self.is_decoupled = self.output_stream != 0
        self._wiring = wiring
        self._pruned: dict[tuple[str, ...], Plan] = {}

    def pruned(self, requested: tuple[str, ...]) -> Plan:
        """The plan in which only the steps run that `requested` needs; () means every output. Cached.

        Any thread may call. Raises ValueError for a name that is no output of the ensemble.
        """
        if not requested:
            return self
        plan = self._pruned.get(requested)
        return plan if plan is not None else self._prune(requested)

    def _prune(self, requested: tuple[str, ...]) -> Plan:
        unknown = [name for name in requested if name not in self.output_names]
        if unknown:
            raise ValueError(f"ensemble '{self.name}' has no output '{unknown[0]}'")
        ordered = tuple(name for name in self.output_names if name in requested)
        if ordered == self.output_names:
            plan = self
        else:
            plan = self._pruned.get(ordered) or Plan(self._wiring, ordered)
        # Two threads may make the same plan at once: either will do.
        if len(self._pruned) >= MAX_PRUNED_PLANS:
            self._pruned.clear()
        self._pruned[requested] = plan
        return plan


def compile_plan(config: ModelConfig, composing: Sequence[ModelConfig]) -> Plan:
    """The plan of the ensemble `config`, whose steps run the models `composing` (completed, one for each
    step).

    Raises ValueError for wiring that the checks would have refused.
    """
    wiring = _Wiring(config, composing)
    return Plan(wiring, wiring.output_names)


@dataclass(frozen=True, slots=True, eq=False)
class _WiredStep:
    """A step by names: what `PlanStep` is made from for each set of requested outputs."""

    index: int
    model_name: str
    model_version: int
    is_decoupled: bool
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    adaptations: tuple[tuple[str, BatchAdaptation], ...]


class _Wiring:
    """An ensemble by tensor names, with streams and adaptations worked out; all its plans share it."""

    __slots__ = (
        "input_names",
        "max_inflight_requests",
        "name",
        "output_adaptations",
        "output_names",
        "producers",
        "steps",
        "stream_count",
        "stream_of",
    )

    def __init__(self, config: ModelConfig, composing: Sequence[ModelConfig]) -> None:
        scheduling = config.ensemble_scheduling
        if scheduling is None or len(composing) != len(scheduling.step):
            raise ValueError(
                f"model '{config.name}' is no ensemble, or its steps and models differ in number"
            )
        self.name = config.name
        self.max_inflight_requests = scheduling.max_inflight_requests
        self.input_names = tuple(tensor.name for tensor in config.input)
        self.output_names = tuple(tensor.name for tensor in config.output)
        batches = _producers_batch(config, composing)
        self.steps = tuple(
            self._wire(index, step, model, batches)
            for index, (step, model) in enumerate(zip(scheduling.step, composing, strict=True))
        )
        self.producers = {tensor: step for step in self.steps for _, tensor in step.outputs}
        self.stream_of = dict.fromkeys(self.input_names, 0)
        self.stream_count = 1
        self._assign_streams()
        self.output_adaptations = _output_adaptations(config, batches)
        if len({self.stream_of.get(name) for name in self.output_names}) > 1:
            raise ValueError(f"the outputs of ensemble '{self.name}' come from different decoupled models")

    def _wire(
        self, index: int, step: EnsembleStep, model: ModelConfig, batches: Mapping[str, bool]
    ) -> _WiredStep:
        dims = {tensor.name: tuple(tensor.dims) for tensor in model.input}
        adaptations = []
        for name, tensor in step.input_map.items():
            adaptation = _adaptation(batches.get(tensor), model.max_batch_size > 0, dims.get(name))
            if adaptation is not None:
                adaptations.append((name, adaptation))
        policy = model.model_transaction_policy
        return _WiredStep(
            index=index,
            model_name=step.model_name,
            model_version=step.model_version,
            is_decoupled=policy is not None and policy.decoupled,
            inputs=tuple(step.input_map.items()),
            # An ensemble input keeps the request's value when a step also writes to its name.
            outputs=tuple(
                (name, tensor) for name, tensor in step.output_map.items() if tensor not in self.input_names
            ),
            adaptations=tuple(adaptations),
        )

    def _assign_streams(self) -> None:
        """Give every tensor its stream, walking the steps as their inputs become known."""
        readers: dict[str, list[_WiredStep]] = {}
        missing = {}
        for step in self.steps:
            tensors = {tensor for _, tensor in step.inputs}
            missing[step.index] = len(tensors)
            for tensor in tensors:
                readers.setdefault(tensor, []).append(step)
        ready = list(self.input_names)
        for tensor in ready:
            for step in readers.get(tensor, ()):
                missing[step.index] -= 1
                if not missing[step.index]:
                    self._assign_outputs(step)
                    ready.extend(output for _, output in step.outputs)
        unreached = [index for index, count in missing.items() if count]
        if unreached:
            raise ValueError(f"step {unreached[0]} of ensemble '{self.name}' can never run")

    def _assign_outputs(self, step: _WiredStep) -> None:
        streams = {self.stream_of[tensor] for _, tensor in step.inputs}
        if len(streams) != 1:
            raise ValueError(
                f"step {step.index} of ensemble '{self.name}' joins responses of different decoupled models"
            )
        stream = streams.pop()
        if step.is_decoupled:
            stream, self.stream_count = self.stream_count, self.stream_count + 1
        for _, tensor in step.outputs:
            self.stream_of[tensor] = stream


class _Tables:
    """The slots, consumers and places of one set of requested outputs: what is left after pruning."""

    def __init__(self, wiring: _Wiring, requested: Sequence[str]) -> None:
        self._wiring = wiring
        self._requested = frozenset(requested)
        self._steps = _needed_steps(wiring, requested)
        self.uses: dict[str, int] = dict.fromkeys(requested, 1)
        self.slots: dict[str, int] = {}
        self._tensors: list[list[str]] = [[] for _ in range(wiring.stream_count)]
        self._steps_of: list[list[_WiredStep]] = [[] for _ in range(wiring.stream_count)]
        self._readers: dict[str, list[int]] = {}
        for step in self._steps:
            self._place(step)
        for tensor in self.uses:
            names = self._tensors[wiring.stream_of[tensor]]
            self.slots[tensor] = len(names)
            names.append(tensor)

    def _place(self, step: _WiredStep) -> None:
        siblings = self._steps_of[self._stream(step)]
        place = len(siblings)
        siblings.append(step)
        for _, tensor in step.inputs:
            self.uses[tensor] = self.uses.get(tensor, 0) + 1
            self._readers.setdefault(tensor, []).append(place)

    def _stream(self, step: _WiredStep) -> int:
        return self._wiring.stream_of[step.inputs[0][1]]

    def deliveries(self, tensors: Iterable[tuple[str, str]]) -> tuple[Delivery, ...]:
        """Where each of (name at its source, tensor) goes."""
        return tuple(
            (name, self.slots[tensor], tuple(self._readers.get(tensor, ())), tensor in self._requested)
            for name, tensor in tensors
        )

    def streams(self) -> tuple[Stream, ...]:
        """Every stream of the plan; one that nobody needs is empty."""
        return tuple(
            Stream(
                tensors=tuple(tensors),
                steps=tuple(self._compile(step) for step in steps),
                waiting=tuple(len(step.inputs) for step in steps),
                uses=tuple(self.uses[tensor] for tensor in tensors),
                output_count=sum(tensor in self._requested for tensor in tensors),
            )
            for tensors, steps in zip(self._tensors, self._steps_of, strict=True)
        )

    def _compile(self, step: _WiredStep) -> PlanStep:
        needed = [(name, tensor) for name, tensor in step.outputs if tensor in self.uses]
        return PlanStep(
            index=step.index,
            model_name=step.model_name,
            model_version=step.model_version,
            is_decoupled=step.is_decoupled,
            stream=self._stream(step),
            output_stream=self._wiring.stream_of[needed[0][1]],
            inputs=tuple((name, self.slots[tensor]) for name, tensor in step.inputs),
            adaptations=step.adaptations,
            outputs=self.deliveries(needed),
            output_names=tuple(name for name, _ in needed),
        )


def _needed_steps(wiring: _Wiring, requested: Iterable[str]) -> list[_WiredStep]:
    """The steps that `requested` hangs on, in the order of the configuration."""
    needed: set[int] = set()
    tensors = list(requested)
    while tensors:
        step = wiring.producers.get(tensors.pop())
        if step is not None and step.index not in needed:
            needed.add(step.index)
            tensors.extend(tensor for _, tensor in step.inputs)
    return [step for step in wiring.steps if step.index in needed]


def _producers_batch(config: ModelConfig, composing: Sequence[ModelConfig]) -> dict[str, bool]:
    """For each tensor, whether what makes it has a batch dimension."""
    scheduling = config.ensemble_scheduling
    assert scheduling is not None
    batches = {
        tensor: model.max_batch_size > 0
        for step, model in zip(scheduling.step, composing, strict=True)
        for tensor in step.output_map.values()
    }
    batches.update((tensor.name, config.max_batch_size > 0) for tensor in config.input)
    return batches


def _output_adaptations(config: ModelConfig, batches: Mapping[str, bool]) -> dict[str, BatchAdaptation]:
    adaptations = {}
    for output in config.output:
        dims = output.dims if output.reshape is None else output.reshape.shape
        adaptation = _adaptation(batches.get(output.name), config.max_batch_size > 0, tuple(dims))
        if adaptation is not None:
            adaptations[output.name] = adaptation
    return adaptations


def _adaptation(
    producer_batches: bool | None, reader_batches: bool, dims: tuple[int, ...] | None
) -> BatchAdaptation | None:
    """The rule between a producer and a reader; None where the tensor always passes as it is."""
    if producer_batches is None or producer_batches == reader_batches or dims is None:
        return None
    return BatchAdaptation(BatchChange.ADD if reader_batches else BatchChange.STRIP, dims)
