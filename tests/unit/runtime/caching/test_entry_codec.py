"""A response as bytes and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.caching.entry_codec import decode_entry, encode_entry
from cantata.runtime.caching.response_cache import CachedResponse
from cantata.runtime.datatypes import ELEMENT_SIZES, DataType
from cantata.runtime.tensor import Tensor, tensor_of_raw


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(DataType))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = int(np.prod(shape))
    if datatype is DataType.BYTES:
        array = np.empty(size, dtype=object)
        array[:] = draw(st.lists(st.binary(max_size=5), min_size=size, max_size=size))
        return Tensor(datatype, array.reshape(shape))
    count = size * ELEMENT_SIZES[datatype]
    raw = draw(st.binary(min_size=count, max_size=count))
    if datatype is DataType.BOOL:
        raw = bytes(byte & 1 for byte in raw)
    return tensor_of_raw(datatype, shape, raw)


PARAMETERS = st.none() | st.dictionaries(
    st.text(max_size=3), st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3)
)


@given(st.dictionaries(st.text(min_size=1, max_size=3), tensors(), max_size=3), PARAMETERS, st.integers(0, 9))
def test_what_was_encoded_is_decoded(
    outputs: dict[str, Tensor], parameters: dict[str, bool | int | float | str] | None, version: int
) -> None:
    decoded = decode_entry(encode_entry(CachedResponse("model", version, outputs, parameters)))
    assert (decoded.model_name, decoded.model_version, decoded.parameters) == ("model", version, parameters)
    assert list(decoded.outputs) == list(outputs)
    for name, tensor in outputs.items():
        found = decoded.outputs[name]
        assert (found.datatype, found.shape) == (tensor.datatype, tensor.shape)
        assert bytes(found.raw_bytes()) == bytes(tensor.raw_bytes())


GOOD = encode_entry(CachedResponse("m", 1, {"OUT": Tensor(DataType.FP32, np.ones(4, np.float32))}, None))


@pytest.mark.parametrize("entry", [b"", b"garbage", GOOD[:12], GOOD[:-1], b"other" + GOOD])
def test_what_was_not_encoded_here_is_refused(entry: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode_entry(entry)
