"""The shared-memory regions that a request's tensors lie in, from their parameters (reference, section 4)."""

from __future__ import annotations

from typing import Any

from cantata.runtime.errors import invalid_argument
from cantata.runtime.frontends.grpc.infer_message import InferMessage
from cantata.runtime.shared_memory import RegionLease, SharedMemory

REGION = "shared_memory_region"
_OFFSET, _BYTE_SIZE = "shared_memory_offset", "shared_memory_byte_size"


def regions_of(message: InferMessage, memory: SharedMemory) -> RegionLease:
    """The regions that `message` uses; whoever decodes it must release them when its request is over."""
    if message.regions is None:
        message.regions = RegionLease(memory)
    return message.regions


def region_part(parameters: Any, tensor_name: str) -> tuple[str, int, int] | None:
    """The region's name, and the offset and size in it; None where the tensor lies in none. Raises InferenceError."""
    if REGION not in parameters:
        for name in (_OFFSET, _BYTE_SIZE):
            if name in parameters:
                raise invalid_argument(
                    f"'{name}' can not be specified without '{REGION}' parameter for tensor '{tensor_name}'"
                )
        return None
    if _BYTE_SIZE not in parameters:
        raise invalid_argument(
            f"'{_BYTE_SIZE}' must be specified along with '{REGION}' parameter for tensor '{tensor_name}'"
        )
    offset = _integer(parameters, _OFFSET, tensor_name)
    size = _integer(parameters, _BYTE_SIZE, tensor_name)
    region = _typed(parameters, REGION, "string_param", tensor_name)
    if offset < 0:
        raise invalid_argument(f"Invalid offset for shared memory region: '{region}'")
    if size < 0:
        raise invalid_argument(f"Invalid offset + byte size for shared memory region: '{region}'")
    return region, offset, size


def _integer(parameters: Any, name: str, tensor_name: str) -> int:
    return int(_typed(parameters, name, "int64_param", tensor_name)) if name in parameters else 0


def _typed(parameters: Any, name: str, choice: str, tensor_name: str) -> Any:
    parameter = parameters[name]
    if parameter.WhichOneof("parameter_choice") != choice:
        raise invalid_argument(
            f"invalid value type for '{name}' parameter for tensor '{tensor_name}', expected {choice}."
        )
    return getattr(parameter, choice)
