"""From a ModelInferRequest to an InferenceRequest: parameters, tensors, requested outputs.

Owns the texts of what can be wrong with them on this protocol (reference, sections 3 and 4). What a model expects is
checked later, by its ModelSpec.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np

from cantata.runtime.datatypes import BYTES, NUMPY_DTYPES, DataType
from cantata.runtime.errors import InferenceError, StatusCode, invalid_argument
from cantata.runtime.frontends.grpc.infer_message import InferMessage, InputHeader
from cantata.runtime.frontends.grpc.regions import region_part, regions_of
from cantata.runtime.model_spec import ModelSpec, shape_text
from cantata.runtime.request import (
    SEQUENCE_END,
    SEQUENCE_START,
    Cancellation,
    InferenceRequest,
    ResponseSender,
)
from cantata.runtime.response import ParameterValue
from cantata.runtime.shared_memory import SharedMemory
from cantata.runtime.tensor import RawTensorError, Tensor, encode_bytes_elements, tensor_of_raw

EMPTY_FINAL_PARAMETER: Final = "triton_enable_empty_final_response"

# What Triton calls any datatype that there is not.
_INVALID: Final = "<invalid>"
_INTEGER: Final = re.compile(r"\s*[+-]?\d+")

# The typed contents, in the order in which they are looked at: the field, the datatype that it is called by, and
# the datatypes that it may carry.
_TYPED_CONTENTS: Final = (
    ("bool_contents", DataType.BOOL, (DataType.BOOL,)),
    ("int_contents", DataType.INT32, (DataType.INT8, DataType.INT16, DataType.INT32)),
    ("int64_contents", DataType.INT64, (DataType.INT64,)),
    ("uint_contents", DataType.UINT32, (DataType.UINT8, DataType.UINT16, DataType.UINT32)),
    ("uint64_contents", DataType.UINT64, (DataType.UINT64,)),
    ("fp32_contents", DataType.FP32, (DataType.FP32,)),
    ("fp64_contents", DataType.FP64, (DataType.FP64,)),
    ("bytes_contents", DataType.BYTES, (DataType.BYTES,)),
)


class UnknownDatatypeError(InferenceError):
    """An input whose datatype is none; what it should be is not known here."""

    def __init__(self, described: str, input_name: str) -> None:
        super().__init__(
            StatusCode.INVALID_ARG, f"{described}inference input '{input_name}' data-type is '{_INVALID}'"
        )
        self._input_name = input_name

    def for_model(self, spec: ModelSpec) -> InferenceError:
        """The same, with what `spec` expects."""
        if self._input_name not in spec.inputs:
            return self
        expected = spec.inputs[self._input_name].datatype.name
        return invalid_argument(f"{self.message}, but model '{spec.model_name}' expects '{expected}'")


def parse_model_version(text: str) -> int:
    """A version as requests name it: -1 where the text is empty. Raises InferenceError (INVALID_ARG)."""
    if not text:
        return -1
    match = _INTEGER.match(text)
    if match is None or abs(int(match[0])) >= 1 << 63:
        reason = "no integer" if match is None else "out of range"
        raise invalid_argument(
            f"failed to get model version from specified version string '{text}' (details: {reason}), "
            "version should be an integral value > 0"
        )
    version = int(match[0])
    if version < 0:
        raise invalid_argument(
            f"invalid model version specified '{text}' , version should be an integral value > 0"
        )
    return version


def build_request(
    message: InferMessage,
    model_version: int,
    sender: ResponseSender,
    received_ns: int,
    deadline_ns: int,
    cancellation: Cancellation | None,
    memory: SharedMemory,
) -> InferenceRequest:
    """The request that `message` makes. Raises InferenceError, mostly INVALID_ARG, where it makes none.

    Either way the caller releases `message.regions` where there are any.
    """
    inputs = _decode_inputs(message, memory)
    request = InferenceRequest(message.model_name, inputs, sender, received_ns, cancellation)
    request.model_version = model_version
    request.id = message.id
    if message.outputs:
        request.requested_outputs = _decode_outputs(message, memory)
    request.deadline_ns = deadline_ns
    if message.parameters is not None:
        _apply_parameters(message.parameters, request)
    return request


def wants_empty_final(message: InferMessage) -> bool:
    """Whether the request asks that the end of its responses be sent even when no response goes with it."""
    if message.parameters is None or EMPTY_FINAL_PARAMETER not in message.parameters:
        return False
    return bool(_typed(message.parameters[EMPTY_FINAL_PARAMETER], EMPTY_FINAL_PARAMETER, "bool_param"))


def _described(message: InferMessage) -> str:
    return f"[request id: {message.id or '<id_unknown>'}] "


def _decode_outputs(message: InferMessage, memory: SharedMemory) -> tuple[str, ...]:
    names: list[str] = []
    for output in message.outputs:
        if output.name in names:
            raise invalid_argument(f"{_described(message)}output '{output.name}' already exists in request")
        names.append(output.name)
        if output.parameters is None:
            continue
        part = region_part(output.parameters, output.name)
        if part is not None:
            if "classification" in output.parameters:
                raise invalid_argument("output can't set both 'shared_memory_region' and 'classification'")
            regions_of(message, memory).place_output(output.name, *part)
    return tuple(names)


def _decode_inputs(message: InferMessage, memory: SharedMemory) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    raw_contents = message.raw_contents
    raw_index = 0
    for header in message.inputs:
        name = header.name
        if name in inputs:
            raise invalid_argument(f"{_described(message)}input '{name}' already exists in request")
        raw = None if header.is_plain else _special_contents(message, header, memory)
        if raw is None:
            if raw_index >= len(raw_contents):
                raise invalid_argument(
                    f"unable to find data for input tensor '{name}' for model '{message.model_name}' in request."
                )
            raw = raw_contents[raw_index]
            raw_index += 1
        inputs[name] = _tensor(message, header, raw)
    return inputs


def _special_contents(
    message: InferMessage, header: InputHeader, memory: SharedMemory
) -> bytes | memoryview | None:
    """The bytes of an input in shared memory or in typed contents, None where they are the next of the raw contents."""
    part = None if header.parameters is None else region_part(header.parameters, header.name)
    if part is None:
        _check_header(message, header)
        return None if header.contents is None else _typed_contents(message, header)
    if header.contents is not None:
        raise invalid_argument(
            f"unexpected 'content' provided when using shared memory for input tensor '{header.name}' "
            f"for model '{message.model_name}'"
        )
    _check_header(message, header)
    return regions_of(message, memory).input(*part)


def _check_header(message: InferMessage, header: InputHeader) -> None:
    """What may be said against an input before its data is looked at."""
    name, model_name = header.name, message.model_name
    if any(size < 0 for size in header.shape):
        raise invalid_argument(
            f"{_described(message)}All input dimensions should be specified for input '{name}' "
            f"for model '{model_name}', got {shape_text(header.shape)}"
        )
    if header.contents is not None and message.raw_contents:
        raise invalid_argument(
            f"contents field must not be specified when using raw_input_contents for '{name}' "
            f"for model '{model_name}'"
        )


def _tensor(message: InferMessage, header: InputHeader, raw: bytes | memoryview) -> Tensor:
    if header.datatype is None:
        raise UnknownDatatypeError(_described(message), header.name)
    try:
        tensor = tensor_of_raw(header.datatype, header.shape, raw)
    except RawTensorError as error:
        text = error.for_input(header.name, message.model_name)
        raise invalid_argument(_described(message) + text) from None
    except ValueError as error:
        # What numpy cannot hold: too many dimensions, or an empty tensor of an enormous shape.
        raise invalid_argument(
            f"{_described(message)}invalid shape for input '{header.name}': shape {shape_text(header.shape)}: {error}"
        ) from None
    # Where a tensor begins in a message is chance, and native code may rely on alignment: copied where it is not.
    if type(raw) is memoryview and not tensor.array.flags.aligned:
        return Tensor(tensor.datatype, tensor.array.copy())
    return tensor


def _typed_contents(message: InferMessage, header: InputHeader) -> bytes:
    """The tensor's elements in raw form, from whichever typed field has them."""
    datatype = header.datatype
    raw = b""
    where = (
        f"unexpected explicit tensor data for input tensor '{header.name}' for model '{message.model_name}'"
    )
    for field_name, called, carried in _TYPED_CONTENTS:
        elements = getattr(header.contents, field_name)
        if not elements:
            continue
        if raw:
            raise invalid_argument(f"{where}, binary data was already supplied.")
        if datatype is None or datatype not in carried:
            wanted = _INVALID if datatype is None else datatype.name
            raise invalid_argument(f"{where} of type '{called.name}', expected datatype '{wanted}'")
        raw = _raw_elements(datatype, called, elements)
    return raw


def _raw_elements(datatype: DataType, called: DataType, elements: Any) -> bytes:
    if datatype is BYTES:
        return encode_bytes_elements(elements)
    # As wide as the field carries them, then truncated: the low bytes are what counts (reference, section 4).
    return np.array(elements, dtype=NUMPY_DTYPES[called]).astype(NUMPY_DTYPES[datatype]).tobytes()


def _apply_parameters(parameters: Any, request: InferenceRequest) -> None:
    """Set what the reserved parameters say; hand the others on to the model (reference, section 3)."""
    others: dict[str, ParameterValue] = {}
    for name, parameter in parameters.items():
        match name:
            case "sequence_id":
                request.correlation_id = _correlation_id(parameter)
            case "sequence_start":
                if _typed(parameter, name, "bool_param"):
                    request.flags |= SEQUENCE_START
            case "sequence_end":
                if _typed(parameter, name, "bool_param"):
                    request.flags |= SEQUENCE_END
            case "priority":
                request.priority = _priority(parameter)
            case "timeout":
                request.timeout_us = max(0, _typed(parameter, name, "int64_param"))
            case "triton_enable_empty_final_response":
                _typed(parameter, name, "bool_param")
            case _:
                others[name] = _other_parameter(name, parameter)
    if others:
        request.parameters = others


def _typed(parameter: Any, name: str, choice: str) -> Any:
    if parameter.WhichOneof("parameter_choice") != choice:
        raise invalid_argument(f"invalid value type for '{name}' parameter, expected {choice}.")
    return getattr(parameter, choice)


def _correlation_id(parameter: Any) -> int | str:
    choice = parameter.WhichOneof("parameter_choice")
    if choice == "int64_param":
        number: int = parameter.int64_param
        return number & 0xFFFF_FFFF_FFFF_FFFF
    if choice == "string_param":
        text: str = parameter.string_param
        return text
    raise invalid_argument(
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."
    )


def _priority(parameter: Any) -> int:
    choice = parameter.WhichOneof("parameter_choice")
    if choice == "uint64_param":
        return int(parameter.uint64_param)
    if choice != "int64_param":
        raise invalid_argument(
            "invalid value type for 'priority' parameter, expected int64_param or uint64_param."
        )
    if parameter.int64_param < 0:
        raise invalid_argument("invalid value for 'priority', expected value >= 0.")
    return int(parameter.int64_param)


def _other_parameter(name: str, parameter: Any) -> ParameterValue:
    if name.startswith("triton_"):
        raise invalid_argument(
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting "
            f"with 'triton_' are allowed: {EMPTY_FINAL_PARAMETER}"
        )
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in ("bool_param", "int64_param", "string_param", "double_param"):
        raise invalid_argument(
            f"invalid value type for '{name}' parameter, expected int64_param, bool_param, or string_param."
        )
    value: ParameterValue = getattr(parameter, choice)
    return value
