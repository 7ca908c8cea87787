"""What a response cache is, and what it holds.

Owns the value: outputs that nobody else can change, with the memory they take. Knows nothing of requests' equality or
of when a cache is asked: that is `request_key.py`'s and the caching scheduler's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from cantata.runtime.datatypes import DataType
from cantata.runtime.observe.snapshots import CacheFigures
from cantata.runtime.observe.timeline import without_timeline
from cantata.runtime.response import InferenceResponse, ParameterValue
from cantata.runtime.tensor import Tensor

# What an entry, and each of its outputs, takes in memory beside the elements: measured, and rounded up.
_ENTRY_BYTES: Final = 640
_OUTPUT_BYTES: Final = 320


class CachedResponse:
    """A successful response without the id of its request. It is shared: nothing of it is ever changed.

    `byte_size` is about what it takes in memory.
    """

    __slots__ = ("byte_size", "model_name", "model_version", "outputs", "parameters")

    def __init__(
        self,
        model_name: str,
        model_version: int,
        outputs: dict[str, Tensor],
        parameters: dict[str, ParameterValue] | None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = outputs
        self.parameters = parameters
        self.byte_size = _ENTRY_BYTES + sum(map(_memory_of, outputs.values()))

    def response(self, request_id: str) -> InferenceResponse:
        """The answer to another request; its arrays are the cache's, and read-only."""
        parameters = None if self.parameters is None else dict(self.parameters)
        return InferenceResponse(
            self.model_name, self.model_version, request_id, dict(self.outputs), parameters
        )


def kept_copy(response: InferenceResponse) -> CachedResponse:
    """A successful response to be kept: copied, since its memory may be a batch's, a model's or a client's."""
    parameters = without_timeline(response.parameters)
    if parameters is not None:
        parameters = dict(parameters)
    outputs = {name: _copied(tensor) for name, tensor in response.outputs.items()}
    return CachedResponse(response.model_name, response.model_version, outputs, parameters)


class ResponseCache(Protocol):
    """Where responses are kept. Any thread may call. No method raises because of the cache's own state."""

    # Whether `lookup` and `insert` wait for another process, so that no front-end's thread may call them.
    is_remote: bool

    def start(self) -> None:
        """Called once, before all else; raises InferenceError where the cache cannot be."""

    def lookup(self, key: bytes) -> CachedResponse | None:
        """What is kept under `key`."""

    def insert(self, key: bytes, owner: object, response: CachedResponse) -> None:
        """Keep a response, if there is room for it, until others need the room, or `forget(owner)`."""

    def forget(self, owner: object) -> None:
        """The keys of `owner` are not looked up any more."""

    def figures(self) -> CacheFigures:
        """The figures now."""

    def close(self) -> None:
        """Called once, when nobody looks up any more."""


def _copied(tensor: Tensor) -> Tensor:
    array: npt.NDArray[Any] = np.array(tensor.array, order="C", copy=True)
    array.flags.writeable = False
    return Tensor(tensor.datatype, array)


def _memory_of(tensor: Tensor) -> int:
    size = _OUTPUT_BYTES + tensor.array.nbytes
    if tensor.datatype is DataType.BYTES:
        size += sum(map(sys.getsizeof, cast(Iterable[bytes], tensor.array.flat)))
    return size
