"""The documents of the generate extension: flat JSON objects in place of tensors (reference, section 3.4).

A member named as one of the model's inputs is that input, every other a request parameter. Knows no sockets.
"""

from __future__ import annotations

from math import prod
from typing import Final

import numpy as np
import orjson

from cantata.runtime.errors import invalid_argument
from cantata.runtime.frontends.http.json_members import parameter_value, parse_json, string
from cantata.runtime.frontends.http.json_tensor import json_elements, json_text_with_nan, tensor_of_json
from cantata.runtime.model_spec import ModelSpec, TensorSpec
from cantata.runtime.response import InferenceResponse, ParameterValue
from cantata.runtime.tensor import RawTensorError, Tensor

_NESTED: Final = "parameters"


class GenerateBody:
    """What a generate request says. An `id` also counts as the parameter, or input, that its name makes it."""

    __slots__ = ("id", "inputs", "parameters")

    def __init__(self) -> None:
        self.id = ""
        self.inputs: dict[str, Tensor] = {}
        self.parameters: dict[str, ParameterValue] = {}


def decode_generate_request(body: bytes, spec: ModelSpec, max_size: int) -> GenerateBody:
    """Decode a document; raises InferenceError for what fits neither an input nor a parameter."""
    document = parse_json(body)
    if type(document) is not dict:
        raise invalid_argument("the request must be a JSON object")
    decoded = GenerateBody()
    if "id" in document:
        decoded.id = string(document["id"], "id")
    _read_members(decoded, document, spec, max_size)
    return decoded


def _read_members(decoded: GenerateBody, members: dict[str, object], spec: ModelSpec, max_size: int) -> None:
    for key, value in members.items():
        if key == _NESTED and key in spec.inputs:
            raise invalid_argument(f"Keyword '{key}' for nested schema also given as input tensor name")
        if key in spec.inputs:
            decoded.inputs[key] = _tensor(spec.inputs[key], value, max_size, spec.model_name)
        elif key == _NESTED:
            if type(value) is not dict:
                raise invalid_argument(f"Expected JSON object for keyword: '{key}'")
            _read_members(decoded, value, spec, max_size)
        else:
            decoded.parameters[key] = parameter_value(key, value)


def _tensor(spec: TensorSpec, value: object, max_size: int, model_name: str) -> Tensor:
    elements = value if type(value) is list else [value]
    shape = _deduced_shape(spec, len(elements))
    try:
        return tensor_of_json(spec.name, spec.datatype, shape, elements, max_size)
    except RawTensorError as error:
        # Lists in lists: as many as the shape has places, with other numbers of elements in them.
        raise invalid_argument(error.for_input(spec.name, model_name)) from None


def _deduced_shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """The shape of `count` elements: the innermost variable dimension takes what the fixed ones leave."""
    shape = list(spec.full_dims)
    fixed = prod(size for size in shape if size != -1)
    remaining = count // fixed if fixed else 0
    variable = [axis for axis, size in enumerate(shape) if size == -1]
    for axis in variable:
        shape[axis] = 1
    if variable:
        shape[variable[-1]] = remaining
    if prod(shape) != count:
        raise invalid_argument(f"The schema can not convert input '{spec.name}' to tensor with proper shape")
    return tuple(shape)


def encode_generate_response(response: InferenceResponse) -> bytes:
    """The document of one response; raises InferenceError for outputs without a JSON form."""
    document: dict[str, object] = {
        "model_name": response.model_name,
        "model_version": str(response.model_version),
    }
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document.update(response.parameters)
    for name, tensor in response.outputs.items():
        document[name] = _value(tensor)
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _value(tensor: Tensor) -> object:
    elements = json_elements(tensor)
    if isinstance(elements, np.ndarray):
        text = orjson.dumps(elements, option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" in text:
            text = json_text_with_nan(elements)
        return orjson.Fragment(text[1:-1] if len(elements) == 1 else text)
    return elements[0] if len(elements) == 1 else elements
