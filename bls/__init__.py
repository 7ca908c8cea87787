"""What a model.py sees, and the backend that hosts it.

`from cantata import bls` is the API for new pipelines: `bls.model` or `bls.Model` declares one, `bls.call`,
`bls.stream`, `bls.map` and `bls.gather` call other models, `bls.request()` is the request that is being answered.
Model files written for Triton import `triton_python_backend_utils` instead, which is `cantata.bls.pb_utils`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cantata.bls.call_errors import CallError, CallTimeout, Code, Error
    from cantata.bls.declaration import InstanceInfo, Model, model
    from cantata.bls.element_types import (
        BF16,
        BOOL,
        BYTES,
        FP16,
        FP32,
        FP64,
        INT8,
        INT16,
        INT32,
        INT64,
        UINT8,
        UINT16,
        UINT32,
        UINT64,
        TensorType,
    )
    from cantata.bls.fan_out import gather, map
    from cantata.bls.named_calls import call, stream
    from cantata.bls.named_tensors import Tensors
    from cantata.bls.retry import Retry
    from cantata.bls.scope import Request, Sequence, request

_ELEMENT_TYPES = (
    "BF16",
    "BOOL",
    "BYTES",
    "FP16",
    "FP32",
    "FP64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
)

__all__ = [
    "BF16",
    "BOOL",
    "BYTES",
    "FP16",
    "FP32",
    "FP64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "CallError",
    "CallTimeout",
    "Code",
    "Error",
    "InstanceInfo",
    "Model",
    "Request",
    "Retry",
    "Sequence",
    "TensorType",
    "Tensors",
    "call",
    "gather",
    "map",
    "model",
    "request",
    "stream",
]

_MODULES = {
    **dict.fromkeys(_ELEMENT_TYPES, "element_types"),
    "CallError": "call_errors",
    "CallTimeout": "call_errors",
    "Code": "call_errors",
    "Error": "call_errors",
    "InstanceInfo": "declaration",
    "Model": "declaration",
    "Request": "scope",
    "Retry": "retry",
    "Sequence": "scope",
    "TensorType": "element_types",
    "Tensors": "named_tensors",
    "call": "named_calls",
    "gather": "fan_out",
    "map": "fan_out",
    "model": "declaration",
    "request": "scope",
    "stream": "named_calls",
}


def __getattr__(name: str) -> object:
    # Imported when first used: the backend's own modules import this package before anything else.
    if name not in _MODULES:
        raise AttributeError(f"module 'cantata.bls' has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(f"cantata.bls.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
