from __future__ import annotations

import numpy as np
import pytest

from cantata.bls import pb_utils


def test_datatypes_have_numbers_and_names() -> None:
    assert pb_utils.triton_to_numpy_type(11) is np.float32
    assert pb_utils.triton_to_numpy_type(13) is np.bytes_
    assert pb_utils.numpy_to_triton_type(np.float32) == 11
    assert pb_utils.numpy_to_triton_type(np.dtype("int64")) == 9
    assert pb_utils.numpy_to_triton_type(np.object_) == 13
    assert pb_utils.triton_string_to_numpy("TYPE_FP32") is np.float32
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    assert pb_utils.triton_string_to_numpy("TYPE_BOOL") is bool


def test_bf16_has_no_numpy_type() -> None:
    with pytest.raises(KeyError):
        pb_utils.triton_string_to_numpy("TYPE_BF16")
    with pytest.raises(KeyError):
        pb_utils.triton_to_numpy_type(14)


def test_byte_tensors_go_to_their_raw_form_and_back() -> None:
    raw = pb_utils.serialize_byte_tensor(np.array([[b"a", "é"]], object))
    assert raw == b"\x01\0\0\0a\x02\0\0\0\xc3\xa9"
    assert pb_utils.deserialize_bytes_tensor(raw).tolist() == [b"a", "é".encode()]
    assert pb_utils.serialize_byte_tensor(np.zeros(1)) is None
    assert pb_utils.deserialize_bytes_tensor(b"").tolist() == []
