"""One inference response encoded: the JSON document and the binary tensors behind it.

Owns the order of keys, what is JSON and what is binary, and the headers that tell (reference, section 3.2). Knows no
sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import orjson

from cantata.runtime.frontends.http.infer_request import OutputForm
from cantata.runtime.frontends.http.json_tensor import json_elements, json_text_with_nan
from cantata.runtime.response import InferenceResponse
from cantata.runtime.shared_memory import RegionLease
from cantata.runtime.tensor import Tensor

_JSON_TYPE: Final = b"Content-Type: application/json\r\n"
_BINARY_HEADERS: Final = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"

# A document on its way to orjson.
_Document = dict[str, object]


def encode_infer_response(
    response: InferenceResponse,
    outputs: Mapping[str, Tensor],
    forms: Mapping[str, OutputForm],
    default_form: OutputForm,
    regions: RegionLease | None = None,
) -> tuple[bytes, list[bytes | memoryview]]:
    """The header lines of an answer, and its body in parts. `outputs` are the response's, classified where asked.

    Those that `regions` holds are written there, and only described in the answer.

    Raises InferenceError when an output cannot be written as JSON.
    """
    document: _Document = {}
    if response.id:
        document["id"] = response.id
    document["model_name"] = response.model_name
    document["model_version"] = str(response.model_version)
    if response.parameters:
        document["parameters"] = response.parameters
    parts: list[bytes | memoryview] = [b""]
    entries: list[_Document] = []
    document["outputs"] = entries
    for name, tensor in outputs.items():
        entry: _Document = {"name": name, "datatype": tensor.datatype.name, "shape": tensor.array.shape}
        if regions is not None and regions.holds_output(name):
            regions.write_output(name, tensor)
        elif forms.get(name, default_form).is_binary:
            raw = tensor.raw_bytes()
            entry["parameters"] = {"binary_data_size": len(raw)}
            if len(raw):
                parts.append(raw)
        else:
            entry["data"] = json_elements(tensor)
        entries.append(entry)
    text = _dump(document, entries)
    parts[0] = text
    return (_BINARY_HEADERS % len(text) if len(parts) > 1 else _JSON_TYPE), parts


def _dump(document: _Document, entries: list[_Document]) -> bytes:
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes NaN and infinities as null, which nothing else here is but by way of strings.
    if b"null" in text:
        for entry in entries:
            elements = entry.get("data")
            if isinstance(elements, np.ndarray):
                entry["data"] = orjson.Fragment(json_text_with_nan(elements))
        text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return text
