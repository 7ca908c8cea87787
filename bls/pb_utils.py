"""What `import triton_python_backend_utils as pb_utils` gives a model.py. Names only; each is owned elsewhere."""

from __future__ import annotations

from typing import Final

from cantata.bls.conversions import (
    deserialize_bytes_tensor,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
)
from cantata.bls.errors import TritonError, TritonModelException
from cantata.bls.logger import Logger
from cantata.bls.memory import (
    TRITONSERVER_MEMORY_CPU,
    TRITONSERVER_MEMORY_GPU,
    MemoryType,
    PreferredMemory,
)
from cantata.bls.metrics import Metric, MetricFamily, MetricKind
from cantata.bls.model_config import (
    ModelConfig,
    get_input_config_by_name,
    get_output_config_by_name,
    using_decoupled_model_transaction_policy,
)
from cantata.bls.model_state import get_model_dir, is_model_ready, load_model, unload_model
from cantata.bls.requests import (
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    InferenceRequest,
    InferenceTrace,
    get_input_tensor_by_name,
    get_output_tensor_by_name,
)
from cantata.bls.response_iterator import ResponseIterator
from cantata.bls.response_sender import TRITONSERVER_RESPONSE_COMPLETE_FINAL, InferenceResponseSender
from cantata.bls.responses import InferenceResponse
from cantata.bls.tensor import Tensor
from cantata.runtime.request import SEQUENCE_END, SEQUENCE_START

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START: Final = SEQUENCE_START
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END: Final = SEQUENCE_END

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MemoryType",
    "Metric",
    "MetricFamily",
    "MetricKind",
    "ModelConfig",
    "PreferredMemory",
    "ResponseIterator",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]
