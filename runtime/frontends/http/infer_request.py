"""The body of an infer request decoded: JSON, JSON with binary tensors behind it, or one raw tensor.

Owns the request's fields and their errors (reference, sections 3.1 to 3.3 and "Request parameters"). Knows no
sockets; what it returns is not yet validated against the model.
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

from cantata.runtime.datatypes import BY_WIRE_NAME, BYTES, ELEMENT_SIZES, DataType
from cantata.runtime.errors import InferenceError, invalid_argument
from cantata.runtime.frontends.http.errors import json_size_error
from cantata.runtime.frontends.http.json_members import (
    array,
    boolean,
    member,
    missing_member,
    parameter_value,
    parse_json,
    string,
    unsigned,
    unsigned_error,
)
from cantata.runtime.frontends.http.json_tensor import tensor_of_json
from cantata.runtime.model_spec import ModelSpec, shape_text
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START
from cantata.runtime.response import ParameterValue
from cantata.runtime.shared_memory import RegionLease, SharedMemory
from cantata.runtime.tensor import RawTensorError, Tensor, encode_bytes_elements, tensor_of_raw

_MAX_ELEMENTS: Final = 2**63 - 1
# numpy's own limit.
_MAX_DIMENSIONS: Final = 64

_Object = dict[str, Any]


class OutputForm:
    """How one output is to be sent: as JSON or binary, as it is or as its `class_count` best classes."""

    __slots__ = ("class_count", "is_binary")

    def __init__(self, is_binary: bool, class_count: int = 0) -> None:
        self.is_binary = is_binary
        self.class_count = class_count


JSON_FORM: Final = OutputForm(is_binary=False)
BINARY_FORM: Final = OutputForm(is_binary=True)


class InferBody:
    """A decoded request. `output_forms` has the outputs that were asked for, in their order; all others that may
    come take `default_form`. `regions`, where there are any, must be released when the request is over."""

    __slots__ = (
        "correlation_id",
        "default_form",
        "flags",
        "id",
        "inputs",
        "output_forms",
        "parameters",
        "priority",
        "regions",
        "timeout_us",
    )

    def __init__(self) -> None:
        self.id = ""
        self.inputs: dict[str, Tensor] = {}
        self.output_forms: dict[str, OutputForm] = {}
        self.default_form = JSON_FORM
        self.parameters: dict[str, ParameterValue] | None = None
        self.correlation_id: int | str = 0
        self.flags = 0
        self.priority = 0
        self.timeout_us = 0
        self.regions: RegionLease | None = None


def decode_infer_request(
    body: bytes | memoryview,
    header_length: bytes | None,
    spec: ModelSpec,
    max_size: int,
    memory: SharedMemory,
) -> InferBody:
    """Decode a body of which the first `header_length` bytes are JSON: all where that is None, none where it is 0.

    `max_size` limits the JSON, each tensor in it, and a raw input; `memory` has what is not in the body at all.
    Raises InferenceError.
    """
    json_size = len(body) if header_length is None else _parse_header_length(header_length, len(body))
    if header_length is not None and json_size == 0:
        return _decode_raw(body, spec, max_size)
    if json_size > max_size:
        raise json_size_error(json_size, max_size)
    document = parse_json(body if json_size == len(body) else body[:json_size])
    if type(document) is not dict:
        raise missing_member("inputs")
    decoded = InferBody()
    try:
        _read_document(decoded, document, memoryview(body).toreadonly()[json_size:], spec, max_size, memory)
    except BaseException:
        if decoded.regions is not None:
            decoded.regions.release()
        raise
    return decoded


def _read_document(
    decoded: InferBody,
    document: _Object,
    binary: memoryview,
    spec: ModelSpec,
    max_size: int,
    memory: SharedMemory,
) -> None:
    if (id_ := document.get("id", _ABSENT)) is not _ABSENT:
        decoded.id = string(id_, "id")
    if (parameters := document.get("parameters", _ABSENT)) is not _ABSENT:
        _read_parameters(decoded, parameters)
    inputs = _InputReader(decoded, spec, binary, max_size, memory)
    decoded.inputs = inputs.read(array(member(document, "inputs"), "inputs"))
    if (outputs := document.get("outputs", _ABSENT)) is not _ABSENT:
        decoded.output_forms = _read_outputs(array(outputs, "outputs"), decoded, memory)


_ABSENT: Final = object()


def _parse_header_length(value: bytes, body_size: int) -> int:
    if not value.removeprefix(b"-").isdigit():
        raise invalid_argument(
            f"Unable to parse Inference-Header-Content-Length, got: {value.decode('latin-1')}"
        )
    length = int(value)
    if not 0 <= length <= body_size:
        raise invalid_argument(f"inference header size should be in range (0, {body_size}), got: {length}")
    return length


# Inputs.


class _InputReader:
    """Reads the `inputs` list; binary tensors are taken off the bytes behind the JSON in the order of the inputs."""

    __slots__ = ("_binary", "_decoded", "_max_size", "_memory", "_offset", "_request_id", "_spec")

    def __init__(
        self, decoded: InferBody, spec: ModelSpec, binary: memoryview, max_size: int, memory: SharedMemory
    ) -> None:
        self._decoded = decoded
        self._request_id = decoded.id
        self._memory = memory
        self._spec = spec
        self._binary = binary
        self._offset = 0
        self._max_size = max_size

    def read(self, entries: list[Any]) -> dict[str, Tensor]:
        inputs: dict[str, Tensor] = {}
        for entry in entries:
            if type(entry) is not dict:
                raise invalid_argument(
                    "Unable to parse 'inputs': attempt to access JSON non-object as object"
                )
            name = string(member(entry, "name"), "name")
            tensor = self._read_tensor(name, entry)
            if name in inputs:
                raise invalid_argument(
                    f"{_described(self._request_id)}input '{name}' already exists in request"
                )
            inputs[name] = tensor
        if self._offset != len(self._binary):
            raise invalid_argument(f"unexpected additional input data for model '{self._spec.model_name}'")
        return inputs

    def _read_tensor(self, name: str, entry: _Object) -> Tensor:
        datatype = BY_WIRE_NAME.get(string(member(entry, "datatype"), "datatype"))
        if datatype is None:
            raise invalid_argument(f"invalid datatype for input {name}")
        shape = _shape(name, array(member(entry, "shape"), "shape"))
        parameters = entry.get("parameters")
        try:
            if parameters and type(parameters) is dict:
                return self._read_with_parameters(name, datatype, shape, entry, parameters)
            if "data" not in entry:
                raise _source_error([])
            return tensor_of_json(name, datatype, shape, entry["data"], self._max_size)
        except RawTensorError as error:
            text = error.for_input(name, self._spec.model_name)
            raise invalid_argument(_described(self._request_id) + text) from None

    def _read_with_parameters(
        self, name: str, datatype: DataType, shape: tuple[int, ...], entry: _Object, parameters: _Object
    ) -> Tensor:
        sources = [key for key in ("data",) if key in entry]
        sources += [key for key in ("binary_data_size", "shared_memory_region") if key in parameters]
        if len(sources) != 1:
            raise _source_error(sources)
        match sources[0]:
            case "data":
                return tensor_of_json(name, datatype, shape, entry["data"], self._max_size)
            case "binary_data_size":
                size = unsigned(parameters["binary_data_size"], "binary_data_size")
                return _aligned(tensor_of_raw(datatype, shape, self._take(name, size)))
            case _:
                regions = _regions_of(self._decoded, self._memory)
                raw = regions.input(*_region_part(parameters))
                return _aligned(tensor_of_raw(datatype, shape, raw))

    def _take(self, name: str, size: int) -> memoryview:
        start, end = self._offset, self._offset + size
        if end > len(self._binary):
            raise invalid_argument(
                f"unexpected size for input '{name}', expecting {end - len(self._binary)} additional bytes "
                f"for model '{self._spec.model_name}'"
            )
        self._offset = end
        return self._binary[start:end]


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor where native code can read it: it may rely on alignment, and offsets are the client's choice."""
    return tensor if tensor.array.flags.aligned else Tensor(tensor.datatype, tensor.array.copy())


def _shape(name: str, entries: list[Any]) -> tuple[int, ...]:
    for size in entries:
        if type(size) is not int or size < 0:
            raise unsigned_error("shape")
    shape = tuple(entries)
    if len(shape) > _MAX_DIMENSIONS:
        raise invalid_argument(f"invalid shape for input '{name}': more than {_MAX_DIMENSIONS} dimensions")
    # A dimension of 0 does not hide the others from numpy, which multiplies all but the zeros.
    if prod(size or 1 for size in shape) > _MAX_ELEMENTS // 8:
        raise invalid_argument(
            f"invalid shape for input '{name}': shape {shape_text(shape)} causes total element count to exceed "
            f"maximum size of {_MAX_ELEMENTS}"
        )
    return shape


def _source_error(sources: list[str]) -> InferenceError:
    found = "set " + " ".join(f"'{source}'" for source in sources) if sources else "no field is set"
    return invalid_argument(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
        f"'shared_memory_region' in 'parameters'. But {found}"
    )


def _regions_of(decoded: InferBody, memory: SharedMemory) -> RegionLease:
    if decoded.regions is None:
        decoded.regions = RegionLease(memory)
    return decoded.regions


def _region_part(parameters: _Object) -> tuple[str, int, int]:
    """The name of the region, and the offset and size in it, that a tensor's parameters give."""
    return (
        string(parameters["shared_memory_region"], "shared_memory_region"),
        unsigned(parameters.get("shared_memory_offset", 0), "shared_memory_offset"),
        unsigned(parameters.get("shared_memory_byte_size", 0), "shared_memory_byte_size"),
    )


# A raw binary request.


def _decode_raw(body: bytes | memoryview, spec: ModelSpec, max_size: int) -> InferBody:
    if len(spec.inputs) != 1:
        raise _refused(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(spec.inputs)} inputs "
            f"in '{spec.model_name}' model configuration"
        )
    if len(body) > max_size:
        raise json_size_error(len(body), max_size)
    (tensor_spec,) = spec.inputs.values()
    shape = list(tensor_spec.dims)
    datatype = tensor_spec.datatype
    if shape.count(-1) > 1:
        raise _refused(
            f"The shape of the raw input '{tensor_spec.name}' can not be deduced because there are more than one "
            "variable-sized dimension"
        )
    raw = memoryview(body).toreadonly()
    if datatype is BYTES:
        if prod(abs(size) for size in shape) != 1:
            raise _refused(
                f"For BYTE datatype raw input '{tensor_spec.name}', the model must have input shape [1]"
            )
        shape = [1] * len(shape)
        raw = memoryview(encode_bytes_elements((bytes(body),)))
    elif -1 in shape:
        known = prod(size for size in shape if size != -1) * ELEMENT_SIZES[datatype]
        shape[shape.index(-1)] = len(body) // known if known else 0
    decoded = InferBody()
    decoded.default_form = BINARY_FORM
    full_shape = (1, *shape) if spec.batches else tuple(shape)
    try:
        decoded.inputs = {tensor_spec.name: tensor_of_raw(datatype, full_shape, raw)}
    except RawTensorError as error:
        raise _refused(error.for_input(tensor_spec.name, spec.model_name)) from None
    return decoded


def _refused(text: str) -> InferenceError:
    return invalid_argument(_described("") + text)


def _described(request_id: str) -> str:
    return f"[request id: {request_id or '<id_unknown>'}] "


# Requested outputs.


def _read_outputs(entries: list[Any], decoded: InferBody, memory: SharedMemory) -> dict[str, OutputForm]:
    forms: dict[str, OutputForm] = {}
    for entry in entries:
        name = string(member(entry, "name"), "name")
        if name in forms:
            raise invalid_argument(f"{_described(decoded.id)}output '{name}' already exists in request")
        parameters = entry.get("parameters")
        if not parameters or type(parameters) is not dict:
            forms[name] = JSON_FORM
            continue
        forms[name] = _output_form(parameters)
        if "shared_memory_region" in parameters:
            _regions_of(decoded, memory).place_output(name, *_region_part(parameters))
    return forms


def _output_form(parameters: _Object) -> OutputForm:
    is_binary = "binary_data" in parameters and boolean(parameters["binary_data"], "binary_data")
    class_count = 0
    if "classification" in parameters:
        class_count = unsigned(parameters["classification"], "classification", "set")
    if "shared_memory_region" in parameters:
        if class_count:
            raise invalid_argument("Output can't set both 'shared_memory_region' and 'classification'")
        if is_binary:
            raise invalid_argument("Output can't set both 'shared_memory_region' and 'binary_data'")
    if class_count:
        return OutputForm(is_binary, class_count)
    return BINARY_FORM if is_binary else JSON_FORM


# Request parameters.


def _read_parameters(decoded: InferBody, parameters: object) -> None:
    if type(parameters) is not dict:
        raise invalid_argument("Unable to parse 'parameters': attempt to access JSON non-object as object")
    kept: dict[str, ParameterValue] = {}
    for key, value in parameters.items():
        match key:
            case "sequence_id":
                decoded.correlation_id = value if type(value) is str else unsigned(value, key)
            case "sequence_start":
                decoded.flags |= SEQUENCE_START if boolean(value, key) else 0
            case "sequence_end":
                decoded.flags |= SEQUENCE_END if boolean(value, key) else 0
            case "priority":
                decoded.priority = unsigned(value, key)
            case "timeout":
                decoded.timeout_us = unsigned(value, key)
            case "binary_data_output":
                decoded.default_form = BINARY_FORM if boolean(value, key) else JSON_FORM
            case _:
                kept[key] = _parameter(key, value)
    if kept:
        decoded.parameters = kept


def _parameter(key: str, value: object) -> ParameterValue:
    if key.startswith("triton_"):
        raise invalid_argument(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
        )
    return parameter_value(key, value)
