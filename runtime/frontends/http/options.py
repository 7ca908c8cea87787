"""What the command line can say about the HTTP front-end, as values."""

from __future__ import annotations

from dataclasses import dataclass, field

from cantata.runtime.frontends.api_keys import ApiKeys
from cantata.runtime.frontends.http.client_limits import ClientLimits
from cantata.runtime.frontends.restricted_api import RestrictedApi
from cantata.runtime.frontends.tls import TlsFiles
from cantata.runtime.observe.metrics_options import MetricsOptions


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Where to listen and what to accept. A port of None switches that listener off; 0 picks a free port."""

    address: str = "0.0.0.0"
    port: int | None = 8000
    reuse_port: bool = False
    metrics_address: str | None = None
    metrics_port: int | None = None
    # The most bytes of a JSON document, a JSON tensor, a raw input or a decompressed body.
    max_input_size: int = 64 << 20
    # Request headers that match become request parameters; empty forwards none.
    header_forward_pattern: str = ""
    restricted_apis: tuple[RestrictedApi, ...] = ()
    metrics: MetricsOptions = field(default_factory=MetricsOptions)
    limits: ClientLimits = field(default_factory=ClientLimits)
    # None serves plain HTTP. The metrics port shares the certificates where it uses TLS at all.
    tls: TlsFiles | None = None
    metrics_use_ssl: bool = False
    api_keys: tuple[ApiKeys, ...] = ()
