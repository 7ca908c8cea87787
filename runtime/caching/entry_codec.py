"""A cached response as one piece of bytes, for caches outside the process.

A line of JSON says what the tensors are; their raw forms follow it, in order.
"""

from __future__ import annotations

from typing import Final

import orjson

from cantata.runtime.caching.response_cache import CachedResponse
from cantata.runtime.datatypes import DataType
from cantata.runtime.tensor import tensor_of_raw

# Begins every entry: what another version wrote otherwise is not read.
_MARK: Final = b"cantata1\n"


def encode_entry(response: CachedResponse) -> bytes:
    """The bytes that `decode_entry` reads."""
    raws = [tensor.raw_bytes() for tensor in response.outputs.values()]
    header = orjson.dumps(
        {
            "model": response.model_name,
            "version": response.model_version,
            "parameters": response.parameters,
            "outputs": [
                (name, tensor.datatype.name, tensor.shape, len(raw))
                for (name, tensor), raw in zip(response.outputs.items(), raws, strict=True)
            ],
        }
    )
    return b"".join((_MARK, header, b"\n", *raws))


def decode_entry(entry: bytes) -> CachedResponse:
    """The response, its arrays views of `entry`; raises ValueError where `encode_entry` has not made it."""
    if not entry.startswith(_MARK):
        raise ValueError("it does not begin as an entry does")
    end = entry.find(b"\n", len(_MARK))
    header = orjson.loads(entry[len(_MARK) : end])
    view = memoryview(entry)
    start = end + 1
    outputs = {}
    for name, datatype, shape, size in header["outputs"]:
        outputs[name] = tensor_of_raw(DataType[datatype], tuple(shape), view[start : start + size])
        start += size
    return CachedResponse(header["model"], header["version"], outputs, header["parameters"])
