"""Warming up a model before it serves: the samples that a configuration describes, run in every instance.

Owns the samples' contents and what is said of one that fails (reference, section 6.9). How a batch is run and counted
is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from cantata.grammars.model_config import ControlKind, ModelConfig, ModelWarmup, ModelWarmupInput
from cantata.runtime.backends.backend import BackendInstance
from cantata.runtime.backends.catalog import sees_tensors_only
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.datatypes import ELEMENT_SIZES, NUMPY_DTYPES, DataType
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument
from cantata.runtime.execution.calls import WaitingSender
from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.request import InferenceRequest
from cantata.runtime.sequence_tensors import control_datatype
from cantata.runtime.tensor import RawTensorError, Tensor, tensor_of_raw, zeros

_DIRECTORY: Final = "warmup"
# Random whole numbers stay below this: they are often indices, into vocabularies for instance.
_RANDOM_BOUND: Final = 128


class WarmingScheduler(Protocol):
    """What runs a model's requests; a ModelScheduler or a SequenceScheduler."""

    def warm_up(
        self,
        instance: BackendInstance,
        requests: list[InferenceRequest],
        added: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Run validated requests as one batch in an instance that serves nobody yet, and count them like all others.

        `added` are inputs that no request can have, for each. They are answered when this returns, or later.
        """


@dataclass(frozen=True, slots=True)
class _Sample:
    """`batches` are how many requests each execution has. `added` are inputs that the configuration does not list."""

    name: str
    batches: tuple[int, ...]
    inputs: dict[str, Tensor]
    added: dict[str, Tensor]


def warm_up(
    scheduler: WarmingScheduler,
    instances: Sequence[BackendInstance],
    spec: ModelSpec,
    config: ModelConfig,
    model_directory: Path,
) -> None:
    """Run the samples of `config` in each of `instances`; raises InferenceError, naming the sample, when one fails."""
    # A sample without a batch size is none (reference, section 1).
    settings = [setting for setting in config.model_warmup if setting.batch_size]
    if not settings:
        return
    samples = [_sample(setting, spec, config, model_directory) for setting in settings]
    for instance in instances:
        for sample in samples:
            for size in sample.batches:
                _run(sample, size, scheduler, instance, spec, config)


def _run(
    sample: _Sample,
    size: int,
    scheduler: WarmingScheduler,
    instance: BackendInstance,
    spec: ModelSpec,
    config: ModelConfig,
) -> None:
    senders = [WaitingSender() for _ in range(size)]
    requests = [
        InferenceRequest(
            spec.model_name,
            dict(sample.inputs),
            sender,
            monotonic_ns(),
            model_version=spec.model_version,
            correlation_id=_correlation_id(config),
        )
        for sender in senders
    ]
    try:
        for request in requests:
            spec.validate(request)
    except InferenceError as error:
        raise error.within(f"warmup sample '{sample.name}': ") from None
    scheduler.warm_up(instance, requests, [sample.added] * size)
    errors = [
        response.error for sender in senders for response in sender.wait() if response.error is not None
    ]
    if errors:
        texts = "".join(f"{error.message}; " for error in errors)
        raise invalid_argument(f"failed to run warmup sample '{sample.name}': {texts}")


def _sample(setting: ModelWarmup, spec: ModelSpec, config: ModelConfig, model_directory: Path) -> _Sample:
    size = setting.batch_size
    if spec.batches and size > spec.max_batch_size:
        raise invalid_argument(
            f"warmup sample '{setting.name}': batch_size {size} is more than max_batch_size {spec.max_batch_size}"
        )
    inputs: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {}
    for name, described in setting.inputs.items():
        try:
            tensor = _tensor(name, described, spec.batches, model_directory)
        except InferenceError as error:
            raise error.within(f"warmup sample '{setting.name}': ") from None
        (inputs if name in spec.inputs else added)[name] = tensor
    # Backends that compute on arrays have no batch of several requests where the model does not batch.
    together = spec.batches or not sees_tensors_only(config.backend)
    batches = (size,) if together else (1,) * size
    return _Sample(setting.name, batches * max(1, setting.count), inputs, added)


def _tensor(name: str, described: ModelWarmupInput, batches: bool, model_directory: Path) -> Tensor:
    if described.data_type == 0:
        raise invalid_argument(f"warmup setting expects input '{name}' to have data_type set")
    if any(dim < 0 for dim in described.dims):
        raise invalid_argument(
            f"warmup setting expects all variable-size dimensions are specified for input '{name}'"
        )
    datatype = DataType(int(described.data_type))
    shape = (1, *described.dims) if batches else described.dims
    if described.input_data_file is not None:
        return _read(name, datatype, shape, model_directory / _DIRECTORY / described.input_data_file)
    if described.random_data is not None:
        array = _random(datatype, shape)
    elif described.zero_data is not None:
        array = zeros(datatype, shape)
    else:
        raise invalid_argument(f"warmup setting expects input '{name}' to have input_data_type set")
    array.flags.writeable = False
    return Tensor(datatype, array)


def _read(name: str, datatype: DataType, shape: tuple[int, ...], path: Path) -> Tensor:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise internal_error(
            f"input '{name}': failed to open text file for read {path}: {error.strerror}"
        ) from None
    if datatype is not DataType.BYTES:
        expected = prod(shape) * ELEMENT_SIZES[datatype]
        if len(raw) < expected:
            raise invalid_argument(
                f"input '{name}': warmup setting expects {expected} bytes, but the data provided from {path.name} "
                f"only has {len(raw)} bytes"
            )
        raw = raw[:expected]
    try:
        return tensor_of_raw(datatype, shape, raw)
    except RawTensorError as error:
        raise invalid_argument(f"input '{name}', from {path.name}: {error}") from None


def _random(datatype: DataType, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Floats from 0 to 1, whole numbers that are small, empty texts; the same at each load."""
    generator = np.random.default_rng(0)
    dtype = NUMPY_DTYPES[datatype]
    if datatype is DataType.BYTES:
        return zeros(datatype, shape)
    if datatype is DataType.BF16:
        # The upper half of a float's bits.
        return (generator.random(shape, np.float32).view(np.uint32) >> 16).astype(dtype)
    if dtype.kind == "f":
        return generator.random(shape).astype(dtype)
    return generator.integers(0, 2 if datatype is DataType.BOOL else _RANDOM_BOUND, shape).astype(dtype)


def _correlation_id(config: ModelConfig) -> int | str:
    """An id of the type that the model's sequences have; 0 for a model without."""
    if config.sequence_batching is None:
        return 0
    for control_input in config.sequence_batching.control_input:
        for control in control_input.control:
            if control.kind is ControlKind.CONTROL_SEQUENCE_CORRID:
                return "1" if control_datatype(control) is DataType.BYTES else 1
    return 1
