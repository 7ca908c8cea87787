"""The parameters of requests and responses as a model.py gives and sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cantata.bls.errors import TritonModelException
from cantata.runtime.response import ParameterValue

# What clients pass among the parameters but means fields of the request (reference, section 7.4).
RESERVED: Final = frozenset(("sequence_id", "sequence_start", "sequence_end", "priority", "timeout"))


def checked_parameters(parameters: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
    """A copy of what a model gives; raises TritonModelException for keys and values of other types."""
    if not isinstance(parameters, Mapping):
        raise TritonModelException(f"Expect parameters to be a dictionary, found type {type(parameters)}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, bool | int | str):
            raise TritonModelException(
                f"Expect parameters values to have type bool/int/str, found type {type(value)}"
            )
    return dict(parameters)
