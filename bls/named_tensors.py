"""What a call gives: tensors by name, as numpy arrays.

Owns the conversion between arrays and pb_utils tensors. Arrays pass by reference and are read-only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cantata.bls.tensor import Tensor, own_tensor, tensor_value
from cantata.grammars.problems import suggest
from cantata.runtime.tensor import Tensor as TensorValue

Array = npt.NDArray[Any]


class Tensors(Mapping[str, Array]):
    """The outputs of a model: `result.BOXES`, or `result["boxes.0"]` where the name is no Python name."""

    __slots__ = ("_arrays",)

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays

    @property
    def only(self) -> Array:
        """The one tensor, whatever its name; raises LookupError where there is not exactly one."""
        if len(self._arrays) != 1:
            raise LookupError(f"there are {len(self._arrays)} tensors: {self._listed()}")
        [array] = self._arrays.values()
        return array

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            raise KeyError(self._missing(name)) from None

    def __getattr__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            raise AttributeError(self._missing(name)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        tensors = ", ".join(
            f"{name}: {array.dtype} {list(array.shape)}" for name, array in self._arrays.items()
        )
        return f"Tensors({tensors})"

    def _missing(self, name: str) -> str:
        hint = suggest(name, self._arrays)
        return f"there is no tensor '{name}'" + (f" ({hint})" if hint else f"; there are: {self._listed()}")

    def _listed(self) -> str:
        return ", ".join(self._arrays) or "none"


def tensors_of_responses(tensors: Iterable[Tensor]) -> Tensors:
    """The tensors of a response, as arrays."""
    return Tensors({tensor.name(): array_of(tensor) for tensor in tensors})


def array_of(tensor: Tensor) -> Array:
    """The elements, shared and so read-only; BF16 as its bit patterns in uint16, since numpy has no such type."""
    view = tensor_value(tensor).array[...]
    view.flags.writeable = False
    return view


def given_tensor(name: str, given: npt.ArrayLike) -> Tensor:
    """A tensor to call a model with."""
    return Tensor(name, given if isinstance(given, np.ndarray) else np.asarray(given))


def declared_tensor(name: str, value: TensorValue) -> Tensor:
    """A tensor to answer with."""
    return own_tensor(name, value)
