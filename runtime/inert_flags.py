"""The flags of tritonserver that mean nothing here: they are accepted, and a warning says that they have no effect.

One table; `flags.py` parses it together with its own. The meaning says what takes a flag's place, or why nothing does.
"""

from __future__ import annotations

from typing import Final

# Name, kind of value (as in FlagKind), default, what there is instead, group, and whether it may be given again.
InertRow = tuple[str, str, str, str, str, bool]

_ONE_LOOP: Final = "each protocol is served by one thread"
_NO_POOL: Final = "memory is taken as it is needed"
_NO_CLOUD: Final = "there is no endpoint of this kind"

INERT_ROWS: Final[tuple[InertRow, ...]] = (
    (
        "model-load-retry-count",
        "integer",
        "0",
        "a model that fails to load is not tried again",
        "Models",
        False,
    ),
    ("enable-peer-access", "boolean", "true", "left to each backend's library", "Models", False),
    ("backend-directory", "text", "", "backends are Python packages", "Models", False),
    ("repoagent-directory", "text", "", "there are no repository agents", "Models", False),
    ("http-thread-count", "integer", "8", _ONE_LOOP, "HTTP", False),
    ("grpc-infer-thread-count", "integer", "2", _ONE_LOOP, "gRPC", False),
    ("grpc-infer-allocation-pool-size", "integer", "8", _NO_POOL, "gRPC", False),
    ("grpc-max-response-pool-size", "integer", "2147483647", _NO_POOL, "gRPC", False),
    ("allow-sagemaker", "boolean", "false", _NO_CLOUD, "SageMaker and Vertex AI", False),
    ("sagemaker-port", "integer", "8080", _NO_CLOUD, "SageMaker and Vertex AI", False),
    ("sagemaker-safe-port-range", "text", "", _NO_CLOUD, "SageMaker and Vertex AI", False),
    ("sagemaker-thread-count", "integer", "8", _NO_CLOUD, "SageMaker and Vertex AI", False),
    ("allow-vertex-ai", "boolean", "false", _NO_CLOUD, "SageMaker and Vertex AI", False),
    ("vertex-ai-port", "integer", "8080", _NO_CLOUD, "SageMaker and Vertex AI", False),
    ("vertex-ai-thread-count", "integer", "8", _NO_CLOUD, "SageMaker and Vertex AI", False),
    ("vertex-ai-default-model", "text", "", _NO_CLOUD, "SageMaker and Vertex AI", False),
    ("cache-directory", "text", "", "caches are Python packages", "Response cache", False),
    ("cuda-memory-pool-byte-size", "text", "", _NO_POOL, "Memory and devices", True),
    ("cuda-virtual-address-size", "text", "", _NO_POOL, "Memory and devices", True),
    (
        "min-supported-compute-capability",
        "number",
        "0",
        "left to each backend's library",
        "Memory and devices",
        False,
    ),
    (
        "buffer-manager-thread-count",
        "integer",
        "0",
        "tensors are not copied by threads",
        "Memory and devices",
        False,
    ),
    ("host-policy", "text", "", "left to the operating system", "Memory and devices", True),
    ("model-load-gpu-limit", "text", "", "left to each backend's library", "Memory and devices", True),
)
