"""What a server can be told about loading and serving models; the command line and the embedded API both fill it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cantata.runtime.execution.rate_limiter import RateLimitMode, ResourceCount
from cantata.runtime.observe.metrics_options import LatencyOptions
from cantata.runtime.observe.trace_settings import TraceSettings
from cantata.runtime.repository.control import ModelControlMode


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Named as tritonserver's flags (reference, section 8).

    `backend_config` maps a backend's name to its settings; those under "" are for every backend. `cache_config` maps
    the name of the response cache to its settings; without one nothing is cached.
    """

    model_repository: tuple[Path, ...]
    id: str = "triton"
    exit_on_error: bool = True
    disable_auto_complete_config: bool = False
    strict_readiness: bool = True
    model_control_mode: ModelControlMode = ModelControlMode.NONE
    load_model: tuple[str, ...] = ()
    repository_poll_secs: float = 15.0
    model_config_name: str = ""
    model_load_thread_count: int = 4
    # Whether every repository is a namespace: models of one name in several of them are several models.
    model_namespacing: bool = False
    exit_timeout_secs: float = 30.0
    allow_client_shm: bool = False
    trace: TraceSettings = field(default_factory=TraceSettings)
    latencies: LatencyOptions = field(default_factory=LatencyOptions)
    rate_limit: RateLimitMode = RateLimitMode.OFF
    rate_limit_resource: tuple[ResourceCount, ...] = ()
    # How many bytes of requests may wait or run at a time; 0 for no limit.
    max_queue_bytes: int = 0
    backend_config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cache_config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
