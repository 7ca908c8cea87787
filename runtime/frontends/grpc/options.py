"""What the gRPC front-end can be told (reference, section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cantata.runtime.frontends.api_keys import ApiKeys
from cantata.runtime.frontends.restricted_api import RestrictedApi

# The largest message either way: what gRPC's libraries count up to.
MAX_MESSAGE_BYTES: Final = 2**31 - 1

# tritonserver's names of compression levels, and zlib's numbers.
COMPRESSION_LEVELS: Final[dict[str, int]] = {"none": 0, "low": 1, "medium": 6, "high": 9}


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """Named as tritonserver's flags without `grpc-`. Port 0 is any free one. Times are in milliseconds.

    With `use_ssl`, `server_cert` and `server_key` are file names of PEM; with `use_ssl_mutual` clients must show a
    certificate that `root_cert` vouches for. A connection age of 0 is no limit.
    """

    address: str = "0.0.0.0"
    port: int = 8001
    reuse_port: bool = False
    use_ssl: bool = False
    use_ssl_mutual: bool = False
    server_cert: str = ""
    server_key: str = ""
    root_cert: str = ""
    infer_response_compression_level: str = "none"
    keepalive_time: int = 7_200_000
    keepalive_timeout: int = 20_000
    keepalive_permit_without_calls: bool = False
    http2_max_pings_without_data: int = 2
    http2_min_recv_ping_interval_without_data: int = 300_000
    http2_max_ping_strikes: int = 2
    max_connection_age: int = 0
    max_connection_age_grace: int = 0
    # Metadata that matches becomes request parameters; empty forwards none.
    header_forward_pattern: str = ""
    restricted_protocols: tuple[RestrictedApi, ...] = ()
    api_keys: tuple[ApiKeys, ...] = ()
    # Sizes are in bytes; no connections, and an idle time of 0, are no limits.
    max_message_size: int = MAX_MESSAGE_BYTES
    max_decompressed_size: int = 64 << 20
    max_metadata_size: int = 16 << 10
    max_connections: int = 10_000
    max_connection_idle: int = 0
    handshake_timeout: int = 60_000
    # For how long a client may take nothing of the answers that wait for it; 0 for no limit.
    write_timeout: int = 300_000

    @property
    def compresses(self) -> bool:
        """Whether inference responses are compressed for clients that can read it."""
        return self.infer_response_compression_level != "none"

    @property
    def zlib_level(self) -> int:
        """The level that they are compressed with."""
        return COMPRESSION_LEVELS[self.infer_response_compression_level]
